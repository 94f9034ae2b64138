"""Pyramids: one map pooled at several scales.

`SpatialPyramidPool` and `WindowPyramidPool` make a vector of fixed length from a map of any size;
`ParallelSPP` and `SPPF` keep the map's size and widen what each cell sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from voxelpool.nn.pooling import WindowKind, WindowPool, check_dim, check_kind, check_map

BinKind: TypeAlias = Literal["max", "average", "min"]

_ADAPTIVE_MAX = {2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}
_ADAPTIVE_AVERAGE = {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


class SpatialPyramidPool(nn.Module):
    """A vector of fixed length: the map pooled into n**dim bins for each level n (He et al. 2014).

    Bin i of n along a side of a cells goes from floor(i * a / n) up to ceil((i + 1) * a / n). Every
    level so has its n bins at every size, also below n cells, where bins repeat cells. The paper's
    windows of ceil(a / n) at steps of floor(a / n) fail in that (6 cells make 3 bins at n = 4).

    Args:
        levels: n of each level.
        kind: how a bin is pooled: max, average or min; see `voxelpool.nn.pooling` for the rules.
        dim: 2 or 3.
        average_levels: reduce each level to the mean over its bins, so that the vector holds
            C * len(levels). Of averages that is the mean of the map, over and over, wherever the
            levels divide its sides; of maxima it is not.

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(
        self,
        levels: Sequence[int] = (4, 2, 1),
        kind: BinKind = "max",
        dim: int = 2,
        *,
        average_levels: bool = False,
    ) -> None:
        super().__init__()
        check_dim(dim)
        check_kind(kind, ("max", "average", "min"))
        self.levels = tuple(int(level) for level in levels)
        if not self.levels or min(self.levels) < 1:
            raise ValueError(f"levels must be numbers from 1 up, got {list(levels)}")
        self.kind = kind
        self.dim = dim
        self.average_levels = average_levels
        #: Bins of all levels together.
        self.num_bins = sum(level**dim for level in self.levels)

    def out_channels(self, channels: int) -> int:
        """Length of the vector for a map of ``channels``."""
        return channels * (len(self.levels) if self.average_levels else self.num_bins)

    def forward(self, x: Tensor) -> Tensor:
        """Pool a map.

        Args:
            x: (B, C, ...) with ``dim`` dimensions after the channels, each of any size above 0.

        Returns:
            (B, `out_channels`): level after level, in each channel after channel, in each the bins
            in raster order.

        Raises:
            ValueError: another number of dimensions.
        """
        check_map(x, self.dim)
        parts = []
        for level in self.levels:
            bins = self._bins(x, (level,) * self.dim).flatten(2)
            parts.append(bins.mean(2) if self.average_levels else bins.flatten(1))
        return torch.cat(parts, dim=1)

    def _bins(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        if self.kind == "average":
            return _ADAPTIVE_AVERAGE[self.dim](x, size)
        if self.kind == "max":
            return _ADAPTIVE_MAX[self.dim](x, size)
        return -_ADAPTIVE_MAX[self.dim](-x, size)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.levels}, {self.kind}, {self.dim}, average_levels={self.average_levels}"


class WindowPyramidPool(nn.Module):
    """A vector of C for each window size: the map pooled by it at stride 1, then averaged over all.

    A window that is larger than the map is cut to it.

    Args:
        windows: sizes of the windows; 1 is the mean of the map itself.
        kind: how a window is pooled: max, average, min or median.
        dim: 2 or 3.

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(
        self, windows: Sequence[int] = (1, 2, 3), kind: WindowKind = "average", dim: int = 2
    ) -> None:
        super().__init__()
        self.windows = tuple(int(window) for window in windows)
        if not self.windows:
            raise ValueError("windows must name at least one size")
        for window in self.windows:
            WindowPool(dim, kind, window)  # checks them
        self.kind = kind
        self.dim = dim

    def out_channels(self, channels: int) -> int:
        """Length of the vector for a map of ``channels``."""
        return channels * len(self.windows)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C * number of windows), window after window.

        Raises:
            ValueError: another number of dimensions.
        """
        check_map(x, self.dim)
        parts = []
        for window in self.windows:
            kernel = [min(window, n) for n in x.shape[2:]]
            pooled = WindowPool(self.dim, self.kind, kernel, 1)(x)
            parts.append(pooled.flatten(2).mean(2))
        return torch.cat(parts, dim=1)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.windows}, {self.kind}, {self.dim}"


