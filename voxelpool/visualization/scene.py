"""What is shown: the points of one sweep, voxels, groups of boxes and points, the camera's image.

All of it is in the LiDAR frame, and every back end draws it: pictures, the window, the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from voxelpool.errors import DataError
from voxelpool.ops import boxes_iou_bev, points_in_boxes
from voxelpool.structures import Boxes3D, VoxelGrid, Voxels

ColorBy = Literal["height", "reflectance", "range", "distance", "class"]
VoxelShape = Literal["cubes", "points"]

LABELLED, FOUND = (0.2, 0.8, 0.3), (1.0, 0.45, 0.1)
"""The colours of boxes that a label file names, and of those that a detector found."""

MISSED, FALSE = (1.0, 0.9, 0.2), (1.0, 0.3, 0.85)
"""The colours of labelled boxes that were not found, and of found ones that are not labelled."""

DIFFICULTIES = ("easy", "moderate", "hard")

GROUND = -1.73  # metres; KITTI's sensor stands so high

_FARTHEST_SHOWN = 20.0  # metres to the nearest box at which the colours end
_NO_CLASS = (74, 82, 100)
_CLASS_COLORS = {
    "Car": (90, 220, 120),
    "Van": (64, 190, 200),
    "Truck": (90, 140, 255),
    "Pedestrian": (255, 110, 90),
    "Person_sitting": (255, 160, 150),
    "Cyclist": (255, 205, 70),
    "Tram": (190, 130, 255),
    "Misc": (220, 220, 230),
}
_OTHER_CLASS_COLORS = ((255, 150, 40), (120, 230, 230), (240, 120, 200), (170, 200, 90))

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

# The faces of a unit cube: corners in order around it, the way it looks, how light it is.
CUBE_FACES = (
    (((0, 0, 1), (1, 0, 1), (1, 1, 1), (0, 1, 1)), (0, 0, 1), 1.0),
    (((0, 0, 0), (0, 1, 0), (1, 1, 0), (1, 0, 0)), (0, 0, -1), 0.4),
    (((0, 0, 0), (1, 0, 0), (1, 0, 1), (0, 0, 1)), (0, -1, 0), 0.72),
    (((1, 1, 0), (0, 1, 0), (0, 1, 1), (1, 1, 1)), (0, 1, 0), 0.72),
    (((0, 1, 0), (0, 0, 0), (0, 0, 1), (0, 1, 1)), (-1, 0, 0), 0.85),
    (((1, 0, 0), (1, 1, 0), (1, 1, 1), (1, 0, 1)), (1, 0, 0), 0.6),
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
        difficulty: (n,) integers, 0 easy, 1 moderate, 2 hard, 3 none of them.

    Raises:
        DataError: a shape or a value is wrong; names the group.
    """

    boxes: Any
    label: str
    color: tuple[float, float, float]
    scores: Any = None
    names: Sequence[str] | None = None
    difficulty: Any = None

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
        object.__setattr__(self, "boxes", boxes)
        object.__setattr__(self, "color", _color(self.color, where))
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
        if self.difficulty is not None:
            levels = np.array(self.difficulty, dtype=np.int64).reshape(-1)
            if levels.shape != (len(boxes),) or ((levels < 0) | (levels > 3)).any():
                raise DataError(f"{where}: difficulty must be {len(boxes)} numbers from 0 to 3")
            object.__setattr__(self, "difficulty", levels)

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, rows: Any) -> BoxGroup:
        """Some of the boxes, by an array of rows or of bools."""
        rows = np.atleast_1d(np.arange(len(self))[rows])
        return replace(
            self,
            boxes=self.boxes[rows],
            scores=None if self.scores is None else self.scores[rows],
            names=None if self.names is None else [self.names[row] for row in rows],
            difficulty=None if self.difficulty is None else self.difficulty[rows],
        )

    def texts(self, *, every_name: bool = False) -> list[str]:
        """What is written beside each box: class, difficulty and score, as far as known.

        A name that all boxes share stands in the legend; ``every_name`` repeats it.
        """
        parts: list[list[str]] = [[] for _ in range(len(self))]
        if self.names is not None and (every_name or len(set(self.names)) > 1):
            parts = [[name] for name in self.names]
        if self.difficulty is not None:
            words = (*DIFFICULTIES, "")
            parts = [
                [*part, words[level]]
                for part, level in zip(parts, self.difficulty.tolist(), strict=True)
            ]
        if self.scores is not None:
            parts = [[*part, f"{s:.2f}"] for part, s in zip(parts, self.scores, strict=True)]
        return [" ".join(filter(None, part)) for part in parts]

    def legend(self) -> str:
        """What the legend says: label, how many, and the class if all are of one."""
        if self.names is not None and len(set(self.names)) == 1:
            return f"{self.label}: {len(self)} {self.names[0]}"
        return f"{self.label}: {len(self)}"

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
class PointGroup:
    """Points of one meaning, drawn larger and in one colour over those of the scene.

    Args:
        points: (n, >=3) array or tensor: x, y, z in metres.
        label: what the legend calls them.
        color: red, green, blue from 0 to 1.

    Raises:
        DataError: a shape or a value is wrong; names the group.
    """

    points: Any
    label: str
    color: tuple[float, float, float]

    def __post_init__(self) -> None:
        where = f"points {self.label!r}"
        points = _array(self.points)
        if points.size == 0 and points.ndim < 2:
            points = points.reshape(0, 3)
        if points.ndim != 2 or points.shape[1] < 3:
            raise DataError(f"{where}: expected shape (n, 3 or more), got {points.shape}")
        points = points[np.isfinite(points[:, :3]).all(axis=1), :3]
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "color", _color(self.color, where))

    def __len__(self) -> int:
        return len(self.points)

    def legend(self) -> str:
        """What the legend says."""
        return f"{self.label}: {len(self):,}"


