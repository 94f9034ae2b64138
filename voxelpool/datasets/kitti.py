"""The KITTI object data set: frames by split, from KITTI's own folder layout.

Layout: ``ROOT/{training,testing}/{velodyne,calib,label_2,image_2}/ID.*`` and
``ROOT/ImageSets/SPLIT.txt``. Simulated data sets have the same layout.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from voxelpool.datasets import calibration as _calibration
from voxelpool.datasets.calibration import Calibration, crop_to_image, observation_angle
from voxelpool.datasets.kitti_cache import CropCache
from voxelpool.datasets.kitti_format import (
    CLASSES,
    DEFAULT_IMAGE_SIZE,
    DONT_CARE,
    KittiObjects,
    image_size,
    read_label,
    read_result,
    read_split,
    read_sweep,
    write_label,
    write_result,
    write_sweep,
)
from voxelpool.errors import DataError
from voxelpool.files import shipped_folder

__all__ = [
    "CLASSES",
    "DEFAULT_IMAGE_SIZE",
    "DONT_CARE",
    "STANDARD_SPLITS",
    "Calibration",
    "Frame",
    "FramePaths",
    "KittiDataset",
    "KittiObjects",
    "check_boxes",
    "crop_to_image",
    "difficulty",
    "find_beside",
    "image_size",
    "read_label",
    "read_result",
    "read_split",
    "read_sweep",
    "results_from_boxes",
    "split_ids",
    "write_label",
    "write_result",
    "write_sweep",
]

LONGEST = 60.0
"""Metres: no side of an object is longer."""
FARTHEST = 500.0
"""Metres: no labelled object is farther off along an axis of the camera."""

STANDARD_SPLITS = ("train", "val", "trainval", "test")

# KITTI's easy, moderate and hard: 2D height above (px), occlusion and truncation at most.
_MIN_HEIGHT = (40, 25, 25)
_MAX_OCCLUDED = (0, 1, 2)
_MAX_TRUNCATED = (0.15, 0.30, 0.50)


@dataclass(frozen=True)
class FramePaths:
    """Where the files of one frame are, whether they exist or not."""

    sweep: Path
    calibration: Path
    label: Path
    image: Path

    @classmethod
    def of(cls, folder: Path, frame_id: str) -> FramePaths:
        """The paths of ``frame_id`` in ``folder`` (ROOT/training or ROOT/testing)."""
        return cls(
            folder / "velodyne" / f"{frame_id}.bin",
            folder / "calib" / f"{frame_id}.txt",
            folder / "label_2" / f"{frame_id}.txt",
            folder / "image_2" / f"{frame_id}.png",
        )


@dataclass(eq=False)
class Frame:
    """One frame, ready for augmentation and voxelization.

    Attributes:
        frame_id: such as "000042".
        points: (M, 4) float32 x, y, z in metres (LiDAR frame) and reflectance; finite; cropped to
            the image if the data set was asked to.
        boxes: (n, 7) float32 LiDAR boxes of the objects of the wanted classes: x, y, z of the
            centre, dx, dy, dz in metres, yaw in radians.
        names: n class names.
        difficulty: (n,) int64, 0 easy, 1 moderate, 2 hard, 3 none of them.
        objects: every row of the label file, DontCare included; None without a label file.
        calibration: the frame's own.
        image_size: (width, height) of image_2 in pixels; DEFAULT_IMAGE_SIZE without an image.
    """

    frame_id: str
    points: NDArray[np.float32]
    boxes: NDArray[np.float32]
    names: list[str]
    difficulty: NDArray[np.int64]
    objects: KittiObjects | None
    calibration: Calibration
    image_size: tuple[int, int]


def difficulty(objects: KittiObjects) -> NDArray[np.int64]:
    """KITTI's difficulty of every object.

    Args:
        objects: n labelled objects.

    Returns:
        (n,) int64: 0 easy, 1 moderate, 2 hard, 3 none (also for DontCare). An easy object is part
        of the moderate and of the hard set as well. As in the current devkit the 2D height has to
        exceed the minimum.
    """
    height = objects.bbox[:, 3] - objects.bbox[:, 1]
    level = np.full(len(objects), 3, np.int64)
    for index in (2, 1, 0):
        fits = (
            (height > _MIN_HEIGHT[index])
            & (objects.occluded <= _MAX_OCCLUDED[index])
            & (objects.truncated <= _MAX_TRUNCATED[index])
        )
        level[fits] = index
    level[np.array([name == DONT_CARE for name in objects.type], bool)] = 3
    return level


def check_boxes(objects: KittiObjects, path: str | os.PathLike[str]) -> None:
    """Refuses 3D boxes that no object on a road can have.

    Args:
        objects: labelled objects, none of them DontCare.
        path: their file, for the message.

    Raises:
        DataError: a side that is not positive or longer than `LONGEST`, a centre farther off than
            `FARTHEST`, or a heading beyond two turns.
    """
    sizes, places = objects.dimensions, np.abs(objects.location)
    wrong = {
        "dimensions": ~((sizes > 0) & (sizes <= LONGEST)).all(axis=1),
        "location": ~(places <= FARTHEST).all(axis=1),
        "rotation_y": ~(np.abs(objects.rotation_y) <= 4 * np.pi),
    }
    for name, rows in wrong.items():
        if rows.any():
            row = int(rows.argmax())
            value = np.round(getattr(objects, name)[row], 2).tolist()
            raise DataError(f"{path}: {objects.type[row]} with {name} {value}, which cannot be")


def results_from_boxes(
    boxes: ArrayLike,
    scores: ArrayLike,
    names: Sequence[str],
    calibration: Calibration,
    image_size: tuple[int, int],
) -> KittiObjects:
    """Detections in the LiDAR frame as KITTI results.

    A KITTI result needs a 2D box, on whose height the evaluation filters even for 3D: detections
    that do not project into the image are left out.

    Args:
        boxes: (n, 7) LiDAR boxes, metres and radians.
        scores: (n,) higher is surer.
        names: n class names.
        calibration: of the frame.
        image_size: (width, height) of the frame's image in pixels.

    Returns:
        k <= n results in the given order: bbox is the projection clipped to the image, truncated
        and occluded are -1, alpha = rotation_y - atan2(x, z). Boxes are rounded to 4 decimals.

    Raises:
        DataError: lengths that do not fit, or a box or score that is not finite.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 7)
    scores = np.asarray(scores, np.float64).reshape(-1)
    if not len(boxes) == len(scores) == len(names):
        raise DataError(f"{len(boxes)} boxes, {len(scores)} scores, {len(names)} names")
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise DataError("a detection's box or score is NaN or infinite")
    bbox = calibration.boxes_to_image(boxes, image_size).round(4)
    rows = np.flatnonzero((bbox[:, 2] > bbox[:, 0]) & (bbox[:, 3] > bbox[:, 1]))
    location, dimensions, rotation_y = calibration.boxes_to_camera(boxes[rows])
    return KittiObjects(
        [names[row] for row in rows.tolist()],
        np.full(len(rows), -1.0),
        np.full(len(rows), -1),
        observation_angle(location, rotation_y).round(4),
        bbox[rows],
        dimensions.round(4),
        location.round(4),
        rotation_y.round(4),
        scores[rows],
    )


