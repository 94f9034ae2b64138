"""Sweeps by themselves, with their calibration if that lies beside them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from voxelpool.datasets.calibration import Calibration, crop_to_image
from voxelpool.datasets.kitti import find_beside
from voxelpool.datasets.kitti_format import DEFAULT_IMAGE_SIZE, image_size
from voxelpool.datasets.sweep_formats import SWEEP_SUFFIXES, read_points, write_points
from voxelpool.errors import DataError

__all__ = [
    "SWEEP_SUFFIXES",
    "LoneSweep",
    "find_sweeps",
    "read_ahead",
    "read_lone_sweep",
    "read_points",
    "write_points",
]

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class LoneSweep:
    """A sweep read from a file of its own.

    Attributes:
        points: (M, dims) float32, finite, cropped to the image where there is a calibration.
        rows: (M,) int64, the place of each of them in the file.
        num_read: points in the file.
        num_nonfinite: points dropped because a value of theirs is NaN or infinite.
        num_outside_image: points dropped by the crop.
        calibration: None if there is none.
        image_size: (width, height) in pixels, None without calibration.
    """

    points: NDArray[np.float32]
    rows: NDArray[np.int64]
    num_read: int
    num_nonfinite: int
    num_outside_image: int
    calibration: Calibration | None
    image_size: tuple[int, int] | None


def read_lone_sweep(
    path: str | os.PathLike[str],
    *,
    dims: int = 4,
    crop: bool = True,
    calibration: str | os.PathLike[str] | None = None,
    intensity_max: float | None = None,
) -> LoneSweep:
    """Reads a sweep as a data set would: finite points only, cropped to the image if possible.

    Args:
        path: such as ``ROOT/training/velodyne/000042.bin`` or any other place; a file of one of
            `SWEEP_SUFFIXES`.
        dims: values per point; see `read_points`.
        crop: keep only what the image sees. Without a calibration nothing is cropped.
        calibration: its file; by default the one beside the sweep in KITTI's layout, if any. The
            image's size is taken from the image beside the sweep, else DEFAULT_IMAGE_SIZE.
        intensity_max: what stands for a reflectance of 1; see `read_points`.

    Raises:
        DataError: the sweep, the calibration or the image is bad; names the file.
        OSError: a file cannot be read.
    """
    points = read_points(path, dims=dims, intensity_max=intensity_max)
    num_read = len(points)
    rows = np.flatnonzero(np.isfinite(points).all(axis=1))
    num_nonfinite = num_read - len(rows)
    points = points[rows]
    beside = find_beside(path)
    loaded, size = None, None
    if calibration is not None or (beside is not None and beside.calibration.is_file()):
        loaded = Calibration.load(calibration or beside.calibration)  # type: ignore[union-attr]
        size = DEFAULT_IMAGE_SIZE
        if beside is not None and beside.image.is_file():
            size = image_size(beside.image)
        if crop:
            seen = crop_to_image(points, loaded, size)
            points, rows = points[seen], rows[seen]
    outside = num_read - num_nonfinite - len(rows)
    return LoneSweep(points, rows, num_read, num_nonfinite, outside, loaded, size)


def find_sweeps(paths: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The sweeps that paths mean: themselves, or those in a folder, sorted by name.

    Raises:
        DataError: a folder holds none.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        inside = [path]
        if path.is_dir():
            inside = sorted(
                file for file in path.iterdir() if file.suffix.lower() in SWEEP_SUFFIXES
            )
        if not inside:
            raise DataError(f"{path}: holds no sweep ({', '.join(SWEEP_SUFFIXES)})")
        found += inside
    return found


def read_ahead(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """Yields from ``items``, of which a thread already fetches up to ``depth`` more.

    An error in it is raised where its item would have come.
    """
    end = object()
    iterator = iter(items)
    pool = ThreadPoolExecutor(1, thread_name_prefix="read_ahead")
    try:
        ahead = deque(pool.submit(next, iterator, end) for _ in range(depth))
        while (item := ahead.popleft().result()) is not end:
            ahead.append(pool.submit(next, iterator, end))
            yield item  # type: ignore[misc]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
