"""Numbers of cells: what the references of voxelization and of sparse convolutions share.

The cells of a map (B, D, H, W) are numbered in raster order, in 64 bits. Nothing here waits for a
size or a value, so that exporters can follow.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_LAST = torch.iinfo(torch.int64).max


def conv_shape(
    shape: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> tuple[int, int, int]:
    """(D', H', W') of a convolution of (D, H, W) cells."""
    d, h, w = (
        (n + 2 * p - k) // s + 1 for n, k, s, p in zip(shape, kernel, stride, padding, strict=True)
    )
    return d, h, w


def flat_cells(coords: Tensor, shape: Sequence[int]) -> Tensor:
    """(K,) int64: the number of each (batch, z, y, x) in a map (B, D, H, W)."""
    batch, z, y, x = coords.long().unbind(1)
    return ((batch * shape[0] + z) * shape[1] + y) * shape[2] + x


def coords_of_cells(cells: Tensor, shape: Sequence[int]) -> Tensor:
    """(K, 4) int32 (batch, z, y, x)."""
    return torch.stack(_places(cells, shape), dim=1).int()


def reached_cells(
    cells: Tensor,
    shape: Sequence[int],
    out_shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """(N,) int64, ascending: the output cells of a convolution that see one of ``cells`` (K,)."""
    batch, *places = _places(cells, shape)
    out, inside = batch[:, None], torch.ones_like(batch[:, None], dtype=torch.bool)
    for axis, place in enumerate(places):
        k, s = kernel[axis], stride[axis]
        at = (place + padding[axis])[:, None, None]
        # The last output cell that sees a cell, and those before it.
        last = torch.div(at, s, rounding_mode="floor")
        cell = last - torch.arange(-(-k // s), device=cells.device)
        sees = (cell * s + k > at) & (cell >= 0) & (cell < out_shape[axis])
        out = (out[:, :, None] * out_shape[axis] + cell).flatten(1)
        inside = (inside[:, :, None] & sees).flatten(1)
    return torch.unique(out[inside])


def neighbour_rows(
    cells: Tensor,
    shape: Sequence[int],
    out_cells: Tensor,
    out_shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """(N, T) int64: the row of ``cells`` (K,) that each tap of ``out_cells`` (N,) reads; -1: none.

    ``cells`` ascend, and the taps of the convolution are in raster order.
    """
    batch, *places = _places(out_cells, out_shape)
    axes = (torch.arange(size, device=cells.device) for size in kernel)
    taps = [tap.flatten() for tap in torch.meshgrid(*axes, indexing="ij")]
    wanted = batch[:, None].expand(-1, taps[0].shape[0])
    inside = torch.ones_like(wanted, dtype=torch.bool)
    for axis, place in enumerate(places):
        at = place[:, None] * stride[axis] - padding[axis] + taps[axis]
        inside = inside & (at >= 0) & (at < shape[axis])
        wanted = wanted * shape[axis] + at
    ended = torch.cat([cells, cells.new_full((1,), _LAST)])  # so that each search ends at a row
    row = torch.searchsorted(ended, wanted.contiguous())
    return torch.where(inside & (ended[row] == wanted), row, -1)


def _places(cells: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Batch, z, y, x of cells (K,)."""
    depth, height, width = shape
    return (
        cells // (width * height * depth),
        cells // (width * height) % depth,
        cells // width % height,
        cells % width,
    )
