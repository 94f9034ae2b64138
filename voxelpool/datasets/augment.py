"""Random changes to training sweeps that move points and boxes together.

Each is a small class called with a labelled sweep and a generator; nothing else is random, so the
generator's seed decides the outcome. VoxelNet's own three are `ObjectNoise`, `Scale` and `Rotate`
(section 3.2 of the paper), in that order; `SampleObjects` is SECOND's (section 3.3).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from voxelpool.datasets.calibration import wrap_angle
from voxelpool.datasets.object_database import ObjectDatabase
from voxelpool.errors import DataError
from voxelpool.ops import boxes_iou_bev, points_in_boxes

Points = NDArray[np.float32]
Boxes = NDArray[np.float32]
Float = NDArray[np.float64]

HDL64_SPACING = math.radians(26.8 / 63)
"""Angle between beams of the HDL-64E, whose 64 cover 26.8 degrees; radians."""

# Waves an octave apart, their widths in metres, and how deep each is for the depths of places that
# lie r metres apart, in a random direction, to differ by a variance of close to r: the sum over the
# waves of depth^2 (1 - J0(2 pi r / width)) is 0.6 r at r = 0.05, 0.9 to 1.1 r from 0.1 to 1 m.
_DENT_WIDTHS = 0.2 * 2.0 ** np.arange(6)
_DENT_DEPTHS = np.sqrt(_DENT_WIDTHS / 7.4)


@dataclass(frozen=True, eq=False)
class LabelledSweep:
    """A sweep and the objects in it.

    Attributes:
        points: (N, 3 + F) float32, metres, LiDAR frame; the fourth column is reflectance.
        boxes: (n, 7) float32, metres and radians, LiDAR frame.
        names: n class names.
    """

    points: Points
    boxes: Boxes
    names: Sequence[str]


class Augmentation(Protocol):
    """A random change of a labelled sweep."""

    def __call__(self, sweep: LabelledSweep, rng: np.random.Generator) -> LabelledSweep:
        """Changes a sweep.

        Args:
            sweep: its arrays are left as they are.
            rng: the only source of chance.

        Returns:
            The changed sweep.
        """
        ...


def frame_generator(seed: int, epoch: int, frame_id: str) -> np.random.Generator:
    """The generator of one frame in one epoch, whatever process or order it is drawn in."""
    return np.random.default_rng([seed, epoch, zlib.crc32(frame_id.encode())])


@dataclass(frozen=True)
class Compose:
    """Applies augmentations in order."""

    steps: Sequence[Augmentation]

    def __call__(self, sweep: LabelledSweep, rng: np.random.Generator) -> LabelledSweep:
        """See `Augmentation`."""
        for step in self.steps:
            sweep = step(sweep, rng)
        return sweep


@dataclass(frozen=True)
class Flip:
    """Mirrors left and right: y and yaw change sign."""

    probability: float = 0.5

    def __call__(self, sweep: LabelledSweep, rng: np.random.Generator) -> LabelledSweep:
        """See `Augmentation`."""
        if rng.random() >= self.probability:
            return sweep
        points, boxes = sweep.points.copy(), sweep.boxes.copy()
        points[:, 1] *= -1
        boxes[:, 1] *= -1
        boxes[:, 6] = wrap_angle(-boxes[:, 6])
        return replace(sweep, points=points, boxes=boxes)


@dataclass(frozen=True)
class Scale:
    """Multiplies coordinates, centres and sizes by one uniform factor."""

    range: tuple[float, float] = (0.95, 1.05)

    def __call__(self, sweep: LabelledSweep, rng: np.random.Generator) -> LabelledSweep:
        """See `Augmentation`."""
        factor = rng.uniform(*self.range)
        points, boxes = sweep.points.copy(), sweep.boxes.copy()
        points[:, :3] *= factor
        boxes[:, :6] *= factor
        return replace(sweep, points=points, boxes=boxes)


@dataclass(frozen=True)
class Rotate:
    """Turns everything about the sensor's vertical axis by a uniform angle, radians."""

    range: tuple[float, float] = (-math.pi / 4, math.pi / 4)

    def __call__(self, sweep: LabelledSweep, rng: np.random.Generator) -> LabelledSweep:
        """See `Augmentation`."""
        angle = rng.uniform(*self.range)
        points, boxes = sweep.points.copy(), sweep.boxes.copy()
        points[:, :2] = _turn(points[:, :2], angle)
        boxes[:, :2] = _turn(boxes[:, :2], angle)
        boxes[:, 6] = wrap_angle(boxes[:, 6] + angle)
        return replace(sweep, points=points, boxes=boxes)


