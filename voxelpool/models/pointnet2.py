"""PointNet++ (Qi et al. 2017): classification of points as they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from voxelpool.nn.heads import ClassifierHead, HeadPool
from voxelpool.nn.set_abstraction import PointMLP, SetAbstraction


class PointNet2(nn.Module):
    """Single-scale PointNet++ for classification.

    Two stages of set abstraction, shared layers over all that is left, a global pooling and fully
    connected layers. Unlike the original, balls take their nearest points and sampling starts at
    the point farthest from the mean: the order of the points does not matter.

    Args:
        classes: K.
        head: the global pooling: max as in the paper, average or both.
        width: channels of the first layers, 64 in the paper; the others follow.
        dropout: share of values that are zeroed after each of the two hidden layers.
        points: points of an object, N: a half and an eighth of them stay from stage to stage (512
            and 128 of the paper's 1024). Objects of other sizes are taken too.
        radii: of the balls of both stages.
        neighbours: the most points in them.
        normalise: move the mean of each object to 0 and scale it into the unit sphere, which
            ``radii`` then refer to; otherwise they are metres, and what size an object is can be
            told.

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(
        self,
        classes: int,
        *,
        head: HeadPool = "max",
        width: int = 64,
        dropout: float = 0.5,
        points: int = 1024,
        radii: Sequence[float] = (0.2, 0.4),
        neighbours: Sequence[int] = (32, 64),
        normalise: bool = True,
    ) -> None:
        super().__init__()
        if len(radii) != 2 or len(neighbours) != 2:
            raise ValueError(f"radii and neighbours must be two, got {radii} and {neighbours}")
        if points < 8 or width < 1:
            raise ValueError(f"points must be at least 8 and width 1, got {points} and {width}")
        self.normalise = normalise
        self.first = SetAbstraction(
            0,
            (width, width, 2 * width),
            centres=points // 2,
            radius=radii[0],
            neighbours=neighbours[0],
        )
        self.second = SetAbstraction(
            2 * width,
            (2 * width, 2 * width, 4 * width),
            centres=points // 8,
            radius=radii[1],
            neighbours=neighbours[1],
        )
        self.last = PointMLP(4 * width + 3, (4 * width, 8 * width, 16 * width))
        self.head = ClassifierHead(
            16 * width,
            classes,
            head,
            1,
            hidden=(8 * width, 4 * width),
            dropout=dropout,
            norm=True,
        )

    def forward(self, objects: Tensor) -> Tensor:
        """Score objects.

        Args:
            objects: (B, N, 3) floating point. A row with a NaN or infinite coordinate is no
                point: it fills up objects of fewer points than others.

        Returns:
            (B, K) logits.

        Raises:
            ValueError: another shape.
        """
        if objects.dim() != 3 or objects.shape[2] != 3:
            raise ValueError(f"objects must be (B, N, 3), got {tuple(objects.shape)}")
        if objects.shape[1] == 0:
            objects = objects.new_full((len(objects), 1, 3), torch.nan)
        points = _normalised(objects) if self.normalise else objects
        centres, features = self.second(*self.first(points))
        taken = ~centres.isnan().any(2)
        centres = torch.where(taken[..., None], centres, 0)
        features = self.last(torch.cat([centres, features], dim=2))
        return self.head(features.transpose(1, 2), taken)


def _normalised(points: Tensor) -> Tensor:
    exists = points.isfinite().all(2, keepdim=True)
    # In float64, so that the order of the points is not in the result.
    wide = torch.where(exists, points, 0).double()
    mean = wide.sum(1, keepdim=True) / exists.sum(1, keepdim=True).clamp(min=1)
    moved = torch.where(exists, wide - mean, 0)
    length = moved.square().sum(2, keepdim=True).amax(1, keepdim=True).sqrt()
    scaled = moved / torch.where(length > 0, length, 1)
    return torch.where(exists, scaled, torch.nan).to(points.dtype)
