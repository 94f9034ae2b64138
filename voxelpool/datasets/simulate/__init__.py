"""A LiDAR simulator: KITTI-like sweeps of random street scenes, with KITTI's labels."""

from voxelpool.datasets.simulate.scene import THINGS
from voxelpool.datasets.simulate.writer import (
    SETTINGS_FILE,
    Settings,
    SimulatedFrame,
    prepare,
    read_scene,
    simulate_frame,
    write_frames,
)

__all__ = [
    "SETTINGS_FILE",
    "THINGS",
    "Settings",
    "SimulatedFrame",
    "prepare",
    "read_scene",
    "simulate_frame",
    "write_frames",
]
