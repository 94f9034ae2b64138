"""Occupancy grids of points, by what was hit and what the rays to them passed through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from voxelpool.ops import _check
from voxelpool.ops.voxelize import voxelize
from voxelpool.structures import VoxelGrid

Occupancy: TypeAlias = Literal["hit", "density", "log_odds"]

_LOG_ODDS_STEP = 1.38  # of a hit; a ray that passes takes as much away
_LOG_ODDS_LIMIT = 4.0
_MOST_CROSSINGS = 1 << 22  # of rays with planes, sorted at once


def occupancy_grid(
    points: Tensor,
    grid: VoxelGrid,
    model: Occupancy = "hit",
    *,
    origin: Tensor | Sequence[float] | None = None,
    batch: Tensor | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """What is known of each cell, by one of VoxNet's three models (Maturana and Scherer 2015).

    Every point is one ray from ``origin``. It hits the cell it ends in, by the rule of
    :func:`voxelize`, and misses each other cell that a stretch of it lies in: neither those touched
    in an edge or corner alone, nor those behind the point. Origin and points may lie outside the
    grid; a point there misses the cells on its way and hits none.

    - hit: 1 where a point lies, otherwise 0. Needs no rays.
    - density: the mean of the Beta distribution of being hit, from a uniform prior:
      (1 + hits) / (2 + hits + misses). A cell that no ray met holds 0.5.
    - log_odds: 1.38 * (hits - misses), limited to [-4, 4]: the sum is limited and not each step, so
      that the order of the points does not matter. A cell that no ray met holds 0.

    Args:
        points: (N, 3 or more) float32, metres; x, y, z first. Rows with a NaN or infinite
            coordinate are left out.
        grid: the range and the size of the cells.
        model: hit, density or log_odds.
        origin: (3,) or (B, 3), where the sensor stood, in the frame of ``points``; the models with
            rays need it.
        batch: (N,) integers, the frame of each point, in any order; None: all in frame 0.
        batch_size: B; as of :func:`voxelize`.

    Returns:
        (B, D, H, W) float32.

    Raises:
        TypeError: as :func:`voxelize`.
        ValueError: as :func:`voxelize`; an unknown model; an origin that is missing, is not finite
            or has another shape.
    """
    if model not in ("hit", "density", "log_odds"):
        raise ValueError(f"model must be hit, density or log_odds, got {model!r}")
    voxels = voxelize(points, grid, batch=batch, batch_size=batch_size)
    hits = points.new_zeros((voxels.batch_size, *grid.shape))
    counts = voxels.counts().clamp(max=1) if model == "hit" else voxels.counts()
    hits[voxels.coords.long().unbind(1)] = counts.to(hits.dtype)
    if model == "hit":
        return hits
    misses = _misses(
        points[:, :3].detach(),
        _frames(points, batch),
        grid,
        _origins(origin, model, voxels.batch_size, points.device),
    )
    if model == "density":
        return (1 + hits) / (2 + hits + misses)
    return (_LOG_ODDS_STEP * (hits - misses)).clamp(-_LOG_ODDS_LIMIT, _LOG_ODDS_LIMIT)


def _frames(points: Tensor, batch: Tensor | None) -> Tensor:
    if batch is not None:
        return batch.long()
    return torch.zeros(points.shape[0], dtype=torch.int64, device=points.device)


def _origins(
    origin: Tensor | Sequence[float] | None, model: str, batch_size: int, device: torch.device
) -> Tensor:
    """(B, 3) float32."""
    if origin is None:
        raise ValueError(f"the model {model} needs the origin of the rays")
    origins = torch.as_tensor(origin, dtype=torch.float32)
    if isinstance(origin, Tensor):
        _check.same_device("origin", origin, "points", torch.empty(0, device=device))
    if origins.shape not in ((3,), (batch_size, 3)):
        raise ValueError(f"origin must be (3,) or ({batch_size}, 3), got {tuple(origins.shape)}")
    if not origins.isfinite().all():
        raise ValueError(f"origin must be finite, got {origins.tolist()}")
    return origins.to(device).expand(batch_size, 3)


def _misses(ends: Tensor, frame: Tensor, grid: VoxelGrid, origins: Tensor) -> Tensor:
    """(B, D, H, W) float32: how many rays pass through each cell without ending there."""
    shape = (origins.shape[0], *grid.shape)
    finite = ends.isfinite().all(1)
    ends, frame = ends[finite], frame[finite]
    total = torch.zeros(origins.shape[0] * grid.num_cells, dtype=torch.int64, device=ends.device)
    rays = max(_MOST_CROSSINGS // (sum(grid.shape) + 3), 1)
    for part, part_frame in zip(ends.split(rays), frame.split(rays), strict=True):
        cells = _passed(origins[part_frame], part, part_frame, grid)
        total += torch.bincount(cells, minlength=len(total))
    return total.view(shape).float()


def _passed(starts: Tensor, ends: Tensor, frame: Tensor, grid: VoxelGrid) -> Tensor:
    """Number of the cell within the batch, for every ray and cell that it passes.

    Between the cell it starts in and the one it ends in, a ray crosses known planes on each axis.
    All of them in order of where it does are its way (Amanatides and Woo 1987, all steps at once).
    """
    depth, height, width = grid.shape
    low = torch.tensor(grid.range[:3], dtype=torch.float32, device=ends.device)
    size = torch.tensor(grid.voxel_size, dtype=torch.float32, device=ends.device)
    first, last = _cells(starts, grid), _cells(ends, grid)
    # In cells from here on: the planes are whole numbers.
    start, end = ((p.double() - low.double()) / size.double() for p in (starts, ends))
    times, axes = [], []
    for axis, cells in enumerate((width, height, depth)):
        plane = torch.arange(cells + 1, device=ends.device)
        a, b = first[:, axis, None], last[:, axis, None]
        crossed = (torch.minimum(a, b) < plane) & (plane <= torch.maximum(a, b))
        step = end[:, axis, None] - start[:, axis, None]
        time = (plane - start[:, axis, None]) / step
        times.append(torch.where(crossed, time.clamp(0, 1), 2))
        axes.append(plane.new_full((cells + 1,), axis))
    time, order = torch.cat(times, 1).sort(1)
    across = torch.where(time > 1, 3, torch.cat(axes)[order])
    time = time.clamp(max=1)
    begin = torch.cat([torch.zeros_like(time[:, :1]), time], 1)
    until = torch.cat([time, torch.ones_like(time[:, :1])], 1)
    inside, ended = until > begin, torch.ones_like(until, dtype=torch.bool)
    number = frame[:, None]
    for axis, cells in ((2, depth), (1, height), (0, width)):
        steps = (across == axis).cumsum(1) * (last[:, axis, None] - first[:, axis, None]).sign()
        cell = first[:, axis, None] + torch.cat([torch.zeros_like(steps[:, :1]), steps], 1)
        inside = inside & (cell >= 0) & (cell < cells)
        ended = ended & (cell == last[:, axis, None])
        number = number * cells + cell
    return number[inside & ~ended]


def _cells(points: Tensor, grid: VoxelGrid) -> Tensor:
    """(N, 3) int64: x, y, z cell of finite points as `voxelize` has it; -1 before the grid, and the
    number of cells behind it.
    """
    low, high = (
        torch.tensor(part, dtype=points.dtype, device=points.device)
        for part in (grid.range[:3], grid.range[3:])
    )
    size = torch.tensor(grid.voxel_size, dtype=points.dtype, device=points.device)
    cells = torch.tensor(grid.shape[::-1], device=points.device)
    inside = (points >= low) & (points < high)
    cell = torch.where(inside, (points - low) / size, 0).long()
    beside = torch.where(points < low, -1, cells)
    return torch.where(inside, torch.minimum(cell, cells - 1), beside)