@dataclass(frozen=True, eq=False)
class VoxelGroup:
    """Voxels, coloured by how many points they hold.

    Args:
        coords: (K, 3) z, y, x of each voxel, or (K, 4) with the sweep ahead.
        counts: (K,) points in each.
        grid: what the coordinates refer to.
        shape: drawn as "cubes", or as "points" in their middles.

    Raises:
        DataError: shapes do not fit, a count is below 0, or the shape is unknown.
    """

    coords: Any
    counts: Any
    grid: VoxelGrid
    shape: VoxelShape = "cubes"

    def __post_init__(self) -> None:
        coords, counts = _array(self.coords), _array(self.counts).reshape(-1)
        if coords.ndim != 2 or coords.shape[1] not in (3, 4) or len(coords) != len(counts):
            raise DataError(
                f"voxels: expected coords (K, 3 or 4) and counts (K,), "
                f"got {coords.shape} and {counts.shape}"
            )
        if (counts < 0).any():
            raise DataError("voxels: a count is below 0")
        if self.shape not in get_args(VoxelShape):
            known = ", ".join(get_args(VoxelShape))
            raise DataError(f"unknown shape of voxels {self.shape!r}; known: {known}")
        object.__setattr__(self, "coords", coords[:, -3:])
        object.__setattr__(self, "counts", counts)

    @classmethod
    def of(cls, voxels: Voxels, shape: VoxelShape = "cubes") -> VoxelGroup:
        """The voxels of one sweep."""
        return cls(voxels.coords, voxels.counts(), voxels.grid, shape)

    def __len__(self) -> int:
        return len(self.coords)

    @property
    def size(self) -> NDArray[np.float64]:
        """(3,) edges along x, y, z in metres."""
        return np.array(self.grid.voxel_size)

    def lows(self) -> NDArray[np.float64]:
        """(K, 3) x, y, z of the lowest corner of each voxel."""
        return np.array(self.grid.range[:3]) + self.coords[:, ::-1] * self.size

    def middles(self) -> NDArray[np.float64]:
        """(K, 3) x, y, z of the middle of each voxel."""
        return self.lows() + self.size / 2

    def limits(self) -> tuple[float, float]:
        """The counts of the first and the last colour."""
        return 1.0, float(max(self.counts.max(initial=1), 2))

    def colors(self) -> NDArray[np.uint8]:
        """(K, 3) colours by count, on a logarithmic scale."""
        high = self.limits()[1]
        return colormap(np.log(np.maximum(self.counts, 1)) / np.log(high))