@dataclass(frozen=True)
class Translate:
    """Shifts everything by one normal vector.

    Args:
        std: standard deviation along x, y, z, metres.
    """

    std: tuple[float, float, float] = (0.2, 0.2, 0.2)

    def __call__(self, sweep: LabelledSweep, rng: np.random.Generator) -> LabelledSweep:
        """See `Augmentation`."""
        shift = rng.normal(0.0, self.std).astype(np.float32)
        points, boxes = sweep.points.copy(), sweep.boxes.copy()
        points[:, :3] += shift
        boxes[:, :3] += shift
        return replace(sweep, points=points, boxes=boxes)


@dataclass(frozen=True)
class Tilt:
    """Raises everything in proportion to where it stands, as a slope or a sensor that nods would.

    Boxes stay upright, as those of labels are: inside of one, points shift by the angle times
    their distance from its middle.

    Args:
        std: standard deviation of the slope ahead and of that to the left, radians.
    """

    std: tuple[float, float] = (0.005, 0.005)

    def __call__(self, sweep: LabelledSweep, rng: np.random.Generator) -> LabelledSweep:
        """See `Augmentation`."""
        slope = np.tan(rng.normal(0.0, self.std))
        points, boxes = sweep.points.copy(), sweep.boxes.copy()
        points[:, 2] += points[:, :2] @ slope
        boxes[:, 2] += boxes[:, :2] @ slope
        return replace(sweep, points=points, boxes=boxes)


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

    def __call__(self, sweep: LabelledSweep, rng: np.random.Generator) -> LabelledSweep:
        """See `Augmentation`."""
        count = len(sweep.boxes)
        angles = rng.uniform(-self.rotation, self.rotation, count)
        shifts = rng.normal(0.0, self.translation_std, (count, 3))
        moved = sweep.boxes.copy()
        moved[:, :3] += shifts
        moved[:, 6] = wrap_angle(moved[:, 6] + angles)
        return _move_objects(sweep, moved)


@dataclass(frozen=True)
class ObjectScale:
    """Makes each object larger or smaller by a factor of its own, its points with it.

    The middle of its lower face stays where it is. A box that would then collide with any other in
    bird's-eye view stays as it was. Points that lie in several boxes follow the first.

    Args:
        range: of the factor.
    """

    range: tuple[float, float] = (0.9, 1.1)

    def __call__(self, sweep: LabelledSweep, rng: np.random.Generator) -> LabelledSweep:
        """See `Augmentation`."""
        factors = rng.uniform(*self.range, len(sweep.boxes))
        moved = sweep.boxes.copy()
        moved[:, 2] += moved[:, 5] * (factors - 1.0) / 2.0
        moved[:, 3:6] *= factors[:, None]
        return _move_objects(sweep, moved)


@dataclass(frozen=True)
class ThinObjects:
    """Takes points away from objects, as dark paint or what stands before them would.

    Of half of them points go here and there; of the other half from one side, as the sensor sees
    it: from the left, the right or from below. Points that lie in several boxes count for the
    first.

    Args:
        probability: of an object to be thinned.
        range: of the share that goes, which is uniform.
        min_points: so many stay of an object that has them.
    """

    probability: float = 0.3
    range: tuple[float, float] = (0.2, 0.9)
    min_points: int = 5

    def __call__(self, sweep: LabelledSweep, rng: np.random.Generator) -> LabelledSweep:
        """See `Augmentation`."""
        owner = _owners(sweep.points, sweep.boxes)
        kept = np.ones(len(sweep.points), bool)
        for row, box in enumerate(sweep.boxes):
            chance, share, side = rng.random(), rng.uniform(*self.range), rng.integers(6)
            if chance >= self.probability:
                continue
            own = np.flatnonzero(owner == row)
            lost = min(round(len(own) * share), len(own) - self.min_points)
            if lost <= 0:
                continue
            x, y, z = sweep.points[own, :3].astype(np.float64).T
            azimuth = wrap_angle(np.arctan2(y, x) - math.atan2(box[1], box[0]))
            elevation = np.arctan2(z, np.hypot(x, y))
            order = (azimuth, -azimuth, elevation)[side] if side < 3 else rng.random(len(own))
            kept[own[np.argsort(order, kind="stable")[:lost]]] = False
        return replace(sweep, points=sweep.points[kept])


