"""Attention by pooling: gates that weigh the channels and the places of a map."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from voxelpool.nn.pooling import GlobalPool, check_dim

Squeeze: TypeAlias = Literal["average", "max", "masked"]


def _bottleneck(channels: int, reduction: int) -> nn.Sequential:
    if channels < 1 or reduction < 1:
        raise ValueError(
            f"channels and reduction must be at least 1, got {channels} and {reduction}"
        )
    hidden = max(channels // reduction, 1)
    return nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))


def _gated(x: Tensor, gate: Tensor) -> Tensor:
    """(B, C, ...) times sigmoid of (B, C)."""
    return x * gate.sigmoid().view(*gate.shape, *[1] * (x.dim() - 2))


class SqueezeExcite(nn.Module):
    """Channels weighed by a gate in (0, 1) that the whole map decides (SENet, arXiv 1709.01507).

    The squeeze is a global pooling; two linear layers with biases and a sigmoid make the gate. They
    hold 2 * C * h + h + C parameters for h = C // reduction (at least 1).

    Args:
        channels: C.
        reduction: how much narrower the layer between is.
        squeeze: average or max over all cells, or masked: the average over occupied cells, which
            the empty ones of a bird's-eye-view map do not thin out.

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(self, channels: int, reduction: int = 16, squeeze: Squeeze = "average") -> None:
        super().__init__()
        if squeeze not in ("average", "max", "masked"):
            raise ValueError(f"squeeze must be average, max or masked, got {squeeze!r}")
        self.squeeze = squeeze
        self.pool = GlobalPool("max" if squeeze == "max" else "average")
        self.excite = _bottleneck(channels, reduction)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Weigh the channels.

        Args:
            x: (B, C, ...), 2D or 3D or any other map.
            mask: (B, ...) bool, the occupied cells; for the squeeze "masked", and needed there. An
                element without any is squeezed to zeros.

        Returns:
            As ``x``.

        Raises:
            ValueError: no mask where one is needed, or one of another shape.
        """
        if self.squeeze != "masked":
            return _gated(x, self.excite(self.pool(x)))
        if mask is None:
            raise ValueError("the masked squeeze needs a mask of the occupied cells")
        return _gated(x, self.excite(self.pool(x, mask)))


class CBAM(nn.Module):
    """Channels weighed, then places (Woo et al. 2018, arXiv 1807.06521).

    The gate of the channels is sigmoid(MLP(average) + MLP(max)) with one MLP; that of the places
    sigmoid(convolution of [mean over channels, max over channels]), zeros around the map.

    Args:
        channels: C.
        reduction: of the MLP; see `SqueezeExcite`.
        kernel: size of the convolution, odd.
        dim: 2 or 3.

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(
        self, channels: int, reduction: int = 16, kernel: int = 7, *, dim: int = 2
    ) -> None:
        super().__init__()
        check_dim(dim)
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {kernel}")
        self.average, self.maximum = GlobalPool("average"), GlobalPool("max")
        self.excite = _bottleneck(channels, reduction)
        conv = nn.Conv2d if dim == 2 else nn.Conv3d
        self.places = conv(2, 1, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...), the same out."""
        x = _gated(x, self.excite(self.average(x)) + self.excite(self.maximum(x)))
        seen = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True).values], dim=1)
        return x * self.places(seen).sigmoid()
