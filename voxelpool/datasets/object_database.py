"""Objects cut out of training sweeps, in one file, to be pasted into others (SECOND 3.3)."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from voxelpool.datasets.kitti import Frame, KittiDataset
from voxelpool.errors import DataError
from voxelpool.files import atomic_write
from voxelpool.ops import points_in_boxes

Progress = Callable[[Iterable[int], str], Iterable[int]]


@dataclass(frozen=True, eq=False)
class ObjectDatabase:
    """Objects with their points, where they stood in their own sweeps.

    Attributes:
        points: (M, 3 + F) float32 of all objects, metres, LiDAR frame.
        offsets: (n + 1,) int64; object i has the points offsets[i] to offsets[i + 1].
        boxes: (n, 7) float32, metres and radians, LiDAR frame.
        names: (n,) class names.
        difficulty: (n,) int64: 0 easy, 1 moderate, 2 hard, 3 none of them.
        frame_ids: (n,) the frames that they come from.
    """

    points: NDArray[np.float32]
    offsets: NDArray[np.int64]
    boxes: NDArray[np.float32]
    names: NDArray[np.str_]
    difficulty: NDArray[np.int64]
    frame_ids: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def counts(self) -> NDArray[np.int64]:
        """(n,) points of each object."""
        return np.diff(self.offsets)

    def points_of(self, row: int) -> NDArray[np.float32]:
        """The points of one object."""
        return self.points[self.offsets[row] : self.offsets[row + 1]]

    def rows(self, name: str, min_points: int = 1, max_difficulty: int = 3) -> NDArray[np.int64]:
        """The objects of a class that have enough points and are not too hard."""
        fits = (self.names == name) & (self.counts >= min_points)
        return np.flatnonzero(fits & (self.difficulty <= max_difficulty))

    def of_frames(self, frame_ids: Sequence[str]) -> ObjectDatabase:
        """The objects that come from some frames."""
        kept = np.isin(self.frame_ids, list(frame_ids))
        return ObjectDatabase(
            self.points[np.repeat(kept, self.counts)],
            np.cumsum([0, *self.counts[kept]], dtype=np.int64),
            self.boxes[kept],
            self.names[kept],
            self.difficulty[kept],
            self.frame_ids[kept],
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the database, whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        with atomic_write(path, "wb") as file:
            np.savez(file, **{name: getattr(self, name) for name in _FIELDS})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ObjectDatabase:
        """Reads a database.

        Raises:
            DataError: no such file, damaged, or not written by `save`; names it.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                missing = [name for name in _FIELDS if name not in archive]
                if missing:
                    raise DataError(f"{path}: is no database of objects: has no {missing[0]}")
                database = cls(**{name: archive[name] for name in _FIELDS})
        except OSError as error:
            raise DataError(f"{path}: {error.strerror or error}") from error
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path}: is damaged or no database of objects") from error
        database._check(path)
        return database

    def _check(self, path: str | os.PathLike[str]) -> None:
        count = len(self.boxes)
        expected = {
            "points": (self.points.ndim == 2, np.float32),
            "offsets": (self.offsets.shape == (count + 1,), np.int64),
            "boxes": (self.boxes.shape == (count, 7), np.float32),
            "names": (self.names.shape == (count,), np.str_),
            "difficulty": (self.difficulty.shape == (count,), np.int64),
            "frame_ids": (self.frame_ids.shape == (count,), np.str_),
        }
        for name, (fits, dtype) in expected.items():
            array = getattr(self, name)
            if not (fits and np.issubdtype(array.dtype, dtype)):
                raise DataError(f"{path}: {name} is {array.dtype} of shape {array.shape}")
        whole = self.offsets[0] == 0 and self.offsets[-1] == len(self.points)
        if not whole or (self.counts < 0).any():
            raise DataError(f"{path}: offsets do not divide its {len(self.points)} points")
        if not (np.isfinite(self.points).all() and np.isfinite(self.boxes).all()):
            raise DataError(f"{path}: holds numbers that are not finite")


_FIELDS = ("points", "offsets", "boxes", "names", "difficulty", "frame_ids")


def build_object_database(
    frames: KittiDataset, *, progress: Progress = lambda rows, _: rows
) -> ObjectDatabase:
    """Cuts every labelled object out of its sweep; points in several boxes belong to each.

    Args:
        frames: whose objects; those without a point are left out.
        progress: wraps what is gone through, told what it is.

    Raises:
        DataError: a frame cannot be read; names the file.
    """
    cut: list[tuple[Frame, int, NDArray[np.float32]]] = []
    for index in progress(range(len(frames)), "cutting out objects"):
        frame = frames[index]
        inside = points_in_boxes(
            torch.from_numpy(frame.points), torch.from_numpy(frame.boxes)
        ).numpy()
        for row in np.flatnonzero(inside.any(0)):
            cut.append((frame, row, frame.points[inside[:, row]]))
    points = [points for _, _, points in cut]
    return ObjectDatabase(
        points=np.concatenate([np.zeros((0, 4), np.float32), *points]),
        offsets=np.cumsum([0, *map(len, points)], dtype=np.int64),
        boxes=np.array([frame.boxes[row] for frame, row, _ in cut], np.float32).reshape(-1, 7),
        names=np.array([frame.names[row] for frame, row, _ in cut], np.str_),
        difficulty=np.array([frame.difficulty[row] for frame, row, _ in cut], np.int64),
        frame_ids=np.array([frame.frame_id for frame, _, _ in cut], np.str_),
    )


def database_path(root: str | os.PathLike[str], split: str) -> Path:
    """Where tools/prepare_kitti.py --gt-database writes the database of a split."""
    return Path(root) / f"gt_database_{split}.npz"
