"""Points to voxels: deterministic by seed, the same to the bit on every device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from voxelpool.ops import _check, _native
from voxelpool.ops._library import register
from voxelpool.ops.reference import voxelize as reference
from voxelpool.structures import VoxelGrid, Voxels

_MOST_CELLS = 1 << 62


def voxelize(
    points: Tensor,
    grid: VoxelGrid,
    *,
    batch: Tensor | None = None,
    batch_size: int | None = None,
    max_points: int | None = None,
    max_voxels: int | None = None,
    seed: int = 0,
) -> Voxels:
    """Groups points by the cell of ``grid`` they lie in.

    A point lies in cell floor((p - low) / size), computed in float32, if low <= p < high on each
    axis; a quotient that rounds up to the number of cells counts to the last one. Other points, and
    those with a NaN or infinite coordinate, are dropped. Where there are more than ``max_points``
    in a voxel or ``max_voxels`` in a frame, a uniform random sample without replacement stays; it
    depends on ``seed`` and the frame alone, not on the batch that the frame comes in, the device or
    the number of threads.

    Args:
        points: (N, 3 or more) float32, metres; x, y, z first.
        grid: the range and the size of the voxels.
        batch: (N,) integers, the frame of each point, in any order; None: all in frame 0.
        batch_size: the number of frames; by default the largest of ``batch`` + 1 (finding it waits
            for a CUDA device), or 1.
        max_points: the most points kept in a voxel (T in VoxelNet, section 2.1.1), or None.
        max_voxels: the most voxels kept in a frame, or None.
        seed: of the random samples; any int64.

    Returns:
        The occupied voxels, on the device of ``points``.

    Raises:
        TypeError: an argument is no tensor or has another dtype.
        ValueError: a shape, device or limit does not fit, an entry of ``batch`` is out of range, or
            the cells of all frames are 2^62 or more.
    """
    _check_points(points)
    _check.positive("max_points", max_points)
    _check.positive("max_voxels", max_voxels)
    if batch is not None:
        _check.tensor("batch", batch)
        _check.integer_vector("batch", batch)
        _check.same_device("batch", batch, "points", points)
        if batch.shape[0] != points.shape[0]:
            raise ValueError(
                f"batch must have one entry a point, got {batch.shape[0]} for {points.shape[0]}"
            )
        batch = batch.long()
    if batch_size is None:
        batch_size = 1 if batch is None or batch.shape[0] == 0 else max(int(batch.max()) + 1, 1)
    _check_sizes(batch_size, grid, seed)
    coords, offsets, point_index = torch.ops.voxelpool.voxelize(
        points.detach(),
        batch,
        batch_size,
        grid.range,
        grid.voxel_size,
        grid.shape,
        -1 if max_points is None else max_points,
        -1 if max_voxels is None else max_voxels,
        seed,
    )
    return Voxels(coords, offsets, point_index, grid, batch_size)


def _check_points(points: Tensor) -> None:
    _check.tensor("points", points)
    if points.dtype != torch.float32:
        raise TypeError(
            f"points must be float32, got {points.dtype}: pass points.float() (cells are computed "
            "in float32, so that every device agrees)"
        )
    if points.dim() != 2 or points.shape[1] < 3:
        raise ValueError(
            f"points must have shape (N, 3 or more), x y z first, got {tuple(points.shape)}"
        )


def _check_sizes(batch_size: int, grid: VoxelGrid, seed: int) -> None:
    if not 1 <= batch_size < 1 << 31:
        raise ValueError(f"batch_size must lie in [1, 2^31), got {batch_size}")
    if max(grid.shape) >= 1 << 31 or batch_size * grid.num_cells >= _MOST_CELLS:
        raise ValueError(
            f"{batch_size} frames of {grid.shape} (z, y, x) cells are too many to number: an axis "
            "takes less than 2^31 and all together less than 2^62; take larger voxels"
        )
    if not -(1 << 63) <= seed < 1 << 63:
        raise ValueError(f"seed must fit into 64 bits, got {seed}")


# --- native --------------------------------------------------------------------------------------


def _native_voxelize(
    points: Tensor,
    batch: Tensor | None,
    batch_size: int,
    bounds: Sequence[float],
    voxel_size: Sequence[float],
    grid_shape: Sequence[int],
    max_points: int,
    max_voxels: int,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    if points.stride(1) != 1:
        points = points.contiguous()
    if batch is not None:
        batch = batch.contiguous()
    grid = (tuple(bounds), tuple(voxel_size), tuple(grid_shape))
    run = _voxelize_cuda if points.device.type == "cuda" else _voxelize_cpu
    return run(points, batch, batch_size, grid, max_points, max_voxels, seed)


def _voxelize_cpu(
    points: Tensor,
    batch: Tensor | None,
    batch_size: int,
    grid: tuple[Any, Any, Any],
    max_points: int,
    max_voxels: int,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    plan = _native.VoxelizePlan(
        points, batch, batch_size, *grid, max_points, max_voxels, seed, False
    )
    coords = torch.empty((plan.num_voxels, 4), dtype=torch.int32)
    offsets = torch.empty(plan.num_voxels + 1, dtype=torch.int64)
    point_index = torch.empty(plan.num_points, dtype=torch.int64)
    plan.write(coords, offsets, point_index)
    return coords, offsets, point_index


def _voxelize_cuda(
    points: Tensor,
    batch: Tensor | None,
    batch_size: int,
    grid: tuple[Any, Any, Any],
    max_points: int,
    max_voxels: int,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    n, device = points.shape[0], points.device
    keys = torch.empty(n, dtype=torch.int64, device=device)
    first_bad = torch.full((1,), n, dtype=torch.int64, device=device)
    _native.call(
        "voxelize_keys",
        device,
        points,
        n,
        points.stride(0),
        batch,
        batch_size,
        *grid,
        keys,
        first_bad,
    )
    if batch is not None and int(first_bad) < n:
        reference.raise_bad_batch(batch, batch_size, int(first_bad))
    depth, height, width = grid[2]
    cells, offsets, point_index = reference.group_points(
        keys,
        batch,
        batch_size,
        depth * height * width,
        max_points,
        max_voxels,
        seed,
        _random_cuda,
    )
    coords = torch.empty((cells.shape[0], 4), dtype=torch.int32, device=device)
    _native.call("voxelize_coords", device, *grid, cells, cells.shape[0], coords)
    return coords, offsets, point_index


def _random_cuda(seed: int, salt: int, index: Tensor) -> Tensor:
    index = index.contiguous()
    out = torch.empty_like(index)
    _native.call("voxelize_random", index.device, seed, salt, index, index.shape[0], out)
    return out


# --- registration --------------------------------------------------------------------------------


def _fake_voxelize(points: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    context = torch.library.get_ctx()
    voxels, kept = context.new_dynamic_size(), context.new_dynamic_size()
    return (
        points.new_empty((voxels, 4), dtype=torch.int32),
        points.new_empty((voxels + 1,), dtype=torch.int64),
        points.new_empty((kept,), dtype=torch.int64),
    )


register(
    "voxelize(Tensor points, Tensor? batch, SymInt batch_size, float[] bounds, float[] voxel_size, "
    "SymInt[] grid_shape, SymInt max_points, SymInt max_voxels, SymInt seed)"
    " -> (Tensor, Tensor, Tensor)",
    native=_native_voxelize,
    reference=reference.voxelize,
    fake=_fake_voxelize,
)
