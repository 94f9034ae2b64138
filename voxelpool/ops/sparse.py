"""Sparse 3D convolutions: what `gather_conv` needs to know of voxels that are given as a list.

There is no map of the grid: memory is linear in the voxels, so that SECOND's 41 x 1600 x 1408
cells cost nothing. The CPU runs compiled kernels, which walk through the sorted lists; the rest
runs the PyTorch reference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from voxelpool.ops import _check, _native
from voxelpool.ops._library import register
from voxelpool.ops.reference import sparse as reference
from voxelpool.ops.reference.cells import conv_shape

_MOST_CELLS = 1 << 62
# The kernel marks the lines of the output that voxels reach, and the cells of one line.
_MOST_LINES, _MOST_COLUMNS = 1 << 27, 1 << 22


def sparse_table(
    coords: Tensor,
    out_coords: Tensor,
    batch_size: int,
    shape: Sequence[int],
    out_shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """The table of a 3D convolution between lists of cells, as `gather_conv` reads it.

    With ``out_coords`` the same as ``coords``, a stride of 1 and a padding of half the kernel, the
    convolution is submanifold: it computes at the voxels alone.

    Args:
        coords: (K, 4) int32 (batch, z, y, x), the cell of each row, sorted lexicographically, none
            twice (as ``Voxels.coords``). This is checked on the CPU; elsewhere the result of
            other lists is undefined.
        out_coords: (N, 4) int32, the cells of the output; likewise.
        batch_size: B, number of frames.
        shape: (D, H, W), cells of the input along z, y, x.
        out_shape: (D', H', W'), of the output.
        kernel: (z, y, x); the taps are in raster order.
        stride: (z, y, x).
        padding: (z, y, x).

    Returns:
        (N, T) int32: the row of ``coords`` that each tap of each output cell reads; -1: none.

    Raises:
        TypeError: not a tensor, or another dtype than int32.
        ValueError: shapes, devices or sizes that do not fit, or cells that are not sorted.
        IndexError: a cell that lies outside of its grid.
    """
    _check_coords("coords", coords)
    _check_coords("out_coords", out_coords)
    _check.same_device("coords", coords, "out_coords", out_coords)
    _check_geometry(batch_size, shape, kernel, stride, padding)
    _check_grid("out_shape", batch_size, out_shape)
    return torch.ops.voxelpool.sparse_table.default(
        coords, out_coords, batch_size, shape, out_shape, kernel, stride, padding
    )


def sparse_reach(
    coords: Tensor,
    batch_size: int,
    shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """The output cells of a convolution that see at least one voxel (spconv's SparseConv3d).

    Args:
        coords: (K, 4) int32, as of `sparse_table`.
        batch_size: B, number of frames.
        shape: (D, H, W), cells of the input along z, y, x.
        kernel: (z, y, x).
        stride: (z, y, x).
        padding: (z, y, x).

    Returns:
        (N, 4) int32 (batch, z, y, x) in the output's grid, sorted lexicographically. The grid has
        floor((size + 2 * padding - kernel) / stride) + 1 cells along each axis.

    Raises:
        TypeError: as `sparse_table`.
        ValueError: as `sparse_table`; or the grid of the output has no cell.
        IndexError: as `sparse_table`.
    """
    _check_coords("coords", coords)
    _check_geometry(batch_size, shape, kernel, stride, padding)
    out_shape = conv_shape(shape, kernel, stride, padding)
    if min(out_shape) < 1:
        raise ValueError(
            f"a convolution of {tuple(shape)} cells (z, y, x) by a kernel of {tuple(kernel)} with "
            f"padding {tuple(padding)} has no output"
        )
    _check_grid("the output", batch_size, out_shape)
    return torch.ops.voxelpool.sparse_reach.default(
        coords, batch_size, shape, kernel, stride, padding
    )


def _check_coords(name: str, coords: Tensor) -> None:
    _check.tensor(name, coords)
    if coords.dtype != torch.int32:
        raise TypeError(f"{name} must be int32, got {coords.dtype}")
    if coords.dim() != 2 or coords.shape[1] != 4:
        raise ValueError(f"{name} must have shape (K, 4), batch z y x, got {tuple(coords.shape)}")


def _check_geometry(
    batch_size: int,
    shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> None:
    _check_grid("shape", batch_size, shape)
    for name, values, least in (
        ("kernel", kernel, 1),
        ("stride", stride, 1),
        ("padding", padding, 0),
    ):
        if len(values) != 3 or min(values) < least:
            raise ValueError(
                f"{name} must be three numbers (z, y, x) of at least {least}, got {tuple(values)}"
            )


def _check_grid(name: str, batch_size: int, shape: Sequence[int]) -> None:
    if len(shape) != 3 or min(shape) < 1 or max(shape) >= 1 << 31:
        raise ValueError(
            f"{name} must be three numbers of cells (z, y, x) in [1, 2^31), got {tuple(shape)}"
        )
    if not 1 <= batch_size < 1 << 31:
        raise ValueError(f"batch_size must lie in [1, 2^31), got {batch_size}")
    if batch_size * math.prod(shape) >= _MOST_CELLS:
        raise ValueError(
            f"{batch_size} frames of {tuple(shape)} (z, y, x) cells are too many to number: all "
            "together must be less than 2^62"
        )


# --- native --------------------------------------------------------------------------------------


def _native_table(
    coords: Tensor, out_coords: Tensor, batch_size: int, *geometry: Sequence[int]
) -> Tensor:
    if coords.device.type != "cpu":
        return reference.sparse_table(coords, out_coords, batch_size, *geometry)
    coords, out_coords = coords.contiguous(), out_coords.contiguous()
    table = _fake_table(coords, out_coords, batch_size, *geometry)
    _native.call(
        "sparse_table",
        coords.device,
        coords,
        len(coords),
        out_coords,
        len(out_coords),
        batch_size,
        *(tuple(part) for part in geometry),
        table,
    )
    return table


def _native_reach(
    coords: Tensor,
    batch_size: int,
    shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    after = conv_shape(shape, kernel, stride, padding)
    fits = batch_size * after[0] * after[1] < _MOST_LINES and after[2] < _MOST_COLUMNS
    if coords.device.type != "cpu" or not fits:
        return reference.sparse_reach(coords, batch_size, shape, kernel, stride, padding)
    coords = coords.contiguous()
    found = _native.SparseReach(
        coords,
        batch_size,
        tuple(shape),
        tuple(after),
        tuple(kernel),
        tuple(stride),
        tuple(padding),
    )
    out = coords.new_empty((found.count, 4))
    found.write(out)
    return out


# --- registration --------------------------------------------------------------------------------


def _fake_table(
    coords: Tensor,
    out_coords: Tensor,
    batch_size: int,
    shape: Sequence[int],
    out_shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    return coords.new_empty((out_coords.shape[0], math.prod(kernel)))


def _fake_reach(coords: Tensor, *_: object) -> Tensor:
    return coords.new_empty((torch.library.get_ctx().new_dynamic_size(), 4))


register(
    "sparse_table(Tensor coords, Tensor out_coords, SymInt batch_size, SymInt[] shape,"
    " SymInt[] out_shape, SymInt[] kernel, SymInt[] stride, SymInt[] padding) -> Tensor",
    native=_native_table,
    reference=reference.sparse_table,
    fake=_fake_table,
)
register(
    "sparse_reach(Tensor coords, SymInt batch_size, SymInt[] shape, SymInt[] kernel,"
    " SymInt[] stride, SymInt[] padding) -> Tensor",
    native=_native_reach,
    reference=reference.sparse_reach,
    fake=_fake_reach,
)
