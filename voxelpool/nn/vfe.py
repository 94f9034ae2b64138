"""Voxel feature encoding (VoxelNet, arXiv 1711.06396, section 2.1.1) on packed points.

The paper pads every voxel to T points. Here the points of all voxels lie in one (M, C) tensor,
grouped by voxel and addressed by CSR offsets, so that no padding exists which a linear layer would
have to work through, or which could enter a batch statistic or a maximum.

At inference the whole stack is one op, see `voxelpool.ops.encode_points`: BatchNorm goes into the
weights, and what a layer makes of a voxel's maximum is computed once a voxel.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from voxelpool.ops import (
    encode_points,
    encode_voxels,
    segment_max,
    segment_mean,
    segment_median,
    segment_min,
    segment_sum,
)
from voxelpool.structures import Voxels

#: How the features of a voxel's points become one: the paper's maximum, or another.
VoxelPooling: TypeAlias = Literal["max", "average", "min", "median", "sum"]

#: Axes along which a point is given its offset to the middle of its voxel.
CenterOffsets: TypeAlias = Literal["", "xy", "xyz"]


def pool_voxels(features: Tensor, offsets: Tensor, pool: VoxelPooling = "max") -> Tensor:
    """One row for each voxel, (K, C), from those of its points; rules as of the segment ops.

    Args:
        features: (M, C), grouped by voxel.
        offsets: (K + 1,) int64, first row of each voxel and M at the end.
        pool: max, average, min, median (of an even number the lower middle) or sum.
    """
    if pool == "average":
        return segment_mean(features, offsets)
    if pool == "sum":
        return segment_sum(features, offsets)
    extreme = {"max": segment_max, "min": segment_min, "median": segment_median}[pool]
    return extreme(features, offsets)[0]


def point_features(points: Tensor, voxels: Voxels, *, center_offsets: CenterOffsets = "") -> Tensor:
    """Code each packed point as the paper does: its own columns, then its offset to the voxel mean.

    Args:
        points: (N, 3 + E) float, x, y, z in metres and E further columns (KITTI: reflectance).
        voxels: voxels made from these points.
        center_offsets: also the offset to the middle of the voxel along these axes; PointPillars
            has it in x and y. Where a point lies in its voxel is hard to tell from coordinates of
            many metres.

    Returns:
        (M, 6 + E) float: the points in the order of ``voxels.point_index``, followed by x, y, z
        minus the mean x, y, z of the points kept in the same voxel. With KITTI's four columns
        these are the paper's seven inputs. Up to three more with center offsets.

    Raises:
        ValueError: if ``points`` is not (N, >=3).
    """
    if points.ndim != 2 or points.shape[1] < 3:
        raise ValueError(f"points must be (N, >=3), got {tuple(points.shape)}")
    packed = points.index_select(0, voxels.point_index)
    mean = segment_mean(packed[:, :3], voxels.offsets)
    offset = packed[:, :3] - mean.index_select(0, voxels.voxel_of_point())
    columns = [packed, offset]
    if center_offsets:
        centers = _voxel_centers(packed, voxels)
        from_centers = packed[:, :3] - centers.index_select(0, voxels.voxel_of_point())
        columns.append(from_centers[:, : len(center_offsets)])
    return torch.cat(columns, dim=1)


def _checked_pool(pool: VoxelPooling) -> VoxelPooling:
    if pool not in get_args(VoxelPooling):
        raise ValueError(f"pool must be one of {', '.join(get_args(VoxelPooling))}, got {pool!r}")
    return pool


def _voxel_centers(points: Tensor, voxels: Voxels) -> Tensor:
    """(K, 3): x, y, z of the middle of each voxel, in the dtype of the points."""
    size = points.new_tensor(voxels.grid.voxel_size)
    half = [
        low + edge / 2 for low, edge in zip(voxels.grid.range, voxels.grid.voxel_size, strict=False)
    ]
    return voxels.coords[:, [3, 2, 1]].to(points) * size + points.new_tensor(half)


class PackedBatchNorm(nn.BatchNorm1d):
    """BatchNorm over the rows of a packed (M, C) tensor that may have no row, or one.

    A variance needs two rows. In training with fewer, the running statistics normalise (as in
    evaluation) and are left unchanged, so that an empty sweep neither raises nor spreads NaN.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (M, C) over its rows; same shape and dtype as the input."""
        if self.training and input.shape[0] < 2:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0,
                self.eps,
            )  # fmt: skip
        return super().forward(input)


class PointLayer(nn.Module):
    """The paper's fully connected network: linear, BatchNorm over the real points, ReLU.

    Args:
        in_channels: columns of the input.
        out_channels: columns of the output.
        norm_eps: added to the variance.
        norm_momentum: weight of the newest batch in the running statistics.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        norm_eps: float = 1e-5,
        norm_momentum: float = 0.1,
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels, bias=False)
        self.norm = PackedBatchNorm(out_channels, eps=norm_eps, momentum=norm_momentum)

    def forward(self, features: Tensor) -> Tensor:
        """(M, in_channels) -> (M, out_channels)."""
        return F.relu(self.norm(self.linear(features)))

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight (out, in) and bias (out,), float32, of what the layer is in evaluation.

        relu(linear(x, weight, bias)) is the layer's output, up to rounding, where BatchNorm takes
        its running statistics.
        """
        norm = self.norm
        scale = norm.weight.float() * torch.rsqrt(norm.running_var.float() + norm.eps)
        bias = torch.addcmul(norm.bias.float(), norm.running_mean.float(), scale, value=-1)
        return self.linear.weight.float() * scale.unsqueeze(1), bias


class VFELayer(nn.Module):
    """One VFE layer: a point layer, and beside each point the maximum (or so) over its voxel.

    Args:
        in_channels: columns of the input.
        out_channels: columns of the output, even: half for the point, half for its voxel.
        pool: see `pool_voxels`.
        norm_eps: see `PointLayer`.
        norm_momentum: see `PointLayer`.

    Raises:
        ValueError: if ``out_channels`` is odd or not positive, or ``pool`` is unknown.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        pool: VoxelPooling = "max",
        norm_eps: float = 1e-5,
        norm_momentum: float = 0.1,
    ) -> None:
        super().__init__()
        self.pool: VoxelPooling = _checked_pool(pool)
        if out_channels < 2 or out_channels % 2:
            raise ValueError(f"out_channels of a VFE layer must be even, got {out_channels}")
        self.points = PointLayer(
            in_channels, out_channels // 2, norm_eps=norm_eps, norm_momentum=norm_momentum
        )

    def forward(self, features: Tensor, offsets: Tensor, voxel_of_point: Tensor) -> Tensor:
        """Encode packed points.

        Args:
            features: (M, in_channels), grouped by voxel.
            offsets: (K + 1,) int64, first row of each voxel and M at the end.
            voxel_of_point: (M,) int64, the voxel of each row.

        Returns:
            (M, out_channels).
        """
        own = self.points(features)
        pooled = pool_voxels(own, offsets, self.pool)
        return torch.cat([own, pooled.index_select(0, voxel_of_point)], dim=1)


