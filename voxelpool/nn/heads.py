"""From a map to the scores of classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

from torch import Tensor, nn

from voxelpool.nn.pooling import GlobalPool, check_dim, check_kind
from voxelpool.nn.pyramid import SpatialPyramidPool

HeadPool: TypeAlias = Literal["average", "max", "both", "spp", "flatten"]

_GLOBAL = ("average", "max", "both")


class ClassifierHead(nn.Module):
    """A pooling that makes a map a vector, then fully connected layers.

    All poolings but "flatten" take maps of any size.

    Args:
        channels: of the map.
        classes: K.
        pool: average, max or both: `GlobalPool`; spp: `SpatialPyramidPool` of maxima; flatten: none
            at all, so that the first layer has weights for every cell.
        dim: of the map. 1, as for sets of points, is for the global poolings alone.
        map_size: flatten: the only size that is taken, ``dim`` numbers.
        hidden: widths of the layers before the last one, each with a ReLU.
        dropout: share of values that are zeroed after each hidden layer, or before the only one.
        norm: whether hidden layers have BatchNorm.
        levels: spp: bins along each side of the map, level by level.
        class_maps: one map for each class by a 1x1 convolution, pooled to its score by average or
            max: no fully connected layer is left (Lin et al. 2013).

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        pool: HeadPool = "average",
        dim: int = 2,
        *,
        map_size: Sequence[int] | None = None,
        hidden: Sequence[int] = (),
        dropout: float = 0.0,
        norm: bool = False,
        levels: Sequence[int] = (3, 2, 1),
        class_maps: bool = False,
    ) -> None:
        super().__init__()
        check_kind(pool, (*_GLOBAL, "spp", "flatten"))
        if dim != 1:
            check_dim(dim)
        elif pool not in _GLOBAL:
            raise ValueError(f"a set of points has no {pool} pooling: average, max or both")
        if min(channels, classes, *hidden) < 1:
            raise ValueError(
                f"channels, classes and hidden must be at least 1, got {channels}, {classes} and "
                f"{list(hidden)}"
            )
        self.kind = pool
        self.dim = dim
        self.map_size = None
        if pool in _GLOBAL:
            self.pool: nn.Module = GlobalPool(pool)
            length = self.pool.out_channels(channels)
        elif pool == "spp":
            self.pool = SpatialPyramidPool(levels, "max", dim)
            length = self.pool.out_channels(channels)
        else:
            if map_size is None or len(map_size) != dim:
                raise ValueError(f"flatten needs map_size, {dim} numbers, got {map_size}")
            self.map_size = tuple(map_size)
            self.pool = nn.Flatten()
            length = channels * math.prod(map_size)
        self.class_maps: nn.Module | None = None
        if class_maps:
            if pool not in ("average", "max") or hidden:
                raise ValueError("class_maps are pooled by average or max, without hidden layers")
            conv = nn.Conv2d if dim == 2 else nn.Conv3d
            self.class_maps = nn.Sequential(nn.Dropout(dropout), conv(channels, classes, 1))
            self.layers: nn.Module = nn.Identity()
            return
        layers: list[nn.Module] = []
        for width in hidden:
            layers.append(nn.Linear(length, width, bias=not norm))
            if norm:
                layers.append(nn.BatchNorm1d(width))
            layers += [nn.ReLU(), nn.Dropout(dropout)]
            length = width
        if not hidden:
            layers.append(nn.Dropout(dropout))
        self.layers = nn.Sequential(*layers, nn.Linear(length, classes))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Score maps.

        Args:
            x: (B, channels, ...) with ``dim`` dimensions after the channels.
            mask: (B, ...) bool, the cells to pool; None: all. For the global poolings alone.

        Returns:
            (B, K) logits.

        Raises:
            ValueError: another number of dimensions, another size than ``map_size``, or a mask
                where it has no use.
        """
        if x.dim() != self.dim + 2:
            raise ValueError(
                f"x must be (B, C, ...) with {self.dim} more dimensions, got {tuple(x.shape)}"
            )
        if self.map_size is not None and tuple(x.shape[2:]) != self.map_size:
            raise ValueError(
                f"the flatten head was built for maps of {self.map_size}, got "
                f"{tuple(x.shape[2:])}: pool by average, max, both or spp to take other sizes"
            )
        if self.class_maps is not None:
            x = self.class_maps(x)
        if mask is None:
            return self.layers(self.pool(x))
        if self.kind not in _GLOBAL:
            raise ValueError(f"{self.kind} takes no mask")
        return self.layers(self.pool(x, mask))
