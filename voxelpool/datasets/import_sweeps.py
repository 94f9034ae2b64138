"""A folder of sweeps and boxes, of any sensor, brought into KITTI's layout.

The boxes are in the LiDAR frame, as CSV or JSON; a KITTI label is in a camera's. Where there is no
camera, one is put at the sensor, looking ahead, with the image that KITTI's evaluation assumes.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxelpool.datasets.calibration import Calibration, observation_angle, wrap_angle
from voxelpool.datasets.kitti_format import (
    CLASSES,
    DEFAULT_IMAGE_SIZE,
    KittiObjects,
    write_label,
    write_splits,
    write_sweep,
)
from voxelpool.datasets.sweep_formats import read_points
from voxelpool.errors import DataError

KITTI_HEIGHT = 1.73
"""Metres of KITTI's sensor above the road, which grids and anchors are made for."""
AHEAD = {"x": 0.0, "y": -math.pi / 2, "-x": math.pi, "-y": math.pi / 2}
"""Turns, counter-clockwise, that bring an axis of a sensor to x, which is ahead here."""

_NAMES: dict[str, tuple[str, ...]] = {
    "frame": ("frame", "frame_id", "sweep", "file"),
    "class": ("class", "name", "label", "type", "category"),
    "x": ("x",),
    "y": ("y",),
    "z": ("z",),
    "dx": ("dx", "length", "l"),
    "dy": ("dy", "width", "w"),
    "dz": ("dz", "height", "h"),
    "yaw": ("yaw", "heading", "rotation"),
    "truncated": ("truncated",),
    "occluded": ("occluded",),
}
_NUMBERS = ("x", "y", "z", "dx", "dy", "dz", "yaw")
_OPTIONAL = {"truncated": 0.0, "occluded": 0.0}


@dataclass(frozen=True)
class LabelledBox:
    """A box of a frame.

    Attributes:
        name: its class.
        box: x, y, z of the centre, dx, dy, dz in metres, yaw in radians; LiDAR frame.
        truncated: share of it outside the image, 0 to 1.
        occluded: 0 visible, 1 partly, 2 largely hidden, 3 unknown.
    """

    name: str
    box: tuple[float, float, float, float, float, float, float]
    truncated: float = 0.0
    occluded: int = 0


@dataclass(frozen=True)
class ImportSettings:
    """How foreign sweeps become those of this package.

    Attributes:
        val_frames: how many frames, the last ones by name, are for validation.
        dims: values per point in .bin files.
        intensity_max: what stands for full reflectance; see `read_points`.
        ahead: the sensor's axis that looks ahead: "x", "y", "-x" or "-y".
        sensor_height: metres above the ground; sweeps are raised or lowered so that the ground lies
            where KITTI's does. None leaves them.
        classes: KITTI's class for each class of the boxes; None takes them as they are. Boxes of a
            class that is not in it are left out.
    """

    val_frames: int = 0
    dims: int = 4
    intensity_max: float | None = None
    ahead: str = "x"
    sensor_height: float | None = None
    classes: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if self.ahead not in AHEAD:
            raise DataError(f"ahead must be one of {', '.join(AHEAD)}, got {self.ahead!r}")
        for name in (self.classes or {}).values():
            if name not in CLASSES:
                raise DataError(f"{name!r} is no class of KITTI's: {', '.join(CLASSES)}")


def camera_at_sensor() -> Calibration:
    """A camera of KITTI's focal length that stands at the sensor and looks along x."""
    width, height = DEFAULT_IMAGE_SIZE
    P2 = np.array([[721.5, 0, width / 2, 0], [0, 721.5, height / 2, 0], [0, 0, 1, 0]])
    return Calibration(P2, np.eye(3), np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0]]))


