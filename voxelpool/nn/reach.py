"""Layers over a map that is mostly empty: only the cells that voxels reach are computed.

Where no voxel reaches, a layer's output depends on nothing but the distance to the map's border
(zero padding is seen there), so one row stands for all cells of a kind. A map is kept as a list of
rows: first the reached cells, then one row for each kind of blank cell. Convolution, BatchNorm
(which counts a row as often as it occurs) and ReLU on the rows are exactly those on the dense map,
and so are the gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from voxelpool.nn import synced
from voxelpool.ops import conv_table, gather_conv, gather_conv_affine
from voxelpool.ops.reference.cells import conv_shape, flat_cells

Triple = tuple[int, int, int]
Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def triple(values: Sequence[int]) -> Triple:
    """Three sizes along z, y, x."""
    z, y, x = (int(value) for value in values)
    return z, y, x


def pays(x: Tensor) -> bool:
    """Whether layers over rows are the better choice for ``x`` (else: dense layers).

    On the CPU always: their kernels are as fast as dense ones where everything is reached. GPUs
    are best at dense work, and the sizes, which depend on the data, do not suit a compiled graph.
    """
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def row_dtype(x: Tensor) -> torch.dtype:
    """The dtype to keep rows in: that of ``x``, or bfloat16 under autocast to it."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16:
        return torch.bfloat16
    return x.dtype


@dataclass(frozen=True)
class Reach:
    """Where in a map voxels reach, and which row holds each of its cells.

    Attributes:
        reached: (B, D, H, W) bool.
        index: (B, D, H, W) int32, the row of each cell; -1: zeros.
        blank: (D, H, W) int32, the same for a frame without voxels.
        rows: number of rows.
        shared: how many of them, the last, stand for blank cells.
        margins: ((top, bottom), (left, right)), the cells from a border that feel it.
    """

    reached: Tensor
    index: Tensor
    blank: Tensor
    rows: int
    shared: int
    margins: tuple[tuple[int, int], tuple[int, int]]

    @classmethod
    def of_voxels(cls, coords: Tensor, batch_size: int, shape: Triple) -> Reach:
        """Voxel k in row k; all other cells are zeros.

        Args:
            coords: (K, 4) integer (batch, z, y, x), each cell at most once.
            batch_size: B.
            shape: (D, H, W).
        """
        cells = flat_cells(coords, shape)
        index = torch.full(
            (batch_size * math.prod(shape),), -1, dtype=torch.int32, device=coords.device
        )
        index[cells] = torch.arange(len(cells), dtype=torch.int32, device=coords.device)
        index = index.view(batch_size, *shape)
        blank = torch.full((1, 1, 1), -1, dtype=torch.int32, device=coords.device)
        margins = ((0, 0), (0, 0))
        return cls(index >= 0, index, blank.expand(shape), len(cells), 0, margins)

    @property
    def shape(self) -> Triple:
        """(D, H, W)."""
        d, h, w = self.index.shape[1:]
        return d, h, w

    def through(self, kernel: Triple, stride: Triple, padding: Triple) -> tuple[Tensor, Reach]:
        """The table of a convolution, as `gather_conv` reads it, and the map that it makes."""
        after = conv_shape(self.shape, kernel, stride, padding)
        batch_size, size = self.reached.shape[0], math.prod(after)
        # Zeros stay zeros up to the border.
        margins = ((0, 0), (0, 0))
        if self.shared:
            top, left = (
                _margin(m, n, o, k, s, p)
                for m, n, o, k, s, p in zip(
                    self.margins,
                    self.shape[1:],
                    after[1:],
                    kernel[1:],
                    stride[1:],
                    padding[1:],
                    strict=True,
                )
            )
            margins = (top, left)
        kinds = [_kinds(n, margin) for n, margin in zip(after[1:], margins, strict=True)]
        shared = after[0] * math.prod(len(samples) for samples, _ in kinds)

        reached = spread(self.reached, kernel, stride, padding)
        cells = reached.flatten().nonzero().squeeze(1)
        if len(cells) + shared >= batch_size * size:  # to compute the blank ones is less work
            reached = torch.ones_like(reached)
            cells = torch.arange(batch_size * size, device=reached.device)
            shared = 0
        table = conv_table(self.index, cells, after, kernel, stride, padding)
        device, count = cells.device, len(cells)
        blank = torch.full((1, 1, 1), -1, dtype=torch.int32, device=device).expand(after)
        if shared:
            rows = torch.arange(count, count + shared, dtype=torch.int32, device=device)
            (ys, y_kind), (xs, x_kind) = (
                (torch.tensor(s, device=device), torch.tensor(k, device=device)) for s, k in kinds
            )
            blank = rows.view(after[0], len(ys), len(xs))[:, y_kind[:, None], x_kind]
            z = torch.arange(after[0], device=device)
            samples = (z[:, None, None] * after[1] + ys[:, None]) * after[2] + xs
            blank_table = conv_table(
                self.blank[None], samples.flatten(), after, kernel, stride, padding
            )
            table = torch.cat([table, blank_table])
        index = blank.repeat(batch_size, 1, 1, 1)
        index.view(-1)[cells] = torch.arange(count, dtype=torch.int32, device=device)
        return table, Reach(reached, index, blank, count + shared, shared, margins)

    def counts(self) -> Tensor:
        """(rows,) float32: how many cells of the map each row stands for."""
        if not self.shared:
            return torch.ones(self.rows, device=self.index.device)
        return torch.bincount(self.index.flatten(), minlength=self.rows).float()

    def expand(self, rows: Tensor) -> Tensor:
        """The dense map (B, D, H, W, C) of rows (rows, C)."""
        return rows.index_select(0, self.index.flatten()).view(*self.index.shape, rows.shape[1])


