"""Times the operations against their pure-PyTorch references, alternating, in one run.

Example: python benchmarks/run_all.py --repeats 20
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from unittest import mock

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import voxelpool
from voxelpool.ops import (
    boxes_iou_bev,
    nms_rotated,
    points_in_boxes,
    segment_max,
    segment_mean,
    voxelize,
)
from voxelpool.structures import VoxelGrid

CAR_GRID = VoxelGrid((0, -40, -3, 70.4, 40, 1), (0.2, 0.2, 0.4))
Work = Callable[[], object]


def sweep(count: int) -> torch.Tensor:
    """Points that thin out with the square of the range, as a LiDAR's do."""
    generator = torch.Generator().manual_seed(0)
    radius = 2 + 68 * torch.rand(count, generator=generator) ** 3
    azimuth = (torch.rand(count, generator=generator) - 0.5) * 1.4
    height = -1.7 + 2 * torch.rand(count, generator=generator) ** 4
    return torch.stack(
        [radius * azimuth.cos(), radius * azimuth.sin(), height, torch.zeros(count)], dim=1
    )


def boxes(count: int, side: float) -> torch.Tensor:
    """Cars spread over a square."""
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(count, 7, generator=generator)
    low = torch.tensor([0, 0, -1, 3.5, 1.5, 1.4, -3.14])
    high = torch.tensor([side, side, -0.5, 4.5, 1.8, 1.7, 3.14])
    return low + (high - low) * values


def workloads() -> dict[str, Work]:
    """The operations by name."""
    rows = torch.randn(120_000, 128)
    cuts = torch.randint(0, 120_001, (9_999,), generator=torch.Generator().manual_seed(2))
    offsets = torch.cat([torch.tensor([0]), cuts.sort().values, torch.tensor([120_000])])
    cropped, whole = sweep(19_000), sweep(120_000)
    some = boxes(500, 80.0)
    scores = torch.rand(len(some), generator=torch.Generator().manual_seed(3))
    return {
        "voxelize 19,000 points, T=35": lambda: voxelize(cropped, CAR_GRID, max_points=35),
        "voxelize 120,000 points, T=35": lambda: voxelize(whole, CAR_GRID, max_points=35),
        "segment_max 120,000 x 128 into 10,000": lambda: segment_max(rows, offsets),
        "segment_mean 120,000 x 128 into 10,000": lambda: segment_mean(rows, offsets),
        "boxes_iou_bev 500 x 500": lambda: boxes_iou_bev(some, some),
        "nms_rotated 500": lambda: nms_rotated(some, scores, 0.1),
        "points_in_boxes 120,000 x 500": lambda: points_in_boxes(whole, some),
    }


def milliseconds(work: Work) -> float:
    """One call, timed."""
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)


def reference_milliseconds(work: Work) -> float:
    """One call that runs the reference instead of the kernel, timed."""
    with mock.patch("voxelpool.ops._native.usable", return_value=False):
        return milliseconds(work)


def main() -> None:
    """Prints the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    repeats = parser.parse_args().repeats
    console = Console()
    console.print(str(voxelpool.show_config()))
    table = Table("operation", "kernel, ms", "reference, ms", "ratio", title="medians")
    for name, work in track(workloads().items(), "timing", console=console):
        milliseconds(work), reference_milliseconds(work)
        pairs = [(milliseconds(work), reference_milliseconds(work)) for _ in range(repeats)]
        fast, slow = (statistics.median(side) for side in zip(*pairs, strict=True))
        table.add_row(name, f"{fast:.2f}", f"{slow:.2f}", f"{slow / fast:.1f}")
    console.print(table)


if __name__ == "__main__":
    main()
