"""What is shown: the points of one sweep and groups of boxes, in the LiDAR frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from voxelpool.errors import DataError
from voxelpool.structures import Boxes3D

ColorBy = Literal["height", "reflectance", "range"]

LABELLED, FOUND = (0.2, 0.8, 0.3), (1.0, 0.45, 0.1)
"""The colours of boxes that a label file names, and of those that a detector found."""

# Dark blue to pale yellow, ever lighter: legible on a dark background, and in grey.
_COLORMAP = np.array(
    [[58, 76, 160], [46, 120, 190], [42, 160, 170], [96, 196, 128], [190, 220, 96], [252, 240, 170]]
)

# Pairs of corners, as `BoxGroup.corners` numbers them.
_EDGES = (
    *((0, 1), (1, 2), (2, 3), (3, 0)),
    *((4, 5), (5, 6), (6, 7), (7, 4)),
    *((0, 4), (1, 5), (2, 6), (3, 7)),
)


@dataclass(frozen=True, eq=False)
class BoxGroup:
    """Boxes drawn alike, such as all that were labelled or all that were found.

    Args:
        boxes: (n, 7) array or tensor: x, y, z of the centre, dx, dy, dz in metres, yaw in radians.
        label: what the legend calls them.
        color: red, green, blue from 0 to 1.
        scores: (n,) array or tensor, written beside the boxes.
        names: n class names.

    Raises:
        DataError: a shape or a value is wrong; names the group.
    """

    boxes: Any
    label: str
    color: tuple[float, float, float]
    scores: Any = None
    names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        where = f"boxes {self.label!r}"
        boxes = _array(self.boxes)
        if boxes.size == 0 and boxes.ndim < 3:
            boxes = boxes.reshape(0, 7)
        if boxes.ndim != 2 or boxes.shape[1] != 7:
            raise DataError(f"{where}: expected shape (n, 7), got {boxes.shape}")
        bad = np.flatnonzero(~np.isfinite(boxes).all(axis=1))
        if len(bad):
            raise DataError(f"{where}: box {bad[0]} holds a value that is not finite")
        color = tuple(float(value) for value in self.color)
        if len(color) != 3 or not all(0 <= value <= 1 for value in color):
            raise DataError(f"{where}: color must be three values from 0 to 1, got {self.color}")
        object.__setattr__(self, "boxes", boxes)
        object.__setattr__(self, "color", color)
        if self.scores is not None:
            scores = _array(self.scores)
            if scores.shape != (len(boxes),):
                raise DataError(f"{where}: {len(boxes)} boxes but scores of shape {scores.shape}")
            object.__setattr__(self, "scores", scores)
        if self.names is not None:
            names = tuple(str(name) for name in self.names)
            if len(names) != len(boxes):
                raise DataError(f"{where}: {len(boxes)} boxes but {len(names)} names")
            object.__setattr__(self, "names", names)

    def __len__(self) -> int:
        return len(self.boxes)

    def corners(self) -> NDArray[np.float64]:
        """(n, 8, 3) corners: the bottom face counter-clockwise from front left, then the top."""
        return Boxes3D(torch.from_numpy(self.boxes)).corners().numpy()

    def headings(self) -> NDArray[np.float64]:
        """(n, 2, 3) ticks that lead from the middle of the bottom front edge ahead of the box."""
        along = np.stack([np.cos(self.boxes[:, 6]), np.sin(self.boxes[:, 6])], axis=1)
        base = self.boxes[:, :3].copy()
        base[:, :2] += along * self.boxes[:, 3:4] / 2
        base[:, 2] -= self.boxes[:, 5] / 2
        tip = base.copy()
        tip[:, :2] += along * np.maximum(0.4 * self.boxes[:, 3:4], 0.6)
        return np.stack([base, tip], axis=1)

    def segments(self) -> NDArray[np.float64]:
        """(13 n, 2, 3) ends of all lines to draw: twelve edges and the heading of each box."""
        corners = self.corners()
        lines = [corners[:, edge] for edge in _EDGES] + [self.headings()]
        return np.concatenate(lines).reshape(-1, 2, 3)


@dataclass(frozen=True, eq=False)
class Scene:
    """One sweep with its boxes.

    Args:
        points: (N, >=3) array or tensor: x, y, z in metres, then reflectance. Points with a
            coordinate (or, where colours need it, a reflectance) that is not finite are dropped.
        boxes: groups of boxes, drawn in this order.
        title: written above the picture.
        color: what the points' colours mean.

    Raises:
        DataError: the points' shape is wrong, or they have no reflectance to be coloured by.
    """

    points: Any
    boxes: Sequence[BoxGroup] = ()
    title: str = ""
    color: ColorBy = "height"

    def __post_init__(self) -> None:
        if self.color not in get_args(ColorBy):
            known = ", ".join(get_args(ColorBy))
            raise DataError(f"unknown color {self.color!r}; known: {known}")
        points = _array(self.points)
        needed = 4 if self.color == "reflectance" else 3
        if points.ndim != 2 or points.shape[1] < needed:
            raise DataError(
                f"points: expected shape (N, {needed} or more) to colour them by {self.color}, "
                f"got {points.shape}"
            )
        points = points[np.isfinite(points[:, :needed]).all(axis=1)]
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "boxes", tuple(self.boxes))

    def values(self) -> NDArray[np.float64]:
        """(N,) what the colours show: metres, or reflectance as it was given."""
        if self.color == "height":
            return self.points[:, 2]
        if self.color == "reflectance":
            return self.points[:, 3]
        return np.linalg.norm(self.points[:, :3], axis=1)

    def limits(self) -> tuple[float, float]:
        """The values of the first and the last colour; a few outliers do not move them."""
        values = self.values()
        if not len(values):
            return 0.0, 1.0
        low, high = np.percentile(values, [1, 99])
        low = float(low) if self.color == "height" else 0.0
        return low, float(high) if high > low else low + 1.0

    def colors(self) -> NDArray[np.uint8]:
        """(N, 3) colours of the points."""
        low, high = self.limits()
        return colormap((self.values() - low) / (high - low))


def colormap(shares: NDArray[np.float64]) -> NDArray[np.uint8]:
    """(N, 3) colours of numbers (N,), from 0 for the first colour to 1 for the last."""
    stops = np.linspace(0, 1, len(_COLORMAP))
    channels = [np.interp(shares, stops, _COLORMAP[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def _array(values: Any) -> NDArray[np.float64]:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double().numpy()
    return np.array(values, dtype=np.float64)
