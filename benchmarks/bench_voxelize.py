"""Points to voxels: one sweep, a cropped sweep, a cloud ten times larger, a fine grid.

Example: KITTI_SAMPLE_DIR=path/to/frames python benchmarks/bench_voxelize.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from _data import CAR_GRID, simulated_sweep, sweep
from _measure import OURS, Case, Contender, Setting, main, powers, thread_counts
from _peers import spconv
from torch import Tensor

from voxelpool.machine import peak_memory
from voxelpool.ops import voxelize, voxelize_static
from voxelpool.structures import VoxelGrid, Voxels

MAX_POINTS = 35
SPCONV_VOXELS = 20_000  # the room that detectors give it; its time grows with it
FINE_GRID = VoxelGrid((0, -40, -3, 70.4, 40, 1), (0.02, 0.02, 0.02))  # 2.8e9 cells, over 2^31


def numpy_unique(points: np.ndarray, grid: VoxelGrid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Voxels by numpy.unique: coordinates (z, y, x), their counts, and the points by voxel.

    Keeps every point: sampling would come on top.
    """
    low, high = np.float32(grid.range[:3]), np.float32(grid.range[3:])
    xyz = points[:, :3]
    rows = np.flatnonzero(((xyz >= low) & (xyz < high)).all(axis=1))
    cells = ((xyz[rows] - low) / np.float32(grid.voxel_size)).astype(np.int64)
    depth, height, width = grid.shape
    cells = np.minimum(cells, (width - 1, height - 1, depth - 1))
    keys = (cells[:, 2] * height + cells[:, 1]) * width + cells[:, 0]
    unique, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    packed = rows[np.argsort(inverse, kind="stable")]
    coords = np.stack([unique // (height * width), unique // width % height, unique % width], 1)
    return coords, counts, packed


def of_ours(voxels: Voxels) -> list[Tensor]:
    """Coordinates (z, y, x) and counts."""
    return [voxels.coords[:, 1:], voxels.counts()]


def of_static(found: Any) -> list[Tensor]:
    """The same, of voxels padded to a fixed number."""
    count = int(found.num_voxels)
    return [found.coords[:count, 1:], found.offsets[: count + 1].diff()]


def of_numpy(found: Any) -> list[Tensor]:
    """The same, of what numpy found, as if it had sampled."""
    coords, counts, _ = found
    return [torch.from_numpy(coords), torch.from_numpy(counts).clamp(max=MAX_POINTS)]


def of_spconv(found: Any) -> list[Tensor]:
    """The same, of spconv's voxels, which come in order of their first points."""
    _, coords, counts = found
    coords, counts = coords.cpu().long(), counts.cpu().long()
    _, height, width = CAR_GRID.shape
    order = ((coords[:, 0] * height + coords[:, 1]) * width + coords[:, 2]).argsort()
    return [coords[order], counts[order]]


def contenders(points: Tensor, setting: Setting) -> list[Contender]:
    """All who make voxels of points."""
    here = points.to(setting.device)
    array = points.numpy()
    room = max(SPCONV_VOXELS, len(points) // 8)
    static = partial(voxelize_static, here, CAR_GRID, max_voxels=room, max_points=MAX_POINTS)
    return [
        Contender(OURS, lambda: voxelize(here, CAR_GRID, max_points=MAX_POINTS), of_ours),
        Contender("voxelpool, static", static, of_static, note=f"room for {room:,} voxels"),
        spconv_maker(here),
        Contender(
            "numpy.unique", lambda: numpy_unique(array, CAR_GRID), of_numpy, note="no sampling"
        ),
    ]


def spconv_maker(points: Tensor) -> Contender:
    """PointToVoxel of spconv; it also copies the points, to a padded buffer."""
    if spconv is None:
        return Contender("spconv", None)
    most = SPCONV_VOXELS if len(points) < 10 * SPCONV_VOXELS else len(points) // 2
    try:
        maker = spconv.PointToVoxel(
            list(CAR_GRID.voxel_size),
            list(CAR_GRID.range),
            points.shape[1],
            most,
            MAX_POINTS,
            device=points.device,
        )
    except (RuntimeError, AttributeError):  # a build without CUDA
        return Contender("spconv", None)
    note = f"PointToVoxel, no sampling, room for {most:,} voxels"
    return Contender("spconv", lambda: maker(points), of_spconv, note=note)


def table(setting: Setting) -> Iterator[Case]:
    """A whole sweep, a cropped one, a cloud ten times larger."""
    goals = {"spconv": 3.0, "numpy.unique": 7.0}
    for cropped, count in ((False, 120_000), (True, 19_000)):
        points, kind = sweep(cropped, setting.size(count, 700))
        what = "cropped to the image" if cropped else "whole"
        yield Case(
            f"voxelize, {kind} sweep, {what}: {len(points):,} points",
            contenders(points, setting),
            goals,
            limit_ms=0.15 if setting.device == "cuda" else None,
            bytes_moved=len(points) * (12 + 8),
        )

    small = simulated_sweep(setting.size(120_000, 700)).to(setting.device)
    large = simulated_sweep(10 * len(small))

    def ten_times() -> None:
        for _ in range(10):
            voxelize(small, CAR_GRID, max_points=MAX_POINTS)

    name = f"{len(small):,} points, ten times"
    yield Case(
        f"voxelize, simulated cloud: {len(large):,} points",
        [*contenders(large, setting), Contender(name, ten_times)],
        {**goals, name: 10 / 12},
        limit_ms=1.0 if setting.device == "cuda" else None,
        bytes_moved=len(large) * (12 + 8),
    )


def fine_grid(setting: Setting) -> Iterator[Case]:
    """The same sweep on 2.8 billion cells, more than 32 bits number."""
    points, kind = sweep(False, setting.size(120_000, 700))
    here, array = points.to(setting.device), points.numpy()
    yield Case(
        f"voxelize, {kind} sweep, {len(points):,} points, {FINE_GRID.num_cells:,} cells",
        [
            Contender(OURS, lambda: voxelize(here, FINE_GRID, max_points=MAX_POINTS), of_ours),
            Contender(
                "numpy.unique", lambda: numpy_unique(array, FINE_GRID), of_numpy, note="no sampling"
            ),
            Contender(
                "voxelpool, car grid",
                lambda: voxelize(here, CAR_GRID, max_points=MAX_POINTS),
            ),
        ],
        facts={} if setting.device != "cpu" or setting.quick else memory(points, FINE_GRID),
    )


def memory(points: Tensor, grid: VoxelGrid) -> dict[str, float]:
    """What the process grows by while a cloud is voxelized."""
    grown = peak_memory(voxelization, points.numpy(), grid)
    return {"peak MB": grown, "bytes a point": grown * 1e6 / len(points)}


def voxelization(points: np.ndarray, grid: VoxelGrid) -> Callable[[], Voxels]:
    """What `memory` measures."""
    there = torch.from_numpy(points)
    return lambda: voxelize(there, grid, max_points=MAX_POINTS)


def curves(setting: Setting) -> Iterator[Case]:
    """How it scales in points and threads."""
    places = [("points", n) for n in powers(1000, setting.size(10**6, 1000))]
    places += [("threads", t) for t in thread_counts(setting)]
    for axis, place in places:
        points = simulated_sweep(place if axis == "points" else setting.size(120_000, 500))
        yield Case(
            f"voxelize over {axis}: {len(points):,} points, {place:,} {axis}",
            contenders(points, setting),
            bytes_moved=len(points) * (12 + 8),
            curve=("voxelize", axis, place),
            threads=place if axis == "threads" else None,
        )


def cases(setting: Setting) -> Iterator[Case]:
    """All of them."""
    yield from table(setting)
    yield from fine_grid(setting)
    yield from curves(setting)


if __name__ == "__main__":
    main("voxelize", cases, __doc__)