def read_boxes(path: str | os.PathLike[str]) -> dict[str, list[LabelledBox]]:
    """Reads the boxes of all frames.

    Args:
        path: a .csv or .json file with a column that names the frame, or a folder of such files,
            one a frame and named as its sweep. In JSON: a list of boxes with their keys, or a
            mapping of frames to lists. Columns and keys: frame, class, x, y, z of the centre, dx
            (or length), dy (width), dz (height), yaw; truncated and occluded may be left out.

    Returns:
        Boxes by frame; a frame is the name of its sweep without folder and suffix.

    Raises:
        DataError: a column is missing or a value is no number; names file and row.
        OSError: a file cannot be read.
    """
    path = Path(path)
    if not path.is_dir():
        return _by_frame(_records(path), path, None)
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in (".csv", ".json"))
    if not files:
        raise DataError(f"{path}: holds no .csv or .json file")
    boxes: dict[str, list[LabelledBox]] = {}
    for file in files:
        if file.stem in boxes:
            raise DataError(f"{file}: the boxes of {file.stem} are in another file too")
        boxes[file.stem] = _by_frame(_records(file), file, file.stem).get(file.stem, [])
    return boxes


def check_frames(
    sweeps: Sequence[Path], boxes: Mapping[str, object], settings: ImportSettings
) -> None:
    """Refuses sweeps and boxes that do not fit together.

    Raises:
        DataError: two sweeps of one name, a name with a space, boxes of a frame without a sweep, or
            more frames for validation than there are.
    """
    names = [path.stem for path in sweeps]
    for path in sweeps:
        if names.count(path.stem) > 1:
            raise DataError(f"{path}: another sweep is named {path.stem} too")
        if path.stem.split() != [path.stem]:
            raise DataError(f"{path}: frames are listed by their names, which must have no space")
    without = sorted(set(boxes) - set(names))
    if without:
        raise DataError(
            f"{len(without)} of {len(boxes)} frames with boxes have no sweep, the first is "
            f"{without[0]} (sweeps: {names[0]} to {names[-1]})"
        )
    if not 0 <= settings.val_frames < len(names):
        raise DataError(f"{settings.val_frames} frames for validation, of {len(names)} in all")


def write_frames(
    folder: Path,
    sweeps: Iterable[Path],
    boxes: Mapping[str, Sequence[LabelledBox]],
    settings: ImportSettings,
) -> dict[str, int]:
    """Writes sweeps, labels, calibrations and splits in KITTI's layout.

    A sweep without boxes is a frame without objects. Boxes keep their whole size; what of them the
    image shows is what KITTI's evaluation judges their difficulty by.

    Args:
        folder: where to; empty.
        sweeps: files, in the order of their frames.
        boxes: of each frame.
        settings: how.

    Returns:
        How many boxes of each class were written.

    Raises:
        DataError: a sweep or a box is bad; names it.
        OSError: a file cannot be read or written.
    """
    training = folder / "training"
    for name in ("velodyne", "label_2", "calib"):
        (training / name).mkdir(parents=True)
    calibration = camera_at_sensor()
    names: list[str] = []
    counts: dict[str, int] = {}
    for path in sweeps:
        wanted = [box for box in boxes.get(path.stem, ()) if _wanted(box, settings)]
        objects = _objects([_moved(box, settings) for box in wanted], calibration)
        points = _turned(_four_columns(path, settings), settings)
        for name in objects.type:
            counts[name] = counts.get(name, 0) + 1
        write_sweep(training / "velodyne" / f"{path.stem}.bin", points)
        write_label(training / "label_2" / f"{path.stem}.txt", objects)
        calibration.save(training / "calib" / f"{path.stem}.txt")
        names.append(path.stem)
    write_splits(folder, names, settings.val_frames)
    return counts


def _records(path: Path) -> list[tuple[str, Any]]:
    """(where, record) of each box of a file."""
    if path.suffix.lower() == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            try:
                table = csv.DictReader(file, skipinitialspace=True)
                return [(f"{path}:{table.line_num}", row) for row in table]
            except (UnicodeDecodeError, csv.Error) as error:
                raise DataError(f"{path}: is no CSV: {error}") from None
    if path.suffix.lower() != ".json":
        raise DataError(f"{path}: boxes are .csv or .json files, or a folder of them")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: is no JSON: {error}") from None
    if isinstance(values, dict):
        if not all(isinstance(boxes, list) for boxes in values.values()):
            raise DataError(f"{path}: must map each frame to a list of boxes")
        return [
            (
                f"{path}: {frame}[{number}]",
                {"frame": frame, **row} if isinstance(row, dict) else row,
            )
            for frame, rows in values.items()
            for number, row in enumerate(rows)
        ]
    if not isinstance(values, list):
        raise DataError(f"{path}: must be a list of boxes, or map frames to such lists")
    return [(f"{path}: [{number}]", row) for number, row in enumerate(values)]