@dataclass(frozen=True)
class FadeTops:
    """Takes the upper part of far objects away: little comes back of windows and roofs far ahead.

    Points that lie in several boxes count for the first.

    Args:
        probability: of an object as far as the second of ``distances``, or farther. It falls
            linearly to nothing at the first.
        distances: from the sensor, metres.
        range: of the height above which all goes, a uniform share of the box's, from below.
        min_points: so many stay of an object that has them, the lowest.
    """

    probability: float = 0.8
    distances: tuple[float, float] = (30.0, 45.0)
    range: tuple[float, float] = (0.35, 0.95)
    min_points: int = 5

    def __call__(self, sweep: LabelledSweep, rng: np.random.Generator) -> LabelledSweep:
        """See `Augmentation`."""
        away = np.hypot(sweep.boxes[:, 0], sweep.boxes[:, 1])
        chance = self.probability * np.interp(away, self.distances, (0.0, 1.0))
        faded = rng.random(len(away)) < chance
        heights = rng.uniform(*self.range, len(away))[faded]
        boxes = sweep.boxes[faded]
        owner = _owners(sweep.points, boxes)
        kept = np.ones(len(sweep.points), bool)
        for row, (box, height) in enumerate(zip(boxes, heights, strict=True)):
            own = np.flatnonzero(owner == row)
            z = sweep.points[own, 2]
            high = z > box[2] + box[5] * (height - 0.5)
            high[np.argsort(z, kind="stable")[: self.min_points]] = False
            kept[own[high]] = False
        return replace(sweep, points=sweep.points[kept])


@dataclass(frozen=True)
class DentObjects:
    """Moves points of objects along their rays: real bodies are less even than simulated ones.

    Three things add up. Corners are rounder, seen from above. Surfaces have dents, the deeper the
    wider: between two places the depth differs by a standard deviation that grows with the root of
    their distance. And points scatter, the more the farther they are. How much of each an object
    has is uniform, from nothing to what is given.

    No point leaves the box that it lies in: one that would moves the other way, or not at all.
    Points that lie in several boxes count for the first. Rays come from the origin: this comes
    before anything that moves the scene.

    Args:
        rounding: how far corners recede towards the middle, as a share of that way.
        depth: of dents between places 1 m apart, metres.
        noise: standard deviation of points 40 m off, metres; it grows with the distance's square.
    """

    rounding: float = 0.1
    depth: float = 0.15
    noise: float = 0.06

    def __call__(self, sweep: LabelledSweep, rng: np.random.Generator) -> LabelledSweep:
        """See `Augmentation`."""
        count = len(sweep.boxes)
        most = (self.rounding, self.depth, self.noise)
        amounts = rng.uniform(0.0, 1.0, (count, 3)) * most
        waves = rng.uniform(0.0, 2 * math.pi, (count, 2, len(_DENT_WIDTHS)))
        owner = _owners(sweep.points, sweep.boxes)
        rows = np.flatnonzero(owner >= 0)
        owner = owner[rows]
        xyz = sweep.points[rows, :3].astype(np.float64)
        distance = np.linalg.norm(xyz, axis=1)
        ray = xyz / np.maximum(distance, 1e-6)[:, None]
        rounding, depth, noise = amounts[owner].T
        boxes = sweep.boxes[owner].astype(np.float64)
        shift = rounding * _receding(xyz, ray, boxes) + depth * _dents(xyz, boxes, waves[owner])
        shift += noise * (distance / 40) ** 2 * rng.standard_normal(len(rows))

        points = sweep.points.copy()
        for way in (-shift, shift):
            moved = (xyz + way[:, None] * ray).astype(np.float32)
            inside = points_in_boxes(torch.from_numpy(moved), torch.from_numpy(sweep.boxes)).numpy()
            stays = inside[np.arange(len(rows)), owner]
            points[rows[stays], :3] = moved[stays]
        return replace(sweep, points=points)


