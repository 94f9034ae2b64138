"""KITTI's files: sweeps, labels, results, split lists and image sizes, read and written exactly.

Formats are those of the KITTI object devkit's readme. Every error names the file, and the line
where there is one.
"""

from __future__ import annotations

import difflib
import math
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from voxelpool.datasets.calibration import Calibration
from voxelpool.errors import DataError
from voxelpool.files import atomic_write

CLASSES = (
    "Car",
    "Van",
    "Truck",
    "Pedestrian",
    "Person_sitting",
    "Cyclist",
    "Tram",
    "Misc",
)
DONT_CARE = "DontCare"
# Sizes differ a little from drive to drive; this one, the most common, stands in for an image that
# is not there. (width, height).
DEFAULT_IMAGE_SIZE = (1242, 375)

_OTHER_FORMATS = {b"\x93NUMPY": "NumPy", b"# .PCD": "PCD", b"ply\n": "PLY", b"LASF": "LAS"}
_TYPES = {*CLASSES, DONT_CARE}
_COLUMNS = (
    *("truncated", "occluded", "alpha", "left", "top", "right", "bottom"),
    *("height", "width", "length", "x", "y", "z", "rotation_y", "score"),
)
# What KITTI writes, without decimals, where a column says nothing; by column as above.
_UNKNOWN = {0: -1, 2: -10, 7: -1, 8: -1, 9: -1, 10: -1000, 11: -1000, 12: -1000, 13: -10}


@dataclass(eq=False)
class KittiObjects:
    """The objects of one frame, as labelled or as detected, row by row as in the file.

    Attributes:
        type: n class names, of CLASSES or "DontCare".
        truncated: (n,) float64, share of the object outside the image, 0 to 1; -1 unknown.
        occluded: (n,) int64, 0 visible, 1 partly, 2 largely, 3 unknown; -1 not given.
        alpha: (n,) float64, observation angle in radians; -10 unknown.
        bbox: (n, 4) float64, left, top, right, bottom in pixels, 0-based.
        dimensions: (n, 3) float64, height, width, length in metres; -1 unknown.
        location: (n, 3) float64, centre of the bottom face in the rectified camera frame, metres.
        rotation_y: (n,) float64, heading about the camera's y axis in radians; -10 unknown.
        score: (n,) float64, higher is surer, or None for labels.
    """

    type: list[str]
    truncated: NDArray[np.float64]
    occluded: NDArray[np.int64]
    alpha: NDArray[np.float64]
    bbox: NDArray[np.float64]
    dimensions: NDArray[np.float64]
    location: NDArray[np.float64]
    rotation_y: NDArray[np.float64]
    score: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        self.type = [str(name) for name in self.type]
        n = len(self.type)
        widths = {"bbox": 4, "dimensions": 3, "location": 3}
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if value is None and field.name == "score":
                continue
            array = np.asarray(value, np.int64 if field.name == "occluded" else np.float64)
            shape = (n, widths[field.name]) if field.name in widths else (n,)
            if array.shape != shape:
                if array.size or n:
                    message = f"objects: {field.name} must be {shape}, got {array.shape}"
                    raise DataError(message)
                array = array.reshape(shape)
            setattr(self, field.name, array)

    def __len__(self) -> int:
        return len(self.type)

    def __getitem__(self, index: ArrayLike | slice) -> KittiObjects:
        """The chosen rows, by slice, bool mask (n,) or integer indices (k,)."""
        if not isinstance(index, slice):
            index = np.atleast_1d(np.asarray(index))
            index = index if index.size else index.astype(np.int64)
        rows = np.arange(len(self))[index]
        values = [getattr(self, field.name) for field in fields(self)[1:]]
        arrays = [None if value is None else value[rows] for value in values]
        return KittiObjects([self.type[row] for row in rows], *arrays)  # type: ignore[arg-type]

    def lidar_boxes(self, calibration: Calibration) -> NDArray[np.float64]:
        """(n, 7) boxes in the LiDAR frame; see `Calibration.boxes_to_lidar`."""
        return calibration.boxes_to_lidar(self.location, self.dimensions, self.rotation_y)

    @classmethod
    def empty(cls, *, with_score: bool = False) -> KittiObjects:
        """No objects; with a score column for results."""
        table = np.zeros((0, len(_COLUMNS)))
        return _objects([], table if with_score else table[:, :-1])