def _by_frame(
    records: list[tuple[str, Any]], path: Path, frame: str | None
) -> dict[str, list[LabelledBox]]:
    boxes: dict[str, list[LabelledBox]] = {}
    for where, record in records:
        if not isinstance(record, dict):
            raise DataError(f"{where}: must be a mapping of keys to values, got {record!r}")
        values = {str(key).strip().lower(): value for key, value in record.items()}
        of = frame if frame is not None else str(_value(values, "frame", where)).strip()
        boxes.setdefault(Path(of).stem if frame is None else of, []).append(_box(values, where))
    return boxes


def _box(values: Mapping[str, Any], where: str) -> LabelledBox:
    numbers = {}
    for name in (*_NUMBERS, *_OPTIONAL):
        value = _value(values, name, where)
        try:
            numbers[name] = float(value)
        except (TypeError, ValueError):
            raise DataError(f"{where}: {name} is no number: {value!r}") from None
        if not math.isfinite(numbers[name]):
            raise DataError(f"{where}: {name} is {numbers[name]}")
    if min(numbers[name] for name in ("dx", "dy", "dz")) <= 0:
        raise DataError(f"{where}: dx, dy and dz must be positive")
    name = str(_value(values, "class", where)).strip()
    box = tuple(numbers[name] for name in _NUMBERS)
    return LabelledBox(name, box, numbers["truncated"], int(numbers["occluded"]))  # type: ignore[arg-type]


def _value(values: Mapping[str, Any], name: str, where: str) -> Any:
    for known in _NAMES[name]:
        if values.get(known) not in (None, ""):
            return values[known]
    if name in _OPTIONAL:
        return _OPTIONAL[name]
    have = ", ".join(map(str, values)) or "none"
    raise DataError(f"{where}: has no {' or '.join(_NAMES[name])} (there are: {have})")


def _wanted(box: LabelledBox, settings: ImportSettings) -> bool:
    if settings.classes is not None:
        return box.name in settings.classes
    if box.name in CLASSES:
        return True
    raise DataError(
        f"class {box.name!r} is none of KITTI's ({', '.join(CLASSES)}); say which it is to be, or "
        f"leave it out, by naming the classes that are wanted"
    )


def _moved(box: LabelledBox, settings: ImportSettings) -> LabelledBox:
    name = box.name if settings.classes is None else settings.classes[box.name]
    centre = _turned(np.array([box.box[:3]]), settings)[0]
    yaw = float(wrap_angle(box.box[6] + AHEAD[settings.ahead]))
    return replace(box, name=name, box=(*centre.tolist(), *box.box[3:6], yaw))


def _turned(points: NDArray[Any], settings: ImportSettings) -> NDArray[Any]:
    """Points with ahead along x and the ground at KITTI's height."""
    x, y = points[:, 0], points[:, 1]
    turned = {"x": (x, y), "y": (y, -x), "-x": (-x, -y), "-y": (-y, x)}[settings.ahead]
    result = points.copy()
    result[:, 0], result[:, 1] = turned
    if settings.sensor_height is not None:
        result[:, 2] += settings.sensor_height - KITTI_HEIGHT
    return result


def _four_columns(path: Path, settings: ImportSettings) -> NDArray[np.float32]:
    dims = settings.dims if path.suffix.lower() == ".bin" else 4
    points = read_points(path, dims=dims, intensity_max=settings.intensity_max)
    if points.shape[1] == 3:
        points = np.pad(points, ((0, 0), (0, 1)))
    return points[:, :4]


def _objects(boxes: Sequence[LabelledBox], calibration: Calibration) -> KittiObjects:
    array = np.array([box.box for box in boxes], np.float64).reshape(-1, 7)
    location, dimensions, rotation_y = calibration.boxes_to_camera(array)
    return KittiObjects(
        [box.name for box in boxes],
        np.array([box.truncated for box in boxes]),
        np.array([box.occluded for box in boxes]),
        observation_angle(location, rotation_y),
        calibration.boxes_to_image(array, DEFAULT_IMAGE_SIZE),
        dimensions,
        location,
        rotation_y,
    )