@dataclass(frozen=True, eq=False)
class CameraImage:
    """What a camera saw of the scene.

    Args:
        pixels: (H, W, 3) uint8.
        projection: (3, 4) matrix that brings x, y, z, 1 of the LiDAR frame to column * depth,
            row * depth, depth; depth in metres.

    Raises:
        DataError: a shape is wrong.
    """

    pixels: NDArray[np.uint8]
    projection: NDArray[np.float64]

    def __post_init__(self) -> None:
        pixels, projection = np.asarray(self.pixels, np.uint8), _array(self.projection)
        if pixels.ndim != 3 or pixels.shape[2] != 3 or projection.shape != (3, 4):
            raise DataError(
                f"camera: expected pixels (H, W, 3) and a projection (3, 4), "
                f"got {pixels.shape} and {projection.shape}"
            )
        object.__setattr__(self, "pixels", pixels)
        object.__setattr__(self, "projection", projection)

    def view(self, xyz: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., 3) LiDAR coordinates to (..., 3) column * depth, row * depth, depth."""
        return xyz @ self.projection[:, :3].T + self.projection[:, 3]


@dataclass(frozen=True, eq=False)
class Scene:
    """One sweep with what is known of it.

    Args:
        points: (N, >=3) array or tensor: x, y, z in metres, then reflectance. Points with a
            coordinate (or, where colours need it, a reflectance) that is not finite are dropped.
        boxes: groups of boxes, drawn in this order. A point that several boxes hold has the class
            of the first.
        title: written above the picture.
        color: what the points' colours mean: height, reflectance, range (metres from the sensor),
            distance (metres to the nearest box, 0 inside) or class (of the box around the point).
        voxels: drawn in place of the points.
        marks: groups of points, drawn over the others in this order.
        camera: the image that belongs to the sweep.

    Raises:
        DataError: the points' shape is wrong, or they have no reflectance to be coloured by.
    """

    points: Any
    boxes: Sequence[BoxGroup] = ()
    title: str = ""
    color: ColorBy = "height"
    voxels: VoxelGroup | None = None
    marks: Sequence[PointGroup] = ()
    camera: CameraImage | None = None

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
        object.__setattr__(self, "marks", tuple(self.marks))

    def summary(self) -> dict[str, Any]:
        """How much of what there is, by the names of the legend; for programs."""
        return {
            "title": self.title,
            "points": len(self.points),
            "voxels": None if self.voxels is None else len(self.voxels),
            "boxes": {group.label: len(group) for group in self.boxes},
            "marks": {group.label: len(group) for group in self.marks},
        }

    def colorings(self) -> list[ColorBy]:
        """What the points can be coloured by, from what is known of them."""
        known: list[ColorBy] = ["height"]
        if self.points.shape[1] > 3 and np.isfinite(self.points[:, 3]).all():
            known.append("reflectance")
        known.append("range")
        if any(map(len, self.boxes)):
            known.append("distance")
            known += ["class"] if self.classes() else []
        return known

    def spread(self) -> NDArray[np.float64]:
        """(n, 2) x, y of all points, marked ones too, and of all voxels."""
        parts = [self.points[:, :2], *(mark.points[:, :2] for mark in self.marks)]
        if self.voxels is not None:
            parts.append(self.voxels.middles()[:, :2])
        return np.concatenate(parts)

    def reach(self) -> float:
        """Metres along the ground from the sensor to nearly all that there is."""
        spots = self.spread()
        return float(np.percentile(np.linalg.norm(spots, axis=1), 99.5)) if len(spots) else 50.0

    def classes(self) -> list[str]:
        """The classes that boxes of the scene have, in the order of their appearance."""
        names = [name for group in self.boxes for name in group.names or ()]
        return list(dict.fromkeys(names))

    def values(self) -> NDArray[np.float64]:
        """(N,) what the colours show.

        Metres, reflectance as it was given, or the place in `classes` of the class around the
        point, -1 for none.
        """
        if self.color == "height":
            return self.points[:, 2]
        if self.color == "reflectance":
            return self.points[:, 3]
        if self.color == "range":
            return np.linalg.norm(self.points[:, :3], axis=1)
        if self.color == "distance":
            return distance_to_boxes(self.points, self._all_boxes())
        return self._classes_of_points()

    def limits(self) -> tuple[float, float]:
        """The values of the first and the last colour; a few outliers do not move them."""
        if self.color == "class":
            return 0.0, max(len(self.classes()) - 1.0, 1.0)
        if self.color == "distance" and not any(map(len, self.boxes)):
            return 0.0, _FARTHEST_SHOWN
        values = self.values()
        if not len(values):
            return 0.0, 1.0
        low, high = np.percentile(values, [1, 99])
        low = float(low) if self.color == "height" else 0.0
        if self.color == "distance":
            high = min(high, _FARTHEST_SHOWN)
        return low, float(high) if high > low else low + 1.0

    def colors(self) -> NDArray[np.uint8]:
        """(N, 3) colours of the points."""
        if self.color == "class":
            palette = [class_color(name, self.classes()) for name in self.classes()]
            table = np.array([*palette, _NO_CLASS], np.uint8)
            return table[self.values().astype(np.int64)]
        low, high = self.limits()
        shares = (self.values() - low) / (high - low)
        return colormap(1 - shares if self.color == "distance" else shares)

    def _all_boxes(self) -> NDArray[np.float64]:
        return np.concatenate([np.zeros((0, 7)), *(group.boxes for group in self.boxes)])

    def _classes_of_points(self) -> NDArray[np.float64]:
        classes = self.classes()
        found = np.full(len(self.points), -1.0)
        for group in self.boxes:
            if group.names is None or not len(group):
                continue
            ids = np.array([classes.index(name) for name in group.names], np.float64)
            inside = points_in_boxes(
                torch.from_numpy(self.points[:, :3]), torch.from_numpy(group.boxes)
            ).numpy()
            hit = inside.any(axis=1) & (found < 0)
            found[hit] = ids[inside[hit].argmax(axis=1)]
        return found


def ring_segments(reach: float) -> NDArray[np.float64]:
    """(n, 2, 3) segments of rings on the ground at every ten metres up to ``reach``, and one on."""
    turn = np.linspace(0, 2 * np.pi, 121)
    ring = np.stack([np.cos(turn), np.sin(turn), np.zeros_like(turn)], axis=1)
    rings = [ring * radius + [0, 0, GROUND] for radius in ring_radii(reach)]
    return np.concatenate([np.stack([one[:-1], one[1:]], axis=1) for one in rings])


def ring_radii(reach: float) -> NDArray[np.float64]:
    """Metres: every ten, or every fifty where there is much to see, up to ``reach`` and one on."""
    step = 10.0 if reach <= 120 else 50.0
    return np.arange(step, np.clip(reach, 1, 20 * step) + step, step)


def axis_segments() -> list[tuple[NDArray[np.float64], tuple[float, float, float]]]:
    """The sensor's axes x, y, z, two metres long, (1, 2, 3), and their colours."""
    colors = ((0.9, 0.3, 0.3), (0.3, 0.8, 0.3), (0.35, 0.5, 1.0))
    return [
        (np.stack([np.zeros(3), axis])[None] * 2.0, color)
        for axis, color in zip(np.eye(3), colors, strict=True)
    ]


