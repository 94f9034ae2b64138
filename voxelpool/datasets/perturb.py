"""Perturbed test input: points dropped, noise, shifts, scales and bends, the same each time."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from voxelpool.datasets.augment import frame_generator
from voxelpool.datasets.kitti import Frame, KittiDataset
from voxelpool.datasets.objects import ObjectSet

Kind = Literal["drop", "noise", "flip", "shift", "scale", "bend"]

_UNITS = {
    "drop": "{:.0%} dropped",
    "noise": "noise {:g} cm",
    "flip": "{:.1%} flipped",
    "shift": "shifted {:g}",
    "scale": "scaled {:g}",
    "bend": "bent {:g}",
}


@dataclass(frozen=True)
class Perturbation:
    """One change of the input; every object or sweep has a random generator of its own.

    Attributes:
        kind: "drop": an exact share of the points, or of the occupied cells, is taken away, never
            all; "noise": points move by a Gaussian along each axis; "flip": an exact share of all
            cells turns over; "shift": along each axis, up or down at random; "scale": about the
            middle; "bend": each level is shifted to the side, by a sine wave along the height
            whose two phases are random.
        amount: a share for "drop" and "flip", standard deviation in centimetres for "noise" (where
            an edge of 32 cells is 6.4 m long), cells for "shift" and "bend" (amplitude), a factor
            for "scale".
    """

    kind: Kind
    amount: float

    @property
    def name(self) -> str:
        """Such as "drop 0.25"."""
        return f"{self.kind} {self.amount:g}"

    @property
    def label(self) -> str:
        """For people, such as "25% dropped"."""
        return _UNITS[self.kind].format(self.amount)

    def generator(self, object_id: str) -> np.random.Generator:
        """Of one object or frame."""
        return frame_generator(0, zlib.crc32(self.name.encode()), object_id)


_DROPS = tuple(Perturbation("drop", share) for share in (0.25, 0.5, 0.75))
_NOISES = tuple(Perturbation("noise", deviation) for deviation in (2.0, 5.0))
_FLIPS = tuple(Perturbation("flip", share) for share in (0.005, 0.01))
_SHAPES = (
    Perturbation("shift", 2.0),
    Perturbation("shift", 4.0),
    Perturbation("scale", 0.9),
    Perturbation("scale", 1.1),
    Perturbation("bend", 1.5),
)

ON_SWEEPS: tuple[Perturbation, ...] = _DROPS + _NOISES
ON_POINTS: tuple[Perturbation, ...] = _DROPS + _NOISES + _SHAPES
ON_GRIDS: tuple[Perturbation, ...] = _DROPS + _FLIPS + _SHAPES


def kept_rows(count: int, share: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """What is left of ``count`` rows when ``share`` of them are dropped, in order; at least one."""
    keep = min(count, max(1, count - round(share * count)))
    return np.sort(rng.permutation(count)[:keep])


def perturb_points(
    points: NDArray[np.float32], change: Perturbation, object_id: str, cell: float
) -> NDArray[np.float32]:
    """Changes the points of an object or a sweep.

    Args:
        points: (N, >= 3), about the middle of the object.
        change: anything but "flip".
        object_id: decides the random numbers.
        cell: edge of a cell in the units of the points; of 20 cm to centimetres.

    Returns:
        (M, as wide), a copy.

    Raises:
        ValueError: a kind that points do not have.
    """
    rng = change.generator(object_id)
    if change.kind == "drop":
        return points[kept_rows(len(points), change.amount, rng)]
    moved = points.copy()
    xyz = points[:, :3].astype(np.float64)
    if change.kind == "noise":
        xyz += rng.normal(scale=change.amount * cell / 20, size=xyz.shape)
    elif change.kind == "shift":
        xyz += cell * change.amount * rng.choice((-1.0, 1.0), 3)
    elif change.kind == "scale":
        xyz *= change.amount
    elif change.kind == "bend":
        phases = rng.uniform(0, 2 * math.pi, 2)
        turns = 2 * math.pi * xyz[:, 2:3] / (32 * cell)
        xyz[:, :2] += cell * change.amount * np.sin(turns + phases)
    else:
        raise ValueError(f"points have no {change.kind}")
    moved[:, :3] = xyz
    return moved


def perturb_grid(
    grid: NDArray[np.uint8], change: Perturbation, object_id: str
) -> NDArray[np.uint8]:
    """Changes the grid of an object; what leaves it is lost.

    Args:
        grid: (D, H, W), 0 or 1, axes z (up), y, x.
        change: anything but "noise".
        object_id: decides the random numbers.

    Returns:
        (D, H, W), a copy.

    Raises:
        ValueError: a kind that grids do not have.
    """
    rng = change.generator(object_id)
    if change.kind == "flip":
        out = grid.copy().reshape(-1)
        out[rng.permutation(out.size)[: round(change.amount * out.size)]] ^= 1
        return out.reshape(grid.shape)
    cells = np.argwhere(grid)
    if change.kind == "drop":
        return _filled(cells[kept_rows(len(cells), change.amount, rng)], grid)
    if change.kind == "shift":
        return _filled(cells + round(change.amount) * rng.choice((-1, 1), 3), grid)
    if change.kind == "bend":
        phases = rng.uniform(0, 2 * math.pi, 2)
        turns = 2 * math.pi * cells[:, :1] / len(grid)
        cells[:, 1:] += np.rint(change.amount * np.sin(turns + phases)).astype(np.int64)
        return _filled(cells, grid)
    if change.kind != "scale":
        raise ValueError(f"grids have no {change.kind}")
    middle = (np.array(grid.shape) - 1) / 2
    if change.amount <= 1:  # every cell goes somewhere: thin walls stay whole
        return _filled(np.rint((cells - middle) * change.amount + middle).astype(np.int64), grid)
    places = np.stack(np.indices(grid.shape), axis=-1).reshape(-1, 3)
    sources = np.rint((places - middle) / change.amount + middle).astype(np.int64)
    return np.ascontiguousarray(grid[tuple(sources.T)].reshape(grid.shape))


def _filled(cells: NDArray[np.int64], like: NDArray[np.uint8]) -> NDArray[np.uint8]:
    inside = ((cells >= 0) & (cells < like.shape)).all(axis=1)
    out = np.zeros_like(like)
    out[tuple(cells[inside].T)] = 1
    return out


def perturb_objects(objects: ObjectSet, change: Perturbation, cell: float) -> ObjectSet:
    """Changes every object of a set; see `perturb_grid` and `perturb_points`.

    The sensor moves along with shifted points, as the change is one of where the object lies in
    its window.
    """
    if objects.grids is not None:
        grids = [
            perturb_grid(grid, change, object_id)
            for grid, object_id in zip(objects.grids, objects.ids, strict=True)
        ]
        return replace(objects, grids=np.stack(grids) if grids else objects.grids)
    assert objects.points is not None
    parts, origins = [], objects.origins
    for row, object_id in enumerate(objects.ids):
        points = objects.points[objects.offsets[row] : objects.offsets[row + 1]]
        parts.append(perturb_points(points, change, object_id, cell))
    if change.kind == "shift":
        moved = [
            perturb_points(origin[None], change, object_id, cell)
            for origin, object_id in zip(origins, objects.ids, strict=True)
        ]
        origins = np.concatenate([origins[:0], *moved])
    return replace(
        objects,
        points=np.concatenate([objects.points[:0], *parts]),
        offsets=np.cumsum([0, *map(len, parts)], dtype=np.int64),
        origins=origins,
    )


class PerturbedFrames(Dataset[Frame]):
    """The frames of a data set with changed sweeps; boxes and labels stay as they are.

    Args:
        frames: the data set.
        change: "drop" or "noise"; None changes nothing.
        rows: only these frames; None: all.
    """

    def __init__(
        self,
        frames: KittiDataset,
        change: Perturbation | None,
        rows: Sequence[int] | None = None,
    ) -> None:
        if change is not None and change.kind not in ("drop", "noise"):
            raise ValueError(f"sweeps have no {change.kind}")
        self.frames = frames
        self.change = change
        self.rows = range(len(frames)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Frame:
        frame = self.frames[self.rows[row]]
        if self.change is None or not len(frame.points):
            return frame
        points = perturb_points(frame.points, self.change, frame.frame_id, cell=0.2)
        return replace(frame, points=points)
