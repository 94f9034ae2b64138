"""Voxel pooling and VoxelNet 3D detection for LiDAR sweeps, in PyTorch."""

__version__ = "0.1.0"
