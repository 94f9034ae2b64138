"""Data sets: KITTI's files and frames, calibration, and what is made from them."""
