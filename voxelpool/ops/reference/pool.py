"""Reductions over sorted groups of rows in pure PyTorch, by the rules of ``voxelpool.ops.pool``."""

from __future__ import annotations

import torch
from torch import Tensor

_HALF = (torch.float16, torch.bfloat16)


def check_offsets(offsets: Tensor, rows: int) -> None:
    """Raises ValueError unless offsets start at 0, never fall and end at ``rows``.

    Looks at values on the CPU alone: elsewhere it would wait for the device.
    """
    if offsets.device.type != "cpu":
        return
    if int(offsets[0]) != 0:
        raise ValueError(f"offsets[0] is {int(offsets[0])}, expected 0")
    falls = (offsets[1:] < offsets[:-1]).nonzero()
    if len(falls):
        k = int(falls[0])
        raise ValueError(
            f"offsets[{k + 1}] is {int(offsets[k + 1])}, expected at least the offset before it, "
            f"{int(offsets[k])}"
        )
    if int(offsets[-1]) != rows:
        raise ValueError(
            f"offsets[{len(offsets) - 1}] is {int(offsets[-1])}, expected {rows}, "
            "the number of rows"
        )


def group_of_row(offsets: Tensor, rows: int) -> Tensor:
    """(rows,) int64: the group of each row."""
    row = torch.arange(rows, device=offsets.device)
    return torch.searchsorted(offsets, row, right=True) - 1


def segment_max(src: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Largest value of each group and channel, and its row."""
    return _segment_extreme(src, offsets, "amax")


def segment_min(src: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest value of each group and channel, and its row."""
    return _segment_extreme(src, offsets, "amin")


def _segment_extreme(src: Tensor, offsets: Tensor, reduce: str) -> tuple[Tensor, Tensor]:
    check_offsets(offsets, src.shape[0])
    rows, channels = src.shape
    groups = offsets.shape[0] - 1
    index = group_of_row(offsets, rows).unsqueeze(1).expand(rows, channels)
    values = src.float() if src.dtype in _HALF else src
    best = values.new_zeros((groups, channels))
    best = best.scatter_reduce(0, index, values, reduce, include_self=False)
    # The lowest row that holds the extreme (a NaN, where there is one).
    at_row = best.gather(0, index)
    holds = values == at_row
    if values.is_floating_point():
        holds |= values.isnan() & at_row.isnan()
    row = torch.arange(rows, device=src.device).unsqueeze(1).expand(rows, channels)
    row = row.masked_fill(~holds, rows)
    arg = row.new_full((groups, channels), rows).scatter_reduce(0, index, row, "amin")
    return torch.cat([src, src.new_zeros((1, channels))]).gather(0, arg), arg


def segment_sum(src: Tensor, offsets: Tensor) -> Tensor:
    """Sum of each group and channel."""
    return _sum(src, offsets).to(src.dtype)


def segment_mean(src: Tensor, offsets: Tensor) -> Tensor:
    """Mean of each group and channel."""
    return _divide(_sum(src, offsets), offsets).to(src.dtype)


def _sum(src: Tensor, offsets: Tensor) -> Tensor:
    check_offsets(offsets, src.shape[0])
    index = group_of_row(offsets, src.shape[0])
    values = _widen(src)
    return values.new_zeros((offsets.shape[0] - 1, src.shape[1])).index_add(0, index, values)


def _widen(values: Tensor) -> Tensor:
    if not values.is_floating_point():
        return values.long()
    return values.float() if values.dtype in _HALF else values


def _divide(values: Tensor, offsets: Tensor) -> Tensor:
    counts = offsets.diff().clamp(min=1).unsqueeze(1)
    if values.is_floating_point():
        return values / counts.to(values.dtype)
    return torch.div(values, counts, rounding_mode="floor")


def segment_spread(src: Tensor, offsets: Tensor, rows: int, mean: bool) -> Tensor:
    """(rows, C): each row gets its group's value, divided by the group's size where ``mean``."""
    check_offsets(offsets, rows)
    if mean:
        src = _divide(_widen(src), offsets).to(src.dtype)
    return src.index_select(0, group_of_row(offsets, rows))


def segment_place(src: Tensor, arg: Tensor, offsets: Tensor, rows: int) -> Tensor:
    """(rows, C): ``src[k, c]`` at row ``arg[k, c]`` of channel c, zero elsewhere."""
    check_offsets(offsets, rows)
    return src.new_zeros((rows + 1, src.shape[1])).scatter(0, arg, src)[:rows].clone()