class ParallelSPP(nn.Module):
    """The map beside itself pooled by windows of several sizes, at stride 1 and the same size.

    What lies outside the map does not count, in averages either.

    Args:
        kernels: odd sizes of the windows.
        kind: max, average, min or median.
        dim: 2 or 3.

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(
        self, kernels: Sequence[int] = (5, 9, 13), kind: WindowKind = "max", dim: int = 2
    ) -> None:
        super().__init__()
        if not kernels:
            raise ValueError("kernels must name at least one size")
        self.pools = nn.ModuleList(_same_size(dim, kind, kernel) for kernel in kernels)

    def out_channels(self, channels: int) -> int:
        """Channels of the output for a map of ``channels``."""
        return channels * (len(self.pools) + 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C * (1 + number of kernels), ...), the map itself first."""
        return torch.cat([x, *(pool(x) for pool in self.pools)], dim=1)


class SPPF(nn.Module):
    """`ParallelSPP` by one small window, used again on its own output.

    Max (and min) of windows of 5, 5, 5 in a chain are those of 5, 9, 13 side by side, to the bit,
    for 75 comparisons a cell instead of 275 (in 2D). Only a tie's gradient may go to another of the
    equal cells. An average of averages is none of the larger window: it weighs the middle more.

    Args:
        kernel: the odd size of the window.
        repeats: length of the chain; the last window is as 1 + repeats * (kernel - 1).
        kind: max, average, min or median.
        dim: 2 or 3.

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(
        self, kernel: int = 5, repeats: int = 3, kind: WindowKind = "max", dim: int = 2
    ) -> None:
        super().__init__()
        if repeats < 1:
            raise ValueError(f"repeats must be at least 1, got {repeats}")
        self.repeats = repeats
        self.pool = _same_size(dim, kind, kernel)

    def out_channels(self, channels: int) -> int:
        """Channels of the output for a map of ``channels``."""
        return channels * (self.repeats + 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C * (1 + repeats), ...), the map itself first."""
        scales = [x]
        for _ in range(self.repeats):
            scales.append(self.pool(scales[-1]))
        return torch.cat(scales, dim=1)


def _same_size(dim: int, kind: WindowKind, kernel: int) -> WindowPool:
    if kernel % 2 == 0:
        raise ValueError(f"windows must be odd to keep the map's size, got {kernel}")
    return WindowPool(dim, kind, kernel, 1, kernel // 2, count_include_pad=False)


class PyramidNeck(nn.Module):
    """A pyramid between two 1x1 convolutions, each with BatchNorm and ReLU, as YOLOv5 has it.

    Args:
        channels: of the map, in and out.
        pyramid: "spp": windows of 5, 9 and 13 side by side. "sppf": the same in a chain of 5, the
            same result for less work.
        hidden: channels that are pooled; None: half.
        norm_eps: added to the variance.
        norm_momentum: weight of the newest batch in the running statistics.

    Raises:
        ValueError: an unknown pyramid, or no channels.
    """

    def __init__(
        self,
        channels: int,
        pyramid: Literal["spp", "sppf"] = "sppf",
        *,
        hidden: int | None = None,
        norm_eps: float = 1e-5,
        norm_momentum: float = 0.1,
    ) -> None:
        super().__init__()
        check_kind(pyramid, ("spp", "sppf"))
        hidden = max(channels // 2, 1) if hidden is None else hidden
        if min(channels, hidden) < 1:
            raise ValueError(f"channels must be at least 1, got {channels} and {hidden}")

        def pointwise(before: int, after: int) -> nn.Sequential:
            norm = nn.BatchNorm2d(after, eps=norm_eps, momentum=norm_momentum)
            return nn.Sequential(nn.Conv2d(before, after, 1, bias=False), norm, nn.ReLU())

        self.reduce = pointwise(channels, hidden)
        self.pyramid: ParallelSPP | SPPF = SPPF() if pyramid == "sppf" else ParallelSPP()
        self.join = pointwise(self.pyramid.out_channels(hidden), channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W), the same out."""
        return self.join(self.pyramid(self.reduce(x)))