@dataclass(frozen=True)
class SampleObjects:
    """Pastes objects of other sweeps in, where they stood in their own (SECOND, section 3.3).

    A scene is filled up to so many objects of a class. What would collide in bird's-eye view with
    a box that is there is left out; points of the scene inside a pasted box go.

    Args:
        database: where they come from.
        counts: how many of each class a scene shall hold.
        min_points: objects with fewer points are not pasted.
        max_difficulty: nor are those that are harder to KITTI: 0 easy, 1 moderate, 2 hard, 3 none
            of them.
    """

    database: ObjectDatabase
    counts: Mapping[str, int]
    min_points: int = 5
    max_difficulty: int = 2

    def __call__(self, sweep: LabelledSweep, rng: np.random.Generator) -> LabelledSweep:
        """See `Augmentation`.

        Raises:
            DataError: the points of the database have another number of features.
        """
        if self.database.points.shape[1] != sweep.points.shape[1]:
            raise DataError(
                f"the database of objects has points of {self.database.points.shape[1]} columns, "
                f"the sweep of {sweep.points.shape[1]}"
            )
        rows = self._draw(sweep.names, rng)
        boxes = np.concatenate([sweep.boxes, self.database.boxes[rows]])
        near = torch.from_numpy(boxes)
        collides = (boxes_iou_bev(near, near) > 0).numpy()
        present = len(sweep.boxes)
        standing = list(range(present))
        for row in range(present, len(boxes)):
            if not collides[row, standing].any():
                standing.append(row)
        pasted = [rows[row - present] for row in standing[present:]]
        if not pasted:
            return sweep
        taken = points_in_boxes(
            torch.from_numpy(sweep.points), torch.from_numpy(boxes[standing[present:]])
        ).numpy()
        objects = [self.database.points_of(row) for row in pasted]
        return LabelledSweep(
            np.concatenate([sweep.points[~taken.any(1)], *objects]),
            boxes[standing],
            [*sweep.names, *(self.database.names[row] for row in pasted)],
        )

    @cached_property
    def _rows(self) -> dict[str, NDArray[np.int64]]:
        """What may be pasted of each class."""
        return {
            name: self.database.rows(name, self.min_points, self.max_difficulty)
            for name in self.counts
        }

    def _draw(self, names: Sequence[str], rng: np.random.Generator) -> NDArray[np.int64]:
        """Rows of the database, in the order of the classes."""
        drawn = [np.zeros(0, np.int64)]
        for name, count in self.counts.items():
            rows = self._rows[name]
            missing = max(0, count - list(names).count(name))
            drawn.append(rng.choice(rows, min(missing, len(rows)), replace=False))
        return np.concatenate(drawn)


@dataclass(frozen=True)
class Shuffle:
    """Brings the points into random order, which decides what ``keep: first`` keeps of a voxel."""

    def __call__(self, sweep: LabelledSweep, rng: np.random.Generator) -> LabelledSweep:
        """See `Augmentation`."""
        return replace(sweep, points=sweep.points[rng.permutation(len(sweep.points))])


@dataclass(frozen=True)
class DropPoints:
    """Leaves out a share of the points, each by chance.

    Args:
        range: of the share, which is uniform.
    """

    range: tuple[float, float] = (0.0, 0.3)

    def __call__(self, sweep: LabelledSweep, rng: np.random.Generator) -> LabelledSweep:
        """See `Augmentation`."""
        share = rng.uniform(*self.range)
        return replace(sweep, points=sweep.points[rng.random(len(sweep.points)) >= share])


@dataclass(frozen=True)
class DropBeams:
    """Leaves out a share of the sensor's beams, each by chance.

    A beam is what lies between two elevations as seen from the origin: this comes before anything
    that moves the scene.

    Args:
        range: of the share, which is uniform.
        spacing: angle between beams, radians.
    """

    range: tuple[float, float] = (0.0, 0.3)
    spacing: float = HDL64_SPACING

    def __call__(self, sweep: LabelledSweep, rng: np.random.Generator) -> LabelledSweep:
        """See `Augmentation`."""
        share, phase = rng.uniform(*self.range), rng.random()
        x, y, z = sweep.points[:, :3].astype(np.float64).T
        beam = np.floor(np.arctan2(z, np.hypot(x, y)) / self.spacing + phase).astype(np.int64)
        whole_turn = math.ceil(math.pi / self.spacing) + 1
        dropped = rng.random(2 * whole_turn) < share
        return replace(sweep, points=sweep.points[~dropped[beam + whole_turn]])


