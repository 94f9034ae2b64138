"""Reductions over rows grouped by an index in pure PyTorch, by the rules of ``ops.scatter``."""

from __future__ import annotations

import torch
from torch import Tensor

from voxelpool.ops.reference import pool


def checked_index(index: Tensor, groups: int) -> Tensor:
    """The index, with ``groups`` for what is out of range; on the CPU that raises ValueError."""
    outside = (index < 0) | (index >= groups)
    if index.device.type == "cpu":
        raise_outside(index, outside, groups)
    return index.masked_fill(outside, groups)


def raise_outside(index: Tensor, outside: Tensor, groups: int) -> None:
    """Raises ValueError naming the first entry that is ``outside``."""
    wrong = outside.nonzero()
    if len(wrong):
        at = [int(i) for i in wrong[0]]
        expected = f"0 to {groups - 1}" if groups else "no entries: there are 0 groups"
        raise ValueError(
            f"index[{', '.join(map(str, at))}] is {int(index[tuple(at)])}, expected {expected}"
        )


def scatter_keys(index: Tensor, groups: int) -> Tensor:
    """One group number for each entry of an index (B, R, I), or -1 where it is out of range."""
    outer, rows, inner = index.shape
    named = index.reshape([n for n in (outer, rows, inner) if n != 1] or [1])
    if index.device.type == "cpu":
        raise_outside(named, (named < 0) | (named >= groups), groups)
    base = torch.arange(outer, device=index.device).view(outer, 1, 1) * groups
    column = torch.arange(inner, device=index.device)
    keys = (base + index) * inner + column
    return keys.masked_fill((index < 0) | (index >= groups), -1).flatten()


def sorted_offsets(index: Tensor, groups: int) -> Tensor:
    """(groups + 1,) offsets of the groups of a sorted index (R,)."""
    index = checked_index(index, groups)
    falls = (index[1:] < index[:-1]).nonzero()[:1].tolist() if index.device.type == "cpu" else []
    for (r,) in falls:
        raise ValueError(
            f"index[{r + 1}] is {int(index[r + 1])}, expected at least the entry before it, "
            f"{int(index[r])}"
        )
    return torch.searchsorted(index, torch.arange(groups + 1, device=index.device))


def scatter_max(src: Tensor, index: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Largest value of each group and channel, and its row."""
    return pool.extreme(src, checked_index(index, groups), groups, "amax")


def scatter_min(src: Tensor, index: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Smallest value of each group and channel, and its row."""
    return pool.extreme(src, checked_index(index, groups), groups, "amin")


def scatter_sum(src: Tensor, index: Tensor, groups: int) -> Tensor:
    """Sum of each group and channel."""
    return pool.add(src, checked_index(index, groups), groups).to(src.dtype)


def scatter_mean(src: Tensor, index: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean of each group and channel, and the size of each group."""
    index = checked_index(index, groups)
    counts = pool.add(torch.ones_like(index).unsqueeze(1), index, groups).squeeze(1)
    return pool.divide(pool.add(src, index, groups), counts).to(src.dtype), counts.clone()


def scatter_mul(src: Tensor, index: Tensor, groups: int) -> Tensor:
    """Product of each group and channel."""
    values = pool.widen(src)
    at = checked_index(index, groups).unsqueeze(1).expand(values.shape)
    ones = values.new_ones((groups + 1, values.shape[1]))
    return ones.scatter_reduce(0, at, values, "prod")[:groups].to(src.dtype, copy=True)


def scatter_spread(src: Tensor, index: Tensor) -> Tensor:
    """(R, C): the value of each row's group."""
    return pool.spread(src, checked_index(index, src.shape[0]))


def scatter_place(src: Tensor, arg: Tensor, index: Tensor) -> Tensor:
    """(R, C): ``src[k, c]`` at row ``arg[k, c]`` of channel c, zero elsewhere."""
    return pool.place(src, arg, index.shape[0])
