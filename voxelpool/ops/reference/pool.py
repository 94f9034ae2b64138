"""Reductions over groups of rows in pure PyTorch, by the rules of ``voxelpool.ops.pool``."""

from __future__ import annotations

import torch
from torch import Tensor

_HALF = (torch.float16, torch.bfloat16)


def check_offsets(offsets: Tensor, rows: int, partial: bool = False) -> None:
    """Raises ValueError unless offsets start at 0, never fall and end at ``rows``.

    Where ``partial``, they may start later and end earlier. Looks at values on the CPU alone:
    elsewhere it would wait for the device.
    """
    if offsets.device.type != "cpu":
        return
    first, last = int(offsets[0]), int(offsets[-1])
    if first < 0 if partial else first != 0:
        raise ValueError(f"offsets[0] is {first}, expected {'at least 0' if partial else 0}")
    falls = (offsets[1:] < offsets[:-1]).nonzero()
    if len(falls):
        k = int(falls[0])
        raise ValueError(
            f"offsets[{k + 1}] is {int(offsets[k + 1])}, expected at least the offset before it, "
            f"{int(offsets[k])}"
        )
    if last > rows if partial else last != rows:
        raise ValueError(
            f"offsets[{len(offsets) - 1}] is {last}, expected {'at most ' if partial else ''}"
            f"{rows}, the number of rows"
        )


def group_of_row(offsets: Tensor, rows: int) -> Tensor:
    """(rows,) int64: the group of each row; the number of groups for a row of none."""
    row = torch.arange(rows, device=offsets.device)
    group = torch.searchsorted(offsets, row, right=True) - 1
    return group.masked_fill(group < 0, offsets.shape[0] - 1)


def segment_max(src: Tensor, offsets: Tensor, partial: bool = False) -> tuple[Tensor, Tensor]:
    """Largest value of each group and channel, and its row."""
    check_offsets(offsets, src.shape[0], partial)
    return extreme(src, group_of_row(offsets, src.shape[0]), offsets.shape[0] - 1, "amax")


def segment_min(src: Tensor, offsets: Tensor, partial: bool = False) -> tuple[Tensor, Tensor]:
    """Smallest value of each group and channel, and its row."""
    check_offsets(offsets, src.shape[0], partial)
    return extreme(src, group_of_row(offsets, src.shape[0]), offsets.shape[0] - 1, "amin")


def extreme(src: Tensor, index: Tensor, groups: int, reduce: str) -> tuple[Tensor, Tensor]:
    """Extreme value of each group and its row; rows with index ``groups`` are of no group."""
    rows, channels = src.shape
    at = index.unsqueeze(1).expand(rows, channels)
    values = src.float() if src.dtype in _HALF else src
    best = values.new_zeros((groups + 1, channels))
    best = best.scatter_reduce(0, at, values, reduce, include_self=False)
    # The lowest row that holds the extreme (a NaN, where there is one).
    at_row = best.gather(0, at)
    holds = values == at_row
    if values.is_floating_point():
        holds |= values.isnan() & at_row.isnan()
    row = torch.arange(rows, device=src.device).unsqueeze(1).expand(rows, channels)
    row = row.masked_fill(~holds, rows)
    arg = row.new_full((groups + 1, channels), rows).scatter_reduce(0, at, row, "amin")[:groups]
    return torch.cat([src, src.new_zeros((1, channels))]).gather(0, arg), arg.clone()


def segment_sum(src: Tensor, offsets: Tensor, partial: bool = False) -> Tensor:
    """Sum of each group and channel."""
    return _sum(src, offsets, partial).to(src.dtype)


def segment_mean(src: Tensor, offsets: Tensor, partial: bool = False) -> Tensor:
    """Mean of each group and channel."""
    return divide(_sum(src, offsets, partial), offsets.diff()).to(src.dtype)


def _sum(src: Tensor, offsets: Tensor, partial: bool) -> Tensor:
    check_offsets(offsets, src.shape[0], partial)
    return add(src, group_of_row(offsets, src.shape[0]), offsets.shape[0] - 1)


def add(src: Tensor, index: Tensor, groups: int) -> Tensor:
    """Sum of each group in the wide dtype; rows with index ``groups`` are of no group."""
    values = widen(src)
    return values.new_zeros((groups + 1, src.shape[1])).index_add(0, index, values)[:groups]


def widen(values: Tensor) -> Tensor:
    """The dtype that sums are taken in."""
    if not values.is_floating_point():
        return values.long()
    return values.float() if values.dtype in _HALF else values


def divide(values: Tensor, counts: Tensor) -> Tensor:
    """(K, C) values by (K,) counts; integers round down, empty groups stay."""
    counts = counts.clamp(min=1).unsqueeze(1)
    if values.is_floating_point():
        return values / counts.to(values.dtype)
    return torch.div(values, counts, rounding_mode="floor")


def segment_spread(src: Tensor, offsets: Tensor, rows: int, mean: bool) -> Tensor:
    """(rows, C): each row gets its group's value, divided by the group's size where ``mean``."""
    check_offsets(offsets, rows, partial=True)
    if mean:
        src = divide(widen(src), offsets.diff()).to(src.dtype)
    return spread(src, group_of_row(offsets, rows))


def spread(src: Tensor, index: Tensor) -> Tensor:
    """(R, C): ``src[index]``, and 0 where the index is the number of groups."""
    return torch.cat([src, src.new_zeros((1, src.shape[1]))]).index_select(0, index)


def segment_place(src: Tensor, arg: Tensor, offsets: Tensor, rows: int) -> Tensor:
    """(rows, C): ``src[k, c]`` at row ``arg[k, c]`` of channel c, zero elsewhere."""
    check_offsets(offsets, rows, partial=True)
    return place(src, arg, rows)


def place(src: Tensor, arg: Tensor, rows: int) -> Tensor:
    """(rows, C): ``src[k, c]`` at row ``arg[k, c]`` of channel c, zero elsewhere."""
    return src.new_zeros((rows + 1, src.shape[1])).scatter(0, arg, src)[:rows].clone()