def spread(reached: Tensor, kernel: Triple, stride: Triple, padding: Triple) -> Tensor:
    """(B, D', H', W') bool: the outputs of a convolution that see a reached cell (B, D, H, W)."""
    reached = reached.view(torch.uint8)  # the C++ that torch 2.13 compiles of padded bools is wrong
    for axis in range(3):
        k, s, p = kernel[axis], stride[axis], padding[axis]
        pad = [0, 0] * (2 - axis) + [p, p]
        padded = F.pad(reached, pad) if p else reached
        count = (padded.shape[axis + 1] - k) // s + 1
        ends = (count - 1) * s + 1
        reached = padded.narrow(axis + 1, 0, ends)[_every(s, axis)]
        for tap in range(1, k):
            reached = reached | padded.narrow(axis + 1, tap, ends)[_every(s, axis)]
    return reached.view(torch.bool)


def _every(step: int, axis: int) -> tuple[slice, ...]:
    return (slice(None),) * (axis + 1) + (slice(None, None, step),)


def _margin(
    margin: tuple[int, int], size: int, out: int, kernel: int, stride: int, padding: int
) -> tuple[int, int]:
    """Output cells along one axis whose window touches the input's margins or leaves the map."""
    low = -(-(margin[0] + padding) // stride)
    first_high = -(-(size - margin[1] + padding - kernel + 1) // stride)
    return min(low, out), min(max(out - first_high, 0), out)


def _kinds(size: int, margin: tuple[int, int]) -> tuple[list[int], list[int]]:
    """One position for each kind of cell along an axis, and the kind of each position."""
    low, high = margin
    if low + high + 1 >= size:
        return list(range(size)), list(range(size))
    samples = [*range(low + 1), *range(size - high, size)]
    kinds = [*range(low), *[low] * (size - low - high), *range(low + 1, low + 1 + high)]
    return samples, kinds


def conv_taps(weight: Tensor) -> Tensor:
    """The weight (O, C, kernel...) of a convolution as `gather_conv` reads it: (T, C, O)."""
    return weight.flatten(2).permute(2, 1, 0)


def conv_norm_relu(
    rows: Tensor,
    reach: Reach,
    weight: Tensor,
    kernel: Triple,
    stride: Triple,
    padding: Triple,
    norm: Norm,
) -> tuple[Tensor, Reach]:
    """A convolution, BatchNorm and ReLU on the rows of a map.

    Args:
        rows: (R, C).
        reach: the map.
        weight: (T, C, O); `conv_taps`.
        kernel: (z, y, x).
        stride: (z, y, x).
        padding: (z, y, x).
        norm: the layer's BatchNorm.

    Returns:
        The rows of the output, in the dtype of ``rows``, and its `Reach`.
    """
    table, after = reach.through(kernel, stride, padding)
    if is_fused(norm):
        return gather_conv_affine(rows, table, weight, *norm_affine(norm), relu=True), after
    out = gather_conv(rows, table, weight, shared=reach.shared)
    return norm_relu(out, after.counts() if norm.training else None, norm), after


def pointwise_norm_relu(rows: Tensor, reach: Reach, weight: Tensor, norm: Norm) -> Tensor:
    """As `conv_norm_relu`, where every cell becomes a group of cells of its own.

    Args:
        rows: (R, C).
        reach: the map.
        weight: (C, G * O) for groups of G.
        norm: over O channels.

    Returns:
        (R * G, O).
    """
    group = weight.shape[1] // norm.num_features
    if is_fused(norm):
        scale, bias = (part.repeat(group) for part in norm_affine(norm))
        table = _every_row(rows)
        out = gather_conv_affine(rows, table, weight[None], scale, bias, relu=True)
        return out.view(-1, norm.num_features)
    out = pointwise(rows, weight).view(-1, norm.num_features)
    counts = reach.counts().repeat_interleave(group) if norm.training else None
    return norm_relu(out, counts, norm)


def pointwise(rows: Tensor, weight: Tensor) -> Tensor:
    """``rows @ weight`` for a weight (C, O)."""
    return gather_conv(rows, _every_row(rows), weight[None])


def _every_row(rows: Tensor) -> Tensor:
    return torch.arange(len(rows), dtype=torch.int32, device=rows.device)[:, None]


def is_fused(norm: Norm) -> bool:
    """Whether BatchNorm goes into the convolution: in evaluation, where no gradient is wanted."""
    return not norm.training and not torch.is_grad_enabled()


def norm_affine(norm: Norm) -> tuple[Tensor, Tensor]:
    """What BatchNorm does in evaluation: the factor and the offset of each channel."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


def norm_relu(rows: Tensor, counts: Tensor | None, norm: Norm) -> Tensor:
    """BatchNorm and ReLU of a map given as rows.

    Args:
        rows: (R, C).
        counts: (R,), how many cells each row stands for; None: evaluation.
        norm: its weights, and its running statistics, which training brings up to date.

    Returns:
        (R, C) in the dtype of ``rows``.
    """
    values = rows if rows.dtype in (torch.float32, torch.float64) else rows.float()
    if counts is None:
        scale, bias = norm_affine(norm)
        return torch.relu(values * scale + bias).to(rows.dtype)
    together = synced.is_shared(norm)
    total = counts.sum(dtype=torch.float64)
    everywhere = synced.total(total) if together else total
    share = counts.to(values.dtype) / everywhere
    out, mean, variance = _NormRelu.apply(values, share, norm.weight, norm.bias, norm.eps, together)
    synced.track(norm, mean, variance, everywhere)
    return out.to(rows.dtype)


class _NormRelu(torch.autograd.Function):
    """BatchNorm by the batch's own statistics, then ReLU, of rows that stand for many cells each.

    ``share`` (R,) is the part of all cells that a row stands for. With ``together``, of the
    cells of all processes, whose statistics are then taken. Returns the
    mean and the (biased) variance as well, which are not differentiable.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        share: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        together: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.together = together
        mean = share @ rows
        if together:
            mean = synced.total(mean)
        centred = rows - mean
        variance = share @ centred.square()
        if together:
            variance = synced.total(variance)
        inverse = torch.rsqrt(variance + eps)
        out = torch.addcmul(bias, centred, inverse * weight).relu_()
        ctx.save_for_backward(centred, share, weight, inverse, out)
        ctx.mark_non_differentiable(mean, variance)
        return out, mean, variance

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad: Tensor, _mean: Tensor, _variance: Tensor
    ) -> tuple[Tensor, None, Tensor, Tensor, None, None]:
        centred, share, weight, inverse, out = ctx.saved_tensors
        grad = torch.ops.aten.threshold_backward(grad, out, 0)
        to_bias = grad.sum(0)
        to_weight = (grad * centred).sum(0) * inverse
        # The statistics move with every row, as much as the row has a share in them.
        sums = torch.stack([to_bias, to_weight])
        if ctx.together:
            sums = synced.total(sums)
        common = torch.addcmul(sums[0], centred, inverse * sums[1])
        to_rows = torch.addcmul(grad, common, share[:, None], value=-1).mul_(weight * inverse)
        return to_rows, None, to_weight, to_bias, None, None
