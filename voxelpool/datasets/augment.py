"""Random changes to training sweeps that move points and boxes together.

Each is a small class called with points, boxes and a generator; nothing else is random, so the
generator's seed decides the outcome. VoxelNet's own three are `ObjectNoise`, `Scale` and `Rotate`
(section 3.2 of the paper), in that order.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from voxelpool.datasets.calibration import wrap_angle
from voxelpool.ops import boxes_iou_bev, points_in_boxes

Points = NDArray[np.float32]
Boxes = NDArray[np.float32]


class Augmentation(Protocol):
    """A random change of a sweep and its boxes."""

    def __call__(
        self, points: Points, boxes: Boxes, rng: np.random.Generator
    ) -> tuple[Points, Boxes]:
        """Changes a sweep.

        Args:
            points: (N, 3 + F) float32, metres, LiDAR frame; left as it is.
            boxes: (n, 7) float32, metres and radians; left as it is.
            rng: the only source of chance.

        Returns:
            Points and boxes of the same shapes.
        """
        ...


def frame_generator(seed: int, epoch: int, frame_id: str) -> np.random.Generator:
    """The generator of one frame in one epoch, whatever process or order it is drawn in."""
    return np.random.default_rng([seed, epoch, zlib.crc32(frame_id.encode())])


@dataclass(frozen=True)
class Compose:
    """Applies augmentations in order."""

    steps: Sequence[Augmentation]

    def __call__(
        self, points: Points, boxes: Boxes, rng: np.random.Generator
    ) -> tuple[Points, Boxes]:
        """See `Augmentation`."""
        for step in self.steps:
            points, boxes = step(points, boxes, rng)
        return points, boxes


@dataclass(frozen=True)
class Flip:
    """Mirrors left and right: y and yaw change sign."""

    probability: float = 0.5

    def __call__(
        self, points: Points, boxes: Boxes, rng: np.random.Generator
    ) -> tuple[Points, Boxes]:
        """See `Augmentation`."""
        if rng.random() >= self.probability:
            return points, boxes
        points, boxes = points.copy(), boxes.copy()
        points[:, 1] *= -1
        boxes[:, 1] *= -1
        boxes[:, 6] = wrap_angle(-boxes[:, 6])
        return points, boxes


@dataclass(frozen=True)
class Scale:
    """Multiplies coordinates, centres and sizes by one uniform factor."""

    range: tuple[float, float] = (0.95, 1.05)

    def __call__(
        self, points: Points, boxes: Boxes, rng: np.random.Generator
    ) -> tuple[Points, Boxes]:
        """See `Augmentation`."""
        factor = rng.uniform(*self.range)
        points, boxes = points.copy(), boxes.copy()
        points[:, :3] *= factor
        boxes[:, :6] *= factor
        return points, boxes


@dataclass(frozen=True)
class Rotate:
    """Turns everything about the sensor's vertical axis by a uniform angle, radians."""

    range: tuple[float, float] = (-math.pi / 4, math.pi / 4)

    def __call__(
        self, points: Points, boxes: Boxes, rng: np.random.Generator
    ) -> tuple[Points, Boxes]:
        """See `Augmentation`."""
        angle = rng.uniform(*self.range)
        points, boxes = points.copy(), boxes.copy()
        points[:, :2] = _turn(points[:, :2], angle)
        boxes[:, :2] = _turn(boxes[:, :2], angle)
        boxes[:, 6] = wrap_angle(boxes[:, 6] + angle)
        return points, boxes


@dataclass(frozen=True)
class ObjectNoise:
    """Turns each object about its centre and shifts it, its points with it.

    A box that would then collide with any other in bird's-eye view stays as it was. Points that
    lie in several boxes follow the first.

    Args:
        rotation: yaw is uniform within plus and minus this, radians.
        translation_std: standard deviation of the shift along x, y, z, metres.
    """

    rotation: float = math.pi / 10
    translation_std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __call__(
        self, points: Points, boxes: Boxes, rng: np.random.Generator
    ) -> tuple[Points, Boxes]:
        """See `Augmentation`."""
        angles = rng.uniform(-self.rotation, self.rotation, len(boxes))
        shifts = rng.normal(0.0, self.translation_std, (len(boxes), 3))
        inside = points_in_boxes(torch.from_numpy(points), torch.from_numpy(boxes)).numpy()
        owner = np.where(inside.any(1), inside.argmax(1), -1) if len(boxes) else None
        points, boxes = points.copy(), boxes.copy()
        for row, (angle, shift) in enumerate(zip(angles, shifts, strict=True)):
            moved = boxes[row].copy()
            moved[:3] += shift
            moved[6] = wrap_angle(moved[6] + angle)
            if _collides(moved, np.delete(boxes, row, axis=0)):
                continue
            own = owner == row
            local = _turn(points[own, :2] - boxes[row, :2], angle)
            points[own, :2] = local + moved[:2]
            points[own, 2] += shift[2]
            boxes[row] = moved
        return points, boxes


def _collides(box: Boxes, others: Boxes) -> bool:
    overlap = boxes_iou_bev(torch.from_numpy(box[None]), torch.from_numpy(others))
    return bool((overlap > 0).any())


def _turn(xy: NDArray[np.float32], angle: float) -> NDArray[np.float32]:
    """Rotates (N, 2) counter-clockwise about the origin, in double precision."""
    cos, sin = math.cos(angle), math.sin(angle)
    turned = xy.astype(np.float64) @ np.array([[cos, sin], [-sin, cos]])
    return turned.astype(np.float32)
