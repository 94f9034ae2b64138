"""Every op in pure PyTorch: what other devices run, and what the kernels are tested against."""
