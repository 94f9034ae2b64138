"""Lists of cells and their convolutions in pure PyTorch, by the rules of ``voxelpool.ops.sparse``.

Cells are numbered in raster order, in 64 bits; a list that is sorted is searched by halving.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def out_shape(
    shape: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> tuple[int, int, int]:
    """(D', H', W') of a convolution."""
    d, h, w = (
        (n + 2 * p - k) // s + 1 for n, k, s, p in zip(shape, kernel, stride, padding, strict=True)
    )
    return d, h, w


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
    keys = _keys("coords", coords, batch_size, shape)
    _keys("out_coords", out_coords, batch_size, out_shape)
    device, taps = coords.device, kernel[0] * kernel[1] * kernel[2]
    places = out_coords.long()
    wanted = places[:, :1].expand(-1, taps)
    inside = torch.ones((), dtype=torch.bool, device=device)
    for axis, tap in enumerate(
        torch.meshgrid(*(torch.arange(k, device=device) for k in kernel), indexing="ij")
    ):
        at = places[:, axis + 1, None] * stride[axis] - padding[axis] + tap.flatten()
        inside = inside & (at >= 0) & (at < shape[axis])
        wanted = wanted * shape[axis] + at
    if len(keys) == 0:
        return coords.new_full((len(out_coords), taps), -1)
    row = torch.searchsorted(keys, wanted.contiguous()).clamp_(max=len(keys) - 1)
    found = inside & (keys[row] == wanted)
    return torch.where(found, row, -1).int()


def sparse_reach(
    coords: Tensor,
    batch_size: int,
    shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """As the op ``voxelpool::sparse_reach``."""
    _keys("coords", coords, batch_size, shape)
    device, after = coords.device, out_shape(shape, kernel, stride, padding)
    key, inside = coords[:, 0].long(), torch.ones(len(coords), dtype=torch.bool, device=device)
    for axis in range(3):
        k, s, p = kernel[axis], stride[axis], padding[axis]
        at = coords[:, axis + 1].long().view(-1, *[1] * axis) + p
        # The last output cell that sees a voxel, and those before it.
        last = torch.div(at, s, rounding_mode="floor")
        cell = last[..., None] - torch.arange(-(-k // s), device=device)
        sees = (cell * s + k > at[..., None]) & (cell >= 0) & (cell < after[axis])
        inside = inside[..., None] & sees
        key = key[..., None] * after[axis] + cell
    rest = torch.unique(key[inside])
    columns = []
    for size in reversed(after):
        columns.append(rest % size)
        rest = torch.div(rest, size, rounding_mode="floor")
    return torch.stack([rest, *reversed(columns)], dim=1).int()


def _keys(name: str, coords: Tensor, batch_size: int, shape: Sequence[int]) -> Tensor:
    """(K,) int64, the number of each cell; the list is checked on the CPU."""
    batch, z, y, x = coords.long().unbind(1)
    keys = ((batch * shape[0] + z) * shape[1] + y) * shape[2] + x
    if coords.device.type != "cpu":
        return keys
    outside = (coords < 0) | (coords >= torch.tensor([batch_size, *shape]))
    disorder = torch.zeros(len(keys), dtype=torch.bool)
    disorder[1:] = keys[1:] <= keys[:-1]
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
    return keys