def cube_mesh(
    voxels: VoxelGroup | None,
) -> tuple[NDArray[np.float64], NDArray[np.int32], NDArray[np.uint8]]:
    """Voxels as a mesh: corners (24 K, 3) in metres, triangles (12 K, 3), corners' colours.

    Empty where there are no voxels or they are no cubes.
    """
    if voxels is None or voxels.shape != "cubes":
        return np.zeros((0, 3)), np.zeros((0, 3), np.int32), np.zeros((0, 3), np.uint8)
    unit = np.array([corners for corners, _, _ in CUBE_FACES], np.float64).reshape(1, 24, 3)
    corners = (voxels.lows()[:, None] + unit * voxels.size).reshape(-1, 3)
    shades = np.repeat([shade for _, _, shade in CUBE_FACES], 4)
    colors = voxels.colors()[:, None] * shades[None, :, None]
    first = np.arange(6 * len(voxels), dtype=np.int32)[:, None, None] * 4
    triangles = first + np.array([[0, 1, 2], [0, 2, 3]], np.int32)
    return corners, triangles.reshape(-1, 3), colors.astype(np.uint8).reshape(-1, 3)


def class_color(name: str, classes: Sequence[str]) -> tuple[int, int, int]:
    """The colour of a class, from 0 to 255; KITTI's classes have their own."""
    if name in _CLASS_COLORS:
        return _CLASS_COLORS[name]
    others = [other for other in classes if other not in _CLASS_COLORS]
    return _OTHER_CLASS_COLORS[others.index(name) % len(_OTHER_CLASS_COLORS)]


