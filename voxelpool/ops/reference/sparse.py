"""Lists of cells and their convolutions in pure PyTorch, by the rules of ``voxelpool.ops.sparse``.

Cells are numbered in raster order, in 64 bits; a list that is sorted is searched by halving.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from voxelpool.ops.reference.cells import (
    conv_shape,
    coords_of_cells,
    flat_cells,
    neighbour_rows,
    reached_cells,
)


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
    """As the op ``voxelpool::sparse_table``; memory for N x T numbers of 64 bits."""
    cells = _cells("coords", coords, batch_size, shape)
    out_cells = _cells("out_coords", out_coords, batch_size, out_shape)
    geometry = (kernel, stride, padding)
    return neighbour_rows(cells, shape, out_cells, out_shape, *geometry).int()


def sparse_reach(
    coords: Tensor,
    batch_size: int,
    shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """As the op ``voxelpool::sparse_reach``."""
    cells = _cells("coords", coords, batch_size, shape)
    geometry = (kernel, stride, padding)
    after = conv_shape(shape, *geometry)
    return coords_of_cells(reached_cells(cells, shape, after, *geometry), after)


def _cells(name: str, coords: Tensor, batch_size: int, shape: Sequence[int]) -> Tensor:
    """(K,) int64, the number of each cell; the list is checked on the CPU."""
    cells = flat_cells(coords, shape)
    if coords.device.type != "cpu":
        return cells
    outside = (coords < 0) | (coords >= torch.tensor([batch_size, *shape]))
    disorder = torch.zeros(len(cells), dtype=torch.bool)
    disorder[1:] = cells[1:] <= cells[:-1]
    bad = outside.any(1) | disorder
    if bad.any():
        row = int(bad.nonzero()[0])
        text = f"{name}[{row}] is {tuple(coords[row].tolist())}, "
        if outside[row].any():
            raise IndexError(f"{text}beyond {batch_size} frames of {tuple(shape)} cells (z, y, x)")
        raise ValueError(
            f"{text}not behind the cell before it: cells must be sorted by frame, z, y, x, and "
            "each be there once"
        )
    return cells
