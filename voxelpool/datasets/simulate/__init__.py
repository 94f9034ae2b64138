"""A LiDAR simulator: KITTI-like sweeps of random street scenes, with KITTI's labels."""

from voxelpool.datasets.simulate.writer import (
    Settings,
    SimulatedFrame,
    prepare,
    simulate_frame,
    write_frames,
)

__all__ = ["Settings", "SimulatedFrame", "prepare", "simulate_frame", "write_frames"]
