"""The objects of many frames as flat arrays."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from voxelpool.errors import DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_COLUMNS = {
    "truncated": (),
    "occluded": (),
    "alpha": (),
    "bbox": (4,),
    "dimensions": (3,),
    "location": (3,),
    "rotation_y": (),
}


class KittiObjects(Protocol):
    """The objects of one frame: n ground-truth objects, or n detections with a score.

    Attributes:
        type: n class names.
        truncated: (n,) share of the object outside the image.
        occluded: (n,) 0 visible to 3 unknown.
        alpha: (n,) observation angle, radians; -10 means none.
        bbox: (n, 4) left, top, right, bottom in pixels.
        dimensions: (n, 3) height, width, length in metres.
        location: (n, 3) centre of the bottom face, rectified camera frame, metres.
        rotation_y: (n,) radians.
        score: (n,) confidence, higher is better; None for ground truth.
    """

    type: Any
    truncated: Any
    occluded: Any
    alpha: Any
    bbox: Any
    dimensions: Any
    location: Any
    rotation_y: Any
    score: Any


@dataclass(frozen=True)
class FlatObjects:
    """The objects of all frames, one frame after another, in file order.

    Attributes:
        frame: (n,) index of the frame of each object, ascending.
        counts: (frames,) objects per frame.
        kind: (n,) class names as :func:`fold` gives them.
        truncated: (n,), as are the rest in :class:`KittiObjects`, all float64.
        occluded: (n,).
        alpha: (n,).
        bbox: (n, 4).
        dimensions: (n, 3).
        location: (n, 3).
        rotation_y: (n,).
        score: (n,), 0 for ground truth.
    """

    frame: Ints
    counts: Ints
    kind: NDArray[np.str_]
    truncated: Floats
    occluded: Floats
    alpha: Floats
    bbox: Floats
    dimensions: Floats
    location: Floats
    rotation_y: Floats
    score: Floats

    @classmethod
    def from_frames(cls, frames: Sequence[KittiObjects], what: str, *, scored: bool) -> FlatObjects:
        """Joins frames.

        Args:
            frames: one record per frame.
            what: their name in messages.
            scored: whether every frame must have scores.

        Raises:
            DataError: a column is missing, has the wrong shape or holds a number that is not
                finite; names the position of the frame.
        """
        counts = np.array([len(frame.type) for frame in frames], dtype=np.int64)
        frame_of = np.repeat(np.arange(len(frames)), counts)
        kind = np.array([fold(name) for frame in frames for name in frame.type], dtype=np.str_)
        shapes = {**_COLUMNS, "score": ()} if scored else _COLUMNS
        columns = {"score": np.zeros(len(frame_of))}
        for name, shape in shapes.items():
            parts = [
                _column(frame, name, shape, f"{what}, frame {i}") for i, frame in enumerate(frames)
            ]
            columns[name] = np.concatenate([np.zeros((0, *shape)), *parts])
        return cls(frame=frame_of, counts=counts, kind=kind, **columns)

    def is_any(self, names: Collection[str]) -> Bools:
        """Says of each object whether its folded class name is one of ``names``; (n,) bool."""
        return np.isin(self.kind, sorted(names))


def fold(name: str) -> str:
    """Gives the form of a class name in which names compare."""
    return name.casefold()


def _column(frame: KittiObjects, name: str, shape: tuple[int, ...], where: str) -> Floats:
    values = getattr(frame, name)
    if values is None:
        raise DataError(f"{where}: no {name}")
    column = np.asarray(values, dtype=np.float64)
    expected = (len(frame.type), *shape)
    if column.shape != expected:
        raise DataError(f"{where}: {name} has shape {column.shape}, expected {expected}")
    if not np.isfinite(column).all():
        raise DataError(f"{where}: {name} is not finite")
    return column