def read_sweep(path: str | os.PathLike[str], dims: int = 4) -> NDArray[np.float32]:
    """Reads a sweep of raw little-endian float32.

    Args:
        path: KITTI .bin, or another sensor's with ``dims`` values per point.
        dims: values per point: 4 for KITTI (x, y, z in metres, reflectance), 5 for nuScenes.

    Returns:
        (N, dims) float32, every point of the file, finite or not. (0, dims) for an empty file.

    Raises:
        DataError: the file's size is not a whole number of points, or it is of another format.
        OSError: the file cannot be read.
    """
    if dims < 3:
        raise DataError(f"a point has at least 3 values, got dims={dims}")
    data = Path(path).read_bytes()
    for start, name in _OTHER_FORMATS.items():
        if data.startswith(start):
            raise DataError(f"{path}: is a {name} file, not raw float32")
    if len(data) % (4 * dims):
        raise DataError(
            f"{path}: {len(data)} bytes is not a multiple of {4 * dims} ({dims} float32 per "
            f"point): the file is truncated or its points have another number of values"
        )
    points = np.frombuffer(data, "<f4").reshape(-1, dims)
    return points.astype(np.float32)  # a copy, so that it can be written to


def write_sweep(path: str | os.PathLike[str], points: ArrayLike) -> None:
    """Writes a sweep as raw little-endian float32, whole or not at all.

    Args:
        path: the .bin file; its folder must exist.
        points: (N, dims) in metres; KITTI has 4 columns.

    Raises:
        DataError: points is not a matrix.
        OSError: the file cannot be written; an older one is left as it was.
    """
    array = np.asarray(points)
    if array.ndim != 2:
        raise DataError(f"{path}: points must be (N, dims), got {array.shape}")
    with atomic_write(path, "wb") as file:
        file.write(np.ascontiguousarray(array, "<f4").tobytes())


def read_label(path: str | os.PathLike[str]) -> KittiObjects:
    """Reads a label file: 15 columns a line; an empty file is a frame without objects.

    Raises:
        DataError: wrong number of columns, unknown class name, or a value that is not a finite
            number; names file and line.
        OSError: the file cannot be read.
    """
    return _read_objects(Path(path), columns=15, kind="label")


def read_result(path: str | os.PathLike[str]) -> KittiObjects:
    """Reads a result file: 16 columns a line; an empty file is a frame without detections.

    Raises:
        DataError: as :func:`read_label`.
        OSError: the file cannot be read.
    """
    return _read_objects(Path(path), columns=16, kind="result")


def write_label(
    path: str | os.PathLike[str], objects: KittiObjects, *, decimals: int | None = None
) -> None:
    """Writes a label file of 15 columns; ``objects.score`` is left out.

    Args:
        path: the file; its folder must exist.
        objects: what to write, in this order.
        decimals: round to this many; KITTI's own labels have 2. None writes at least 2 and as
            many more as it takes to read the same numbers back.

    Raises:
        DataError: an unknown class name, or a value that is not finite.
        OSError: the file cannot be written; an older one is left as it was.
    """
    _write_objects(Path(path), objects, decimals, None)


def write_result(
    path: str | os.PathLike[str],
    objects: KittiObjects,
    *,
    decimals: int | None = None,
    score_decimals: int | None = None,
) -> None:
    """Writes a result file of 16 columns, empty if there are no objects.

    Args:
        path: the file; its folder must exist.
        objects: what to write, in this order, with scores.
        decimals: as in :func:`write_label`.
        score_decimals: round the score to this many. None writes at least 4 and as many more as
            it takes to read the same score back, so that no two scores become a tie.

    Raises:
        DataError: no scores, an unknown class name, or a value that is not finite.
        OSError: the file cannot be written; an older one is left as it was.
    """
    if objects.score is None:
        raise DataError(f"{path}: a result needs a score for every object")
    _write_objects(Path(path), objects, decimals, (objects.score, score_decimals))


def write_splits(root: str | os.PathLike[str], frame_ids: Sequence[str], val_frames: int) -> None:
    """Writes ROOT/ImageSets/{train,val,trainval}.txt, each whole or not at all.

    Args:
        root: the data set.
        frame_ids: of all frames.
        val_frames: how many of them, the last ones, are for validation.

    Raises:
        OSError: a file cannot be written.
    """
    folder = Path(root) / "ImageSets"
    folder.mkdir(exist_ok=True)
    cut = len(frame_ids) - val_frames
    splits = {"train": frame_ids[:cut], "val": frame_ids[cut:], "trainval": frame_ids}
    for name, chosen in splits.items():
        with atomic_write(folder / f"{name}.txt") as file:
            file.writelines(f"{frame_id}\n" for frame_id in chosen)


