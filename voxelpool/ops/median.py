"""The median of sorted groups of rows, made of sorting and of the pooling ops."""

from __future__ import annotations

import torch
from torch import Tensor

from voxelpool.ops.pool import checked, segment_max


def segment_median(src: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Median of each group; of an even number of values the lower one of the middle two.

    A group with a NaN gives NaN; an empty group gives 0, and ``arg`` = the number of rows. It sorts
    all rows twice, for each channel: many times the cost of :func:`segment_max`.

    Args:
        src: (M, C); as of :func:`segment_max`.
        offsets: (K + 1,); as of :func:`segment_max`.

    Returns:
        ``out`` (K, C) in the dtype of ``src``, and ``arg`` (K, C) int64, the lowest row in ``src``
        that holds the value. The gradient goes to that row alone.

    Raises:
        TypeError: as :func:`segment_max`.
        ValueError: as :func:`segment_max`.
    """
    src, offsets = checked(src, offsets)
    rows, channels = src.shape
    if offsets.shape[0] == 1:
        return segment_max(src, offsets)
    group = torch.searchsorted(
        offsets[1:].contiguous(), torch.arange(rows, device=src.device), right=True
    ).clamp(max=offsets.shape[0] - 2)
    values = src.detach()
    by_value, order = values.sort(dim=0, stable=True)
    by_group = by_value.gather(0, group[order].argsort(dim=0, stable=True))
    by_group = torch.cat([by_group, by_group.new_zeros((1, channels))])
    # Row `rows` serves empty groups; offsets out of range are the last op's to report.
    counts, ends = offsets.diff(), offsets.clamp(0, rows)
    middle = torch.where(counts > 0, ends[:-1] + (ends.diff() - 1).clamp(min=0) // 2, rows)
    last = torch.where(counts > 0, (ends[1:] - 1).clamp(min=0), rows)  # NaN is sorted there
    largest = by_group.index_select(0, last)
    median = torch.where(largest.isnan(), largest, by_group.index_select(0, middle))
    median = median.index_select(0, group)
    chosen = (values == median) | (values.isnan() & median.isnan())
    _, arg = segment_max(chosen.to(torch.uint8), offsets)
    out = torch.cat([src, src.new_zeros((1, channels))]).gather(0, arg)
    return out, arg