@dataclass(frozen=True)
class Jitter:
    """Moves each point by normal noise of its own.

    Args:
        std: standard deviation along each axis, metres.
    """

    std: float = 0.01

    def __call__(self, sweep: LabelledSweep, rng: np.random.Generator) -> LabelledSweep:
        """See `Augmentation`."""
        points = sweep.points.copy()
        points[:, :3] += rng.normal(0.0, self.std, (len(points), 3)).astype(np.float32)
        return replace(sweep, points=points)


@dataclass(frozen=True)
class ReflectanceNoise:
    """Scales a sweep's reflectances, adds noise to each, or sets all to zero.

    Args:
        range: of the factor, which is uniform.
        std: standard deviation of the noise.
        remove_probability: how often all are set to zero instead.
    """

    range: tuple[float, float] = (0.8, 1.2)
    std: float = 0.05
    remove_probability: float = 0.0

    def __call__(self, sweep: LabelledSweep, rng: np.random.Generator) -> LabelledSweep:
        """See `Augmentation`."""
        points = sweep.points.copy()
        if rng.random() < self.remove_probability:
            points[:, 3] = 0.0
        else:
            noise = rng.normal(0.0, self.std, len(points))
            points[:, 3] = np.clip(points[:, 3] * rng.uniform(*self.range) + noise, 0.0, 1.0)
        return replace(sweep, points=points)


def _move_objects(sweep: LabelledSweep, moved: Boxes) -> LabelledSweep:
    """Brings one object after the other to its new box, unless that collides with another."""
    points, boxes = sweep.points.copy(), sweep.boxes.copy()
    owner = _owners(points, boxes)
    for row, box in enumerate(moved):
        if _collides(box, np.delete(boxes, row, axis=0)):
            continue
        own = owner == row
        local = points[own, :3].astype(np.float64) - boxes[row, :3]
        local[:, :2] = _turn(local[:, :2], float(box[6]) - float(boxes[row, 6]))
        points[own, :3] = local * (box[3:6].astype(np.float64) / boxes[row, 3:6]) + box[:3]
        boxes[row] = box
    return replace(sweep, points=points, boxes=boxes)


def _owners(points: Points, boxes: Boxes) -> NDArray[np.int64]:
    """The first box that each point lies in, or -1."""
    if not len(boxes):
        return np.full(len(points), -1)
    inside = points_in_boxes(torch.from_numpy(points), torch.from_numpy(boxes)).numpy()
    return np.where(inside.any(1), inside.argmax(1), -1)


def _receding(xyz: Float, ray: Float, boxes: Float) -> Float:
    """How much farther along its ray each point is if its box's corners recede all the way.

    Args:
        xyz: (P, 3) points.
        ray: (P, 3) their directions.
        boxes: (P, 7) the box that each lies in.
    """
    outward = xyz[:, :2] - boxes[:, :2]
    cos, sin = np.cos(boxes[:, 6]), np.sin(boxes[:, 6])
    along = (cos * outward[:, 0] + sin * outward[:, 1]) / boxes[:, 3]
    across = (cos * outward[:, 1] - sin * outward[:, 0]) / boxes[:, 4]
    return -((4 * along * across) ** 2) * (outward * ray[:, :2]).sum(axis=1)


def _dents(xyz: Float, boxes: Float, waves: Float) -> Float:
    """How deep dents are, of unit depth, where each point lies on its object.

    Args:
        xyz: (P, 3) points.
        boxes: (P, 7) the box that each lies in.
        waves: (P, 2, W) direction and phase of that object's waves, radians.
    """
    away = np.maximum(np.hypot(boxes[:, 0], boxes[:, 1]), 1e-6)
    aside = (boxes[:, 0] * xyz[:, 1] - boxes[:, 1] * xyz[:, 0]) / away
    direction, phase = waves[:, 0], waves[:, 1]
    along = aside[:, None] * np.cos(direction) + xyz[:, 2:] * np.sin(direction)
    return np.cos(2 * math.pi * along / _DENT_WIDTHS + phase) @ _DENT_DEPTHS


def _collides(box: Boxes, others: Boxes) -> bool:
    overlap = boxes_iou_bev(torch.from_numpy(box[None]), torch.from_numpy(others))
    return bool((overlap > 0).any())


def _turn(xy: NDArray[np.floating], angle: float) -> NDArray[np.float64]:
    """Rotates (N, 2) counter-clockwise about the origin."""
    cos, sin = math.cos(angle), math.sin(angle)
    return xy.astype(np.float64) @ np.array([[cos, sin], [-sin, cos]])