class MeanVFE(nn.Module):
    """The mean of each voxel's points (SECOND with voxels of a few centimetres); no parameters.

    Args:
        out_channels: columns of the points, and so of a voxel's feature.
    """

    def __init__(self, out_channels: int = 4) -> None:
        super().__init__()
        self.out_channels = out_channels

    def encode(self, points: Tensor, voxels: Voxels) -> Tensor:
        """Encode the voxels from points.

        Args:
            points: (N, out_channels) float, x, y, z in metres and further columns.
            voxels: voxels made from these points.

        Returns:
            (K, out_channels), one row per row of ``voxels.coords``.
        """
        return segment_mean(points.index_select(0, voxels.point_index), voxels.offsets)


class VFE(nn.Module):
    """Stack of VFE layers, a last point layer, and the maximum (or so) over each voxel.

    The paper's network is the default: VFE-1(7, 32), VFE-2(32, 128), FCN(128, 128), maximum.

    In evaluation, where no gradient is asked for (under ``torch.no_grad()``, say), the stack runs
    as one op, in float32 and with BatchNorm folded into the weights anew at each call; `encode`
    makes the points' code in it too. The result is that of the layers one by one up to rounding,
    in the dtype of the weights. Half types and autocast change nothing but that dtype: the op is
    faster than the layers in bfloat16, and more precise. In float64 the layers run one by one; so
    they do where ``fused`` is False, which hooks on them need, and with another pooling than max.

    PointPillars' encoder is the one without a stack: ``VFE(9, (), 64, center_offsets="xy")``.

    Attributes:
        fused: whether that op may be used; True at first.

    Args:
        in_channels: columns of the point code; see `point_features`.
        channels: output columns of each VFE layer, all even; may be empty.
        out_channels: columns of a voxel's feature.
        pool: how points are pooled, in every layer and at the end; see `pool_voxels`.
        center_offsets: of the code that `encode` makes; see `point_features`.
        padded_to: what the last layer makes of a row of zeros takes part in the maximum of voxels
            that hold fewer points than this, as in networks that pad voxels to so many rows. Only
            without a stack and with pool max. None: points alone decide.
        norm_eps: see `PointLayer`.
        norm_momentum: see `PointLayer`.

    Raises:
        ValueError: a value out of its range, or ``padded_to`` where it has no place.
    """

    def __init__(
        self,
        in_channels: int = 7,
        channels: Sequence[int] = (32, 128),
        out_channels: int = 128,
        *,
        pool: VoxelPooling = "max",
        center_offsets: CenterOffsets = "",
        padded_to: int | None = None,
        norm_eps: float = 1e-5,
        norm_momentum: float = 0.1,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.fused = True
        self.pool: VoxelPooling = _checked_pool(pool)
        if center_offsets not in get_args(CenterOffsets):
            raise ValueError(f"center_offsets must be '', 'xy' or 'xyz', got {center_offsets!r}")
        if padded_to is not None and (channels or pool != "max"):
            raise ValueError("padded_to is for one point layer and pool max")
        self.center_offsets: CenterOffsets = center_offsets
        self.padded_to = padded_to
        widths = [in_channels, *channels]
        self.layers = nn.ModuleList(
            VFELayer(a, b, pool=pool, norm_eps=norm_eps, norm_momentum=norm_momentum)
            for a, b in pairwise(widths)
        )
        self.points = PointLayer(
            widths[-1], out_channels, norm_eps=norm_eps, norm_momentum=norm_momentum
        )

    @torch.no_grad()
    def scale_inputs(self, scales: Sequence[float]) -> None:
        """Divide the first layer's initial weights by the spread of each input column.

        Coordinates span tens of metres, offsets in a voxel a few centimetres; with equal weights
        the BatchNorm that follows would drown the latter in the former. The function that the
        network can learn stays the same.

        Args:
            scales: typical size of each of the in_channels inputs.

        Raises:
            ValueError: another number of scales, or one that is not positive.
        """
        if len(scales) != self.in_channels or not all(scale > 0 for scale in scales):
            raise ValueError(f"scales must be {self.in_channels} positive numbers, got {scales}")
        first = next(module for module in self.modules() if isinstance(module, nn.Linear))
        first.weight /= first.weight.new_tensor(scales)

    def forward(self, features: Tensor, voxels: Voxels) -> Tensor:
        """Encode the voxels.

        Args:
            features: (M, in_channels), the code of each packed point in the voxels' order.
            voxels: the voxels, K of them; K = 0 is ordinary.

        Returns:
            (K, out_channels), one row per row of ``voxels.coords``.

        Raises:
            ValueError: if ``features`` has another number of rows or columns than expected.
        """
        expected = (voxels.point_index.shape[0], self.in_channels)
        if tuple(features.shape) != expected:
            raise ValueError(f"features must be {expected}, got {tuple(features.shape)}")
        if self._fuses(features):
            weights, biases = self._folded()
            out = encode_voxels(features.float(), voxels.offsets, weights, biases)
            return self._finished(out, biases[-1], voxels)
        voxel_of_point = voxels.voxel_of_point()
        for layer in self.layers:
            features = layer(features, voxels.offsets, voxel_of_point)
        if self.padded_to is None:
            return pool_voxels(self.points(features), voxels.offsets, self.pool)
        rows = self.points(torch.cat([features, features.new_zeros(1, self.in_channels)]))
        pooled = pool_voxels(rows[:-1], voxels.offsets, self.pool)
        return self._padded(pooled, rows[-1], voxels)

    def encode(self, points: Tensor, voxels: Voxels) -> Tensor:
        """Encode the voxels from points: ``self(point_features(points, voxels, …), voxels)``.

        Args:
            points: (N, 3 + E) float, x, y, z in metres and E further columns.
            voxels: voxels made from these points.

        Returns:
            (K, out_channels), one row per row of ``voxels.coords``.

        Raises:
            ValueError: if ``points`` has too few columns, or other than ``in_channels`` expects.
        """
        axes = len(self.center_offsets)
        code_columns = (points.shape[1] if points.ndim == 2 else 0) + 3 + axes
        fits = code_columns == self.in_channels and points.dtype == torch.float32
        if not (fits and self._fuses(points)):
            features = point_features(points, voxels, center_offsets=self.center_offsets)
            return self(features, voxels)
        weights, biases = self._folded()
        centers = None
        if axes:  # the op takes all three
            centers = _voxel_centers(points, voxels)
            weights[0] = F.pad(weights[0], (0, 3 - axes))
        out = encode_points(
            points, voxels.point_index, voxels.offsets, weights, biases, centers=centers
        )
        return self._finished(out, biases[-1], voxels)

    def _finished(self, pooled: Tensor, bias: Tensor, voxels: Voxels) -> Tensor:
        """What `forward` gives, of what an op has pooled with the last layer's ``bias``."""
        if self.padded_to is not None:
            pooled = self._padded(pooled, bias.relu(), voxels)
        return pooled.to(self.points.linear.weight.dtype)

    def _padded(self, pooled: Tensor, pad: Tensor, voxels: Voxels) -> Tensor:
        """The maximum with the row ``pad`` where voxels are not full."""
        assert self.padded_to is not None
        full = voxels.counts() >= self.padded_to
        return torch.where(full[:, None], pooled, torch.maximum(pooled, pad))

    def _point_layers(self) -> list[PointLayer]:
        return [*(layer.points for layer in self.layers), self.points]

    def _folded(self) -> tuple[list[Tensor], list[Tensor]]:
        weights, biases = zip(*(layer.folded() for layer in self._point_layers()), strict=True)
        return list(weights), list(biases)

    def _fuses(self, first: Tensor) -> bool:
        """Whether the stack runs as one op on ``first``, the features or points."""
        if not self.fused or self.pool != "max" or first.dtype == torch.float64:
            return False
        if torch.is_grad_enabled() and any(
            tensor.requires_grad for tensor in (first, *self.parameters())
        ):
            return False
        return all(
            not layer.norm.training
            and layer.norm.running_mean is not None
            and layer.linear.weight.dtype != torch.float64
            for layer in self._point_layers()
        )
