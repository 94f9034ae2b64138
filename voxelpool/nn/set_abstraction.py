"""Layers on sets of points: fewer points from stage to stage, each seeing more (PointNet++)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from voxelpool.ops import ball_query, farthest_points


class PointMLP(nn.Sequential):
    """Linear layers with BatchNorm and ReLU that every row goes through, whatever comes before."""

    def __init__(self, channels: int, layers: Sequence[int]) -> None:
        parts: list[nn.Module] = []
        for width in layers:
            parts += [nn.Linear(channels, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
            channels = width
        super().__init__(*parts)

    def forward(self, x: Tensor) -> Tensor:
        """(..., channels) -> (..., last of layers)."""
        return super().forward(x.flatten(0, -2)).unflatten(0, x.shape[:-1])


class SetAbstraction(nn.Module):
    """Points that stand for their surroundings (PointNet++, arXiv 1706.02413, section 3.2).

    The centres are chosen by `farthest_points`; around each, up to ``neighbours`` of the points
    within ``radius`` go through shared layers, as offsets from the centre beside their features,
    and the maximum stays.

    Args:
        channels: features of a point beside its coordinates; 0 for none.
        layers: widths of the shared layers.
        centres: how many points stay.
        radius: in the unit of the coordinates.
        neighbours: the most points of a centre.

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(
        self, channels: int, layers: Sequence[int], *, centres: int, radius: float, neighbours: int
    ) -> None:
        super().__init__()
        if min(centres, neighbours, *layers) < 1 or channels < 0 or not radius > 0:
            raise ValueError(
                "centres, neighbours, layers and radius must be positive, got "
                f"{centres}, {neighbours}, {list(layers)} and {radius}"
            )
        self.centres = centres
        self.radius = radius
        self.neighbours = neighbours
        self.layers = PointMLP(channels + 3, layers)

    def forward(self, points: Tensor, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Go from N points to ``centres``.

        Args:
            points: (B, N, 3); a row with a NaN or infinite coordinate is no point.
            features: (B, N, channels), or None where there are none.

        Returns:
            The centres (B, centres, 3), NaN where an object has fewer places, and their features
            (B, centres, last of layers), which are 0 there.
        """
        chosen = farthest_points(points, self.centres)
        taken = (chosen >= 0)[..., None]
        centres = points.gather(1, chosen.clamp(min=0)[..., None].expand(-1, -1, 3))
        centres = torch.where(taken, centres, torch.nan)
        near = ball_query(points, centres, self.radius, self.neighbours)
        near = torch.where(near < 0, near[..., :1], near).clamp(min=0)  # the nearest fills up
        row = near + points.shape[1] * torch.arange(len(points), device=near.device)[:, None, None]
        around = points.flatten(0, 1)[row] - centres[:, :, None]
        around = torch.where(taken[..., None], around, 0)
        if features is not None:
            known = features.flatten(0, 1).index_select(0, row.flatten()).unflatten(0, row.shape)
            around = torch.cat([around, known], dim=3)
        return centres, torch.where(taken, self.layers(around).max(2).values, 0)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"centres={self.centres}, radius={self.radius}, neighbours={self.neighbours}"
