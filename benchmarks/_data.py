"""Clouds and boxes to measure with: a real sweep where KITTI_SAMPLE_DIR names frames."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from voxelpool.datasets.kitti import KittiDataset
from voxelpool.structures import VoxelGrid

CAR_GRID = VoxelGrid((0, -40, -3, 70.4, 40, 1), (0.2, 0.2, 0.4))
FRAME = "000032"


def simulated_sweep(count: int, view: float = 2 * np.pi) -> Tensor:
    """(count, 4) points of 64 beams over `view` radians, on flat ground and on walls about it."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    steps = -(-count // 64)
    azimuth = ((torch.arange(steps) + 0.5) / steps - 0.5) * view
    elevation = torch.linspace(-24.8, 2, 64).deg2rad()[:, None]
    walls = (5 + 75 * random(256))[(azimuth / view * 256).long() + 128].clamp(max=80)
    ground = torch.where(elevation < 0, 1.73 / elevation.sin().abs(), 80.0)
    distance = torch.minimum(ground, walls) + 0.04 * random(64, steps)
    flat = distance * elevation.cos()
    columns = [flat * azimuth.cos(), flat * azimuth.sin(), distance * elevation.sin()]
    return torch.stack([*columns, random(64, steps)], dim=2).view(-1, 4)[:count].contiguous()


def sweep(cropped: bool, count: int) -> tuple[Tensor, str]:
    """A whole sweep of some 120,000 points, or the 19,000 that the camera sees.

    Args:
        cropped: to the image.
        count: points of the simulated sweep that serves where there is no real one, or where
            another number is asked for by a quick run.

    Returns:
        (N, 4) float32 points, and "real" or "simulated".
    """
    folder = os.environ.get("KITTI_SAMPLE_DIR")
    if not folder or count < 10_000:
        return simulated_sweep(count, 1.4 if cropped else 2 * np.pi), "simulated"
    ids = Path(folder) / "ImageSets" / "sample.txt"
    frames = KittiDataset(folder, ids, crop_to_image=cropped)
    return torch.from_numpy(frames[frames.frame_ids.index(FRAME)].points), "real"


def boxes(count: int, side: float, seed: int = 1) -> Tensor:
    """(count, 7) cars of any heading on a square of `side` metres."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(count, 7, generator=generator)
    low = torch.tensor([0, 0, -1, 3.5, 1.5, 1.4, -np.pi])
    high = torch.tensor([side, side, -0.5, 4.5, 1.8, 1.7, np.pi])
    return low + (high - low) * values