def spread_rows(count: int, limit: int | None) -> list[int]:
    """``limit`` rows spread evenly over ``count``; all of them if there are no more, or None."""
    if limit is None or limit >= count:
        return list(range(count))
    return [row * count // limit for row in range(limit)]


def split_ids(root: str | os.PathLike[str], split: str | os.PathLike[str]) -> list[str]:
    """The frame ids of a split.

    Args:
        root: the data set; ``root/ImageSets/SPLIT.txt`` is looked up first. For "train", "val",
            "trainval" and "test" the standard lists that come with the project are next.
        split: its name, or the path of a list (ending in .txt).

    Raises:
        DataError: there is no such list; the message says where it was looked for.
    """
    if str(split).endswith(".txt"):
        return read_split(split)
    own = Path(root) / "ImageSets" / f"{split}.txt"
    if own.is_file():
        return read_split(own)
    shipped = shipped_folder("datasets/ImageSets", "data/kitti/ImageSets") / f"{split}.txt"
    if split in STANDARD_SPLITS and shipped.is_file():
        return read_split(shipped)
    have = sorted({path.stem for path in own.parent.glob("*.txt")})
    raise DataError(
        f"{own}: no such split list (found there: {', '.join(have) or 'none'}); write the frame "
        f"ids to it, one a line; data/README.md says where KITTI's own lists come from"
    )


def find_beside(sweep: str | os.PathLike[str]) -> FramePaths | None:
    """The files that belong to a sweep in KITTI's layout, whether they exist or not.

    Args:
        sweep: such as ``ROOT/training/velodyne/000042.bin``.

    Returns:
        The frame's paths, or None if the sweep does not lie in a folder named ``velodyne``.
    """
    sweep = Path(sweep).absolute()
    paths = FramePaths.of(sweep.parent.parent, sweep.stem)
    return paths if paths.sweep == sweep else None


class KittiDataset:
    """A split of a KITTI data set as a sequence of :class:`Frame`.

    Construction lists folders and reads nothing but the split list. Instances can be pickled, and
    an instance of the ``torch.utils.data.Dataset`` protocol is all that a DataLoader needs.

    Points that are not finite are dropped with a warning that names the file, or are an error
    with ``nonfinite="raise"``. Cropped sweeps that ``tools/prepare_kitti.py --cache`` wrote are
    used where they still belong to the frame (see :class:`CropCache`); they hold the very points
    that cropping gives.

    Args:
        root: the folder that holds ``training`` and ``testing``.
        split: "train", "val", "trainval", "test", another list in ``root/ImageSets``, or a path to
            a list ending in .txt.
        classes: keep boxes of these classes only, in the label's order; None keeps all but
            DontCare.
        crop_to_image: keep only the points that image_2 sees. KITTI labels nothing else.
        folder: "training" or "testing"; by default "testing" for the split "test", else "training".
        require_labels: a frame without a label file is an error, at construction; otherwise it
            has no boxes and ``objects`` is None.
        cache: use cropped sweeps below ``root`` (True), not at all (False) or below another folder.
        nonfinite: "drop" or "raise".
        odd_labels: "keep" boxes of the wanted classes whatever their size and place, or "raise"
            where no object can be so; see `check_boxes`.
        limit: keep so many frames, spread evenly over the split.

    Raises:
        DataError: a folder, a split list or a frame's file is missing, or a class is unknown.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str | os.PathLike[str] = "train",
        *,
        classes: Sequence[str] | None = None,
        crop_to_image: bool = True,
        folder: str | None = None,
        require_labels: bool = False,
        cache: bool | str | os.PathLike[str] = True,
        nonfinite: str = "drop",
        odd_labels: str = "keep",
        limit: int | None = None,
    ) -> None:
        self.root = Path(root)
        self.split = str(split)
        self.classes = None if classes is None else tuple(classes)
        self.crop = crop_to_image
        if nonfinite not in ("drop", "raise"):
            raise ValueError(f"nonfinite must be 'drop' or 'raise', got {nonfinite!r}")
        self.nonfinite = nonfinite
        if odd_labels not in ("keep", "raise"):
            raise ValueError(f"odd_labels must be 'keep' or 'raise', got {odd_labels!r}")
        self.odd_labels = odd_labels
        unknown = set(self.classes or ()) - set(CLASSES)
        if unknown:
            raise DataError(f"unknown class {sorted(unknown)}; known: {', '.join(CLASSES)}")
        self.folder = self.root / (folder or ("testing" if self.split == "test" else "training"))
        needed = ["velodyne", "calib", *(["label_2"] if require_labels else [])]
        for name in needed:
            if not (self.folder / name).is_dir():
                raise DataError(
                    f"{self.folder / name}: no such folder; data/README.md says what to download "
                    f"and where to put it"
                )
        frame_ids = split_ids(self.root, split)
        self.frame_ids = [frame_ids[row] for row in spread_rows(len(frame_ids), limit)]
        for name in needed:
            self._check_present(name)
        self._cache = None
        if crop_to_image and cache is not False:
            base = self.root if cache is True else Path(cache)
            self._cache = CropCache(base / self.folder.name / "velodyne_cropped")

    def _check_present(self, name: str) -> None:
        suffix = ".bin" if name == "velodyne" else ".txt"
        there = {entry.name for entry in os.scandir(self.folder / name)}
        missing = [frame for frame in self.frame_ids if frame + suffix not in there]
        if missing:
            raise DataError(
                f"{self.folder / name}: {len(missing)} of the {len(self.frame_ids)} frames of "
                f"split {self.split!r} are missing, the first is {missing[0]}{suffix}"
            )

    def __len__(self) -> int:
        return len(self.frame_ids)

    def paths(self, index: int) -> FramePaths:
        """The files of frame ``index``."""
        return FramePaths.of(self.folder, self.frame_ids[index])

    def __getitem__(self, index: int) -> Frame:
        """Reads frame ``index``.

        Raises:
            IndexError: there is no such frame.
            DataError: one of its files is bad; the message names it.
        """
        paths = self.paths(index)
        calibration = Calibration.load(paths.calibration)
        size = image_size(paths.image) if paths.image.is_file() else DEFAULT_IMAGE_SIZE
        objects = read_label(paths.label) if paths.label.is_file() else None
        known = objects if objects is not None else KittiObjects.empty()
        wanted = CLASSES if self.classes is None else self.classes
        chosen = known[[row for row, name in enumerate(known.type) if name in wanted]]
        if self.odd_labels == "raise":
            check_boxes(chosen, paths.label)
        boxes = chosen.lidar_boxes(calibration)
        return Frame(
            self.frame_ids[index],
            self._points(paths, calibration, size),
            boxes.astype(np.float32),
            chosen.type,
            difficulty(chosen),
            objects,
            calibration,
            size,
        )

    def _points(
        self, paths: FramePaths, calibration: Calibration, size: tuple[int, int]
    ) -> NDArray[np.float32]:
        if self._cache is not None:
            cached = self._cache.read(paths.sweep, calibration, size)
            if cached is not None:
                return cached
        points = read_sweep(paths.sweep)
        finite = np.isfinite(points).all(axis=1)
        if not finite.all():
            message = f"{paths.sweep}: {np.count_nonzero(~finite)} points are not finite"
            if self.nonfinite == "raise":
                raise DataError(message)
            warnings.warn(f"{message}; dropped", stacklevel=3)
            points = points[finite]
        if self.crop:
            points = points[_calibration.crop_to_image(points, calibration, size)]
        return points
