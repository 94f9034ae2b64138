"""Points to voxels: deterministic by seed, the same to the bit on every device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from voxelpool.ops import _check, _native
from voxelpool.ops._library import register
from voxelpool.ops.reference import voxelize as reference
from voxelpool.structures import StaticVoxels, VoxelGrid, Voxels

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
    batch = _checked(points, batch, max_points, max_voxels)
    if batch_size is None:
        batch_size = 1 if batch is None or batch.shape[0] == 0 else max(int(batch.max()) + 1, 1)
    _check_sizes(batch_size, grid, seed)
    coords, offsets, point_index = torch.ops.voxelpool.voxelize.default(
        *_op_arguments(points, batch, batch_size, grid, max_points, max_voxels, seed)
    )
    return Voxels(coords, offsets, point_index, grid, batch_size)


def voxelize_static(
    points: Tensor,
    grid: VoxelGrid,
    *,
    max_voxels: int,
    batch: Tensor | None = None,
    batch_size: int = 1,
    max_points: int | None = None,
    seed: int = 0,
) -> StaticVoxels:
    """The voxels of :func:`voxelize` in tensors of fixed size.

    The sizes follow from the arguments alone, and nothing waits for a CUDA device: it can be
    captured in a CUDA graph, where ``seed`` is that of the capture, and compiled for static shapes.

    A buffer of points need not be full: a row with a NaN coordinate, or whose ``batch`` is out of
    range, is left out. Put such rows behind those of their frame, since a row with a valid
    ``batch`` counts in the numbering of its frame's points that samples are drawn by.

    Args:
        points: (N, 3 or more) float32, metres; x, y, z first.
        grid: the range and the size of the voxels.
        max_voxels: the most voxels kept in a frame; there are ``batch_size * max_voxels`` rows.
        batch: (N,) integers, the frame of each point, in any order; None: all in frame 0.
        batch_size: the number of frames.
        max_points: the most points kept in a voxel, or None.
        seed: of the random samples; any int64.

    Returns:
        The occupied voxels and padding, on the device of ``points``.

    Raises:
        TypeError: an argument is no tensor or has another dtype.
        ValueError: a shape, device or limit does not fit, or the cells of all frames are 2^62 or
            more.
    """
    if max_voxels is None:
        raise TypeError("max_voxels must be a number, got None: it decides the size of the result")
    batch = _checked(points, batch, max_points, max_voxels)
    _check_sizes(batch_size, grid, seed)
    if batch_size * max_voxels >= 1 << 32:
        raise ValueError(
            "max_voxels * batch_size, the rows of the result, must be below 2^32, got "
            f"{batch_size * max_voxels}"
        )
    coords, offsets, point_index, num_voxels = torch.ops.voxelpool.voxelize_static.default(
        *_op_arguments(points, batch, batch_size, grid, max_points, max_voxels, seed)
    )
    return StaticVoxels(coords, offsets, point_index, num_voxels, grid, batch_size)


def _checked(
    points: Tensor, batch: Tensor | None, max_points: int | None, max_voxels: int | None
) -> Tensor | None:
    """``batch`` as int64."""
    _check_points(points)
    _check.positive("max_points", max_points)
    _check.positive("max_voxels", max_voxels)
    if batch is None:
        return None
    _check.tensor("batch", batch)
    _check.integer_vector("batch", batch)
    _check.same_device("batch", batch, "points", points)
    if batch.shape[0] != points.shape[0]:
        raise ValueError(
            f"batch must have one entry a point, got {batch.shape[0]} for {points.shape[0]}"
        )
    return batch.long()


def _op_arguments(
    points: Tensor,
    batch: Tensor | None,
    batch_size: int,
    grid: VoxelGrid,
    max_points: int | None,
    max_voxels: int | None,
    seed: int,
) -> tuple[Any, ...]:
    return (
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


def _native_input(points: Tensor, batch: Tensor | None, *arguments: Any) -> tuple[Any, Any]:
    """The input for the kernels, and the tensors that it points to."""
    if points.stride(1) != 1:
        points = points.contiguous()
    if batch is not None:
        batch = batch.contiguous()
    batch_size, bounds, size, shape, *rest = arguments
    grid = (tuple(bounds), tuple(size), tuple(shape))
    return _native.voxelize_input(points, batch, batch_size, *grid, *rest), (points, batch)


def _fits_cuda(points: Tensor) -> bool:
    """Whether the CUDA kernels, which number points in 32 bits, take as many."""
    return 0 < points.shape[0] < (1 << 31) - 1


def _native_voxelize(
    points: Tensor, batch: Tensor | None, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    if points.device.type == "cuda":
        if not _fits_cuda(points):
            return reference.voxelize(points, batch, *arguments)
        return _voxelize_cuda(points, batch, *arguments)
    given, alive = _native_input(points, batch, *arguments, False)
    plan = _native.VoxelizePlan(given)
    coords = torch.empty((plan.num_voxels, 4), dtype=torch.int32)
    offsets = torch.empty(plan.num_voxels + 1, dtype=torch.int64)
    point_index = torch.empty(plan.num_points, dtype=torch.int64)
    plan.write(coords, offsets, point_index)
    del alive
    return coords, offsets, point_index


def _voxelize_cuda(
    points: Tensor, batch: Tensor | None, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    n, device = points.shape[0], points.device
    given, alive = _native_input(points, batch, *arguments, False)
    workspace = _native.voxelize_workspace(given, device)
    _native.call("voxelize_plan", device, given, workspace, workspace.shape[0])
    found, bad = workspace[8 * n : 8 * n + 16].view(torch.int64).tolist()  # waits for the device
    if bad and batch is not None:
        reference.raise_bad_batch(batch, arguments[0], n - bad)
    num_voxels, num_points = found >> 32, found & ((1 << 32) - 1)
    coords = torch.empty((num_voxels, 4), dtype=torch.int32, device=device)
    offsets = torch.empty(num_voxels + 1, dtype=torch.int64, device=device)
    point_index = torch.empty(num_points, dtype=torch.int64, device=device)
    _native.call(
        "voxelize_write",
        device,
        given,
        workspace,
        coords,
        offsets,
        num_voxels,
        point_index,
        num_points,
        None,
    )
    del alive
    return coords, offsets, point_index


def _native_static(
    points: Tensor, batch: Tensor | None, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, device = points.shape[0], points.device
    if device.type == "cuda" and not _fits_cuda(points):
        return reference.voxelize_static(points, batch, *arguments)
    given, alive = _native_input(points, batch, *arguments, True)
    coords, offsets, point_index, num_voxels = _fake_static(points, batch, *arguments)
    if device.type == "cuda":
        workspace = _native.voxelize_workspace(given, device)
        _native.call("voxelize_plan", device, given, workspace, workspace.shape[0])
        _native.call(
            "voxelize_write",
            device,
            given,
            workspace,
            coords,
            offsets,
            coords.shape[0],
            point_index,
            n,
            num_voxels,
        )
    else:
        plan = _native.VoxelizePlan(given)
        plan.write(coords, offsets, point_index)
        coords[plan.num_voxels :] = -1
        offsets[plan.num_voxels + 1 :] = plan.num_points
        point_index[plan.num_points :] = 0
        num_voxels.fill_(plan.num_voxels)
    del alive
    return coords, offsets, point_index, num_voxels


# --- registration --------------------------------------------------------------------------------


def _fake_voxelize(points: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    context = torch.library.get_ctx()
    voxels, kept = context.new_dynamic_size(), context.new_dynamic_size()
    return (
        points.new_empty((voxels, 4), dtype=torch.int32),
        points.new_empty((voxels + 1,), dtype=torch.int64),
        points.new_empty((kept,), dtype=torch.int64),
    )


def _fake_static(
    points: Tensor,
    batch: Tensor | None,
    batch_size: int,
    bounds: Sequence[float],
    voxel_size: Sequence[float],
    grid_shape: Sequence[int],
    max_points: int,
    max_voxels: int,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    capacity = batch_size * max_voxels
    return (
        points.new_empty((capacity, 4), dtype=torch.int32),
        points.new_empty((capacity + 1,), dtype=torch.int64),
        points.new_empty((points.shape[0],), dtype=torch.int64),
        points.new_empty((), dtype=torch.int64),
    )


_ARGUMENTS = (
    "(Tensor points, Tensor? batch, SymInt batch_size, float[] bounds, float[] voxel_size, "
    "SymInt[] grid_shape, SymInt max_points, SymInt max_voxels, SymInt seed)"
)

register(
    f"voxelize{_ARGUMENTS} -> (Tensor, Tensor, Tensor)",
    native=_native_voxelize,
    reference=reference.voxelize,
    fake=_fake_voxelize,
)
register(
    f"voxelize_static{_ARGUMENTS} -> (Tensor, Tensor, Tensor, Tensor)",
    native=_native_static,
    reference=reference.voxelize_static,
    fake=_fake_static,
)