def read_split(path: str | os.PathLike[str]) -> list[str]:
    """Reads a split list: one frame id a line, blank lines skipped, order kept.

    Raises:
        DataError: a line is not a single id, or an id comes twice; names file and line.
        OSError: the file cannot be read.
    """
    seen: dict[str, int] = {}
    for number, line in enumerate(_text(Path(path)).splitlines(), start=1):
        frame_id = line.strip()
        if not frame_id:
            continue
        if len(frame_id.split()) != 1 or "/" in frame_id:
            raise DataError(f"{path}:{number}: expected one frame id, found {frame_id!r}")
        if frame_id in seen:
            raise DataError(
                f"{path}:{number}: frame {frame_id} is already in line {seen[frame_id]}"
            )
        seen[frame_id] = number
    return list(seen)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Width and height in pixels of a PNG, from its header alone.

    Raises:
        DataError: the file is not a PNG.
        OSError: the file cannot be read.
    """
    with Path(path).open("rb") as file:
        header = file.read(24)
    if len(header) < 24 or header[:8] != b"\x89PNG\r\n\x1a\n" or header[12:16] != b"IHDR":
        raise DataError(f"{path}: not a PNG image")
    width, height = struct.unpack(">II", header[16:24])
    if not width or not height:
        raise DataError(f"{path}: PNG of {width} x {height} pixels")
    return width, height


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a text file") from None


def _objects(types: list[str], table: NDArray[np.float64]) -> KittiObjects:
    """From class names and a table of the remaining 14 or 15 columns."""
    return KittiObjects(
        types,
        table[:, 0],
        table[:, 1].astype(np.int64),
        table[:, 2],
        table[:, 3:7],
        table[:, 7:10],
        table[:, 10:13],
        table[:, 13],
        table[:, 14] if table.shape[1] == 15 else None,
    )


def _check_type(name: str, where: str) -> None:
    if name not in _TYPES:
        close = difflib.get_close_matches(name.capitalize(), _TYPES, n=1)
        known = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(_TYPES))}"
        raise DataError(f"{where}: unknown class name {name!r}; {known}")


def _read_objects(path: Path, columns: int, kind: str) -> KittiObjects:
    types, rows = [], []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        where = f"{path}:{number}"
        if len(words) != columns:
            raise DataError(f"{where}: a {kind} has {columns} columns, found {len(words)}")
        _check_type(words[0], where)
        try:
            row = [float(word) for word in words[1:]]
        except ValueError:
            row = [_number(word, column, where) for column, word in enumerate(words[1:])]
        if not all(map(math.isfinite, row)):
            column = next(i for i, value in enumerate(row) if not math.isfinite(value))
            raise DataError(f"{where}: {_COLUMNS[column]} is {words[column + 1]}")
        if not row[1].is_integer():
            raise DataError(f"{where}: occluded must be a whole number, found {words[2]}")
        types.append(words[0])
        rows.append(row)
    return _objects(types, np.array(rows, np.float64).reshape(-1, columns - 1))


def _number(word: str, column: int, where: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise DataError(f"{where}: {_COLUMNS[column]} is not a number: {word!r}") from None


def _format(value: float, at_least: int, decimals: int | None) -> str:
    if decimals is not None:
        return f"{value:.{decimals}f}"
    return np.format_float_positional(value, unique=True, min_digits=at_least)


def _write_objects(
    path: Path, objects: KittiObjects, decimals: int | None, score: tuple[Any, int | None] | None
) -> None:
    table = np.column_stack(
        [
            *(objects.truncated, objects.occluded, objects.alpha, objects.bbox),
            *(objects.dimensions, objects.location, objects.rotation_y),
        ]
    )
    lines = []
    for index, (name, row) in enumerate(zip(objects.type, table, strict=True)):
        where = f"{path}: object {index}"
        _check_type(name, where)
        values = [*row, score[0][index]] if score else [*row]
        if not np.isfinite(values).all():
            column = int(np.flatnonzero(~np.isfinite(values))[0])
            raise DataError(f"{where} ({name}): {_COLUMNS[column]} is {values[column]}")
        words = [name]
        for column, value in enumerate(row):
            if column == 1 or value == _UNKNOWN.get(column):
                words.append(str(int(value)))
            else:
                words.append(_format(value, 2, decimals))
        if score:
            words.append(_format(values[-1], 4, score[1]))
        lines.append(" ".join(words) + "\n")
    with atomic_write(path) as file:
        file.writelines(lines)