def distance_to_boxes(
    points: NDArray[np.float64], boxes: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(N,) metres from each point (N, >=3) to the nearest box (n, 7): 0 inside, inf without any."""
    nearest = np.full(len(points), np.inf)
    for x, y, z, dx, dy, dz, yaw in boxes:
        cos, sin = np.cos(yaw), np.sin(yaw)
        ahead, left = points[:, 0] - x, points[:, 1] - y
        along = np.abs(cos * ahead + sin * left) - dx / 2
        across = np.abs(cos * left - sin * ahead) - dy / 2
        above = np.abs(points[:, 2] - z) - dz / 2
        outside = np.maximum(np.stack([along, across, above]), 0)
        nearest = np.minimum(nearest, np.sqrt((outside**2).sum(axis=0)))
    return nearest


def match_boxes(
    labelled: BoxGroup,
    found: BoxGroup,
    *,
    iou: float = 0.5,
    classes: Sequence[str] | None = None,
) -> list[BoxGroup]:
    """Tells what was found of what is labelled, what was missed, and what is not there.

    In the order of their scores, boxes that were found take the labelled box of their class that
    overlaps them most in bird's-eye view and is not taken yet. This is no evaluation: difficulties
    and regions without labels play no part.

    Args:
        labelled: n boxes.
        found: m boxes; those without scores count as sure.
        iou: a match overlaps by this much or more.
        classes: labelled boxes of others were not looked for and are not missed; None: those that
            ``found`` has.

    Returns:
        Up to five groups, those without a box left out: "labelled, not looked for", "labelled and
        found", "missed", "found" and "false".

    Raises:
        DataError: ``iou`` is not above 0 and at most 1.
    """
    if not 0 < iou <= 1:
        raise DataError(f"iou must be above 0 and at most 1, got {iou}")
    overlaps = boxes_iou_bev(
        torch.from_numpy(found.boxes), torch.from_numpy(labelled.boxes)
    ).numpy()
    if labelled.names is not None and found.names is not None:
        same = np.array(found.names)[:, None] == np.array(labelled.names)[None]
        overlaps = np.where(same.reshape(overlaps.shape), overlaps, 0)
    scores = found.scores if found.scores is not None else np.ones(len(found))
    taken, right = np.zeros(len(labelled), bool), np.zeros(len(found), bool)
    for row in np.argsort(-scores, kind="stable"):
        free = np.where(taken, 0, overlaps[row])
        if len(free) and free.max() >= iou:
            taken[free.argmax()] = right[row] = True
    sought = np.ones(len(labelled), bool)
    if labelled.names is not None and (classes is not None or found.names is not None):
        wanted = found.names if classes is None else classes
        sought = np.isin(np.array(labelled.names, str), np.array(wanted or [], str))
    groups = [
        replace(labelled[~taken & ~sought], label=f"{labelled.label}, not looked for",
                color=(0.55, 0.6, 0.65)),
        replace(labelled[taken], label=f"{labelled.label} and found"),
        replace(labelled[~taken & sought], label="missed", color=MISSED),
        found[right],
        replace(found[~right], label="false", color=FALSE),
    ]  # fmt: skip
    return [group for group in groups if len(group)]


def colormap(shares: NDArray[np.float64]) -> NDArray[np.uint8]:
    """(N, 3) colours of numbers (N,), from 0 for the first colour to 1 for the last."""
    stops = np.linspace(0, 1, len(_COLORMAP))
    channels = [np.interp(shares, stops, _COLORMAP[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def _color(color: Any, where: str) -> tuple[float, float, float]:
    values = tuple(float(value) for value in color)
    if len(values) != 3 or not all(0 <= value <= 1 for value in values):
        raise DataError(f"{where}: color must be three values from 0 to 1, got {color}")
    return values


def _array(values: Any) -> NDArray[np.float64]:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double().numpy()
    return np.array(values, dtype=np.float64)
