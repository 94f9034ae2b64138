"""Checks a KITTI download, or any data set in its layout, file by file."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from voxelpool.datasets.calibration import Calibration, crop_to_image
from voxelpool.datasets.kitti import STANDARD_SPLITS, FramePaths, split_ids
from voxelpool.datasets.kitti_cache import CropCache
from voxelpool.datasets.kitti_format import (
    DEFAULT_IMAGE_SIZE,
    DONT_CARE,
    KittiObjects,
    image_size,
    read_label,
    read_sweep,
)
from voxelpool.errors import DataError

# KITTI's own sweeps have 78,596 to 128,467 points (all 7,481 training frames).
_FEW_POINTS, _MANY_POINTS = 20_000, 300_000
_FAR = 250.0  # metres; KITTI's sensor sees 80
_SUFFIX = {"velodyne": ".bin", "calib": ".txt", "label_2": ".txt", "image_2": ".png"}
FRAMES = {"training": 7481, "testing": 7518}  # in KITTI itself

Progress = Callable[[Iterable[str], str], Iterable[str]]


@dataclass(frozen=True)
class Problem:
    """Something wrong with one file or folder; an "error" makes the data set unusable."""

    severity: Literal["error", "warning"]
    path: Path
    message: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.path}: {self.message}"


@dataclass
class FolderReport:
    """What is in ``training`` or ``testing``.

    Attributes:
        frames: number of frames checked.
        images: how many of them have an image.
        points: points of each readable sweep.
        cropped: points of each that its image sees.
        objects: number of labelled objects by class.
        newly_cached: cropped sweeps written now.
        already_cached: cropped sweeps that were there and up to date.
    """

    frames: int = 0
    images: int = 0
    points: list[int] = field(default_factory=list)
    cropped: list[int] = field(default_factory=list)
    objects: Counter[str] = field(default_factory=Counter)
    newly_cached: int = 0
    already_cached: int = 0


@dataclass
class Report:
    """The outcome of :func:`check_kitti`.

    Attributes:
        problems: in the order found.
        folders: one report for each of ``training`` and ``testing`` that was checked.
        splits: every split looked at, with the number of its frames that are missing.
    """

    problems: list[Problem] = field(default_factory=list)
    folders: dict[str, FolderReport] = field(default_factory=dict)
    splits: dict[str, int] = field(default_factory=dict)

    @property
    def errors(self) -> list[Problem]:
        """The problems that make the data set unusable."""
        return [problem for problem in self.problems if problem.severity == "error"]

    @property
    def complete_splits(self) -> list[str]:
        """The splits of which every frame is there."""
        return [split for split, missing in self.splits.items() if not missing]

    @property
    def usable(self) -> bool:
        """Whether there is no error."""
        return not self.errors

    def verdict(self) -> str:
        """One line."""
        warnings = len(self.problems) - len(self.errors)
        if not self.usable:
            return f"NOT usable: {len(self.errors)} errors, {warnings} warnings"
        frames = sum(folder.frames for folder in self.folders.values())
        splits = ", ".join(self.complete_splits)
        return f"usable: {frames} frames, complete splits: {splits}; {warnings} warnings"


def check_kitti(
    root: str | os.PathLike[str],
    splits: Sequence[str] | None = None,
    *,
    cache: bool = False,
    cache_root: str | os.PathLike[str] | None = None,
    progress: Progress = lambda frame_ids, description: frame_ids,
) -> Report:
    """Checks every file of a data set in KITTI's layout.

    Errors are: a missing folder, a file that cannot be parsed, a frame of which the sweep, the
    calibration or (in ``training``) the label is missing while another of its files is there, an
    asked-for split that is not complete, or no complete split at all. Missing images, odd point
    counts, odd values and lists with frames of which nothing is there are warnings.

    Args:
        root: the folder that holds ``training`` and ``testing``.
        splits: check the frames of these splits only, and insist on them; None checks all
            frames, and says of each list in ``root/ImageSets``, or of KITTI's standard lists if
            there is none, whether it is complete.
        cache: also write the cropped sweeps of frames without errors.
        cache_root: write them below this folder instead of below ``root``.
        progress: wraps an iterable of frame ids, with a description; for a progress bar.

    Raises:
        DataError: ``root`` is not a folder, or a split has no list.
        OSError: the cache cannot be written.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; data/README.md says what to download")
    report = Report()
    wanted: dict[str, list[str]] = {}
    own = sorted(path.stem for path in (root / "ImageSets").glob("*.txt"))
    for split in splits or own or STANDARD_SPLITS:
        wanted[split] = split_ids(root, split)
    for name in FRAMES:
        used = [split for split in wanted if _folder_of(split) == name]
        if splits and not used:
            continue
        if not (root / name).is_dir() and name == "testing" and not splits:
            continue
        only = {frame for split in used for frame in wanted[split]} if splits else None
        present = _check_folder(
            root / name, only, report, (Path(cache_root or root)) if cache else None, progress
        )
        for split in used:
            _check_split(root, split, wanted[split], present, bool(splits), report)
    if report.splits and not report.complete_splits and not report.errors:
        hint = "" if own else "; there are no lists here, so KITTI's own were looked for"
        _add(report, "error", root / "ImageSets", f"no split is complete{hint}")
    return report


def _folder_of(split: str) -> str:
    return "testing" if split == "test" else "training"


def _add(report: Report, severity: Literal["error", "warning"], path: Path, message: str) -> None:
    report.problems.append(Problem(severity, path, message))


def _ids(folder: Path, name: str) -> set[str] | None:
    """The frame ids in a folder, None if it is not there."""
    if not (folder / name).is_dir():
        return None
    suffix = _SUFFIX[name]
    names = (entry.name for entry in os.scandir(folder / name))
    return {name.removesuffix(suffix) for name in names if name.endswith(suffix)}


def _check_folder(
    folder: Path,
    only: set[str] | None,
    report: Report,
    cache_root: Path | None,
    progress: Progress,
) -> set[str]:
    """Checks ``training`` or ``testing``; returns the ids of which all needed files are there."""
    summary = report.folders.setdefault(folder.name, FolderReport())
    needed = ["velodyne", "calib", *(["label_2"] if folder.name == "training" else [])]
    found: dict[str, set[str]] = {}
    for name in [*needed, "image_2"]:
        ids = _ids(folder, name)
        if ids is None:
            severity: Literal["error", "warning"] = "error" if name in needed else "warning"
            hint = f"; {DEFAULT_IMAGE_SIZE} pixels are assumed" if name == "image_2" else ""
            _add(report, severity, folder / name, f"no such folder{hint}")
            if name in needed:
                return set()
            continue
        found[name] = ids if only is None else ids & only
    everything = set().union(*found.values())
    for name in needed:
        for frame in sorted(everything - found[name]):
            message = "missing, while other files of the frame are there"
            _add(report, "error", folder / name / (frame + _SUFFIX[name]), message)
    present = set.intersection(*(found[name] for name in needed))
    images = found.get("image_2")
    if images is not None:
        for frame in sorted(present - images):
            message = f"missing; {DEFAULT_IMAGE_SIZE} pixels are assumed"
            _add(report, "warning", folder / "image_2" / f"{frame}.png", message)
    cache = None
    if cache_root is not None:
        cache = CropCache(cache_root / folder.name / "velodyne_cropped")
    for frame in progress(sorted(present), f"checking {folder.name}"):
        paths = FramePaths.of(folder, frame)
        _check_frame(paths, "label_2" in needed, summary, report, cache)
    return present


def _check_split(
    root: Path, split: str, ids: list[str], present: set[str], insist: bool, report: Report
) -> None:
    missing = [frame for frame in ids if frame not in present]
    report.splits[split] = len(missing)
    path = root / "ImageSets" / f"{split}.txt"
    if missing:
        message = f"{len(missing)} of its {len(ids)} frames are missing, the first is {missing[0]}"
        _add(report, "error" if insist else "warning", path, message)
    elif not ids:
        _add(report, "warning", path, "lists no frame")


def _check_frame(
    paths: FramePaths,
    labelled: bool,
    summary: FolderReport,
    report: Report,
    cache: CropCache | None,
) -> None:
    summary.frames += 1
    errors_before = len(report.errors)
    points = calibration = None
    size = DEFAULT_IMAGE_SIZE
    try:
        points = read_sweep(paths.sweep)
    except (DataError, OSError) as error:
        _add_error(report, paths.sweep, error)
    try:
        calibration = Calibration.load(paths.calibration)
    except (DataError, OSError) as error:
        _add_error(report, paths.calibration, error)
    if paths.image.is_file():
        summary.images += 1
        try:
            size = image_size(paths.image)
            _check_image_end(paths.image)
        except (DataError, OSError) as error:
            _add_error(report, paths.image, error)
    if labelled:
        try:
            objects = read_label(paths.label)
        except (DataError, OSError) as error:
            _add_error(report, paths.label, error)
        else:
            summary.objects.update(objects.type)
            for message in _odd_objects(objects):
                _add(report, "warning", paths.label, message)
    if points is not None:
        summary.points.append(len(points))
        for message in _odd_points(points):
            _add(report, "warning", paths.sweep, message)
    if calibration is not None:
        for message in _odd_calibration(calibration):
            _add(report, "warning", paths.calibration, message)
    if points is None or calibration is None or len(report.errors) > errors_before:
        return
    cropped = None
    if cache is not None and np.isfinite(points).all():
        cropped = cache.read(paths.sweep, calibration, size)
        summary.already_cached += cropped is not None
        if cropped is None:
            cropped = cache.write(paths.sweep, points, calibration, size)
            summary.newly_cached += 1
    kept = len(cropped) if cropped is not None else crop_to_image(points, calibration, size).sum()
    summary.cropped.append(int(kept))
    if len(points) and not kept:
        message = "no point lies in the image; does the calibration belong to the sweep?"
        _add(report, "warning", paths.sweep, message)


def _add_error(report: Report, path: Path, error: Exception) -> None:
    message = str(error.strerror if isinstance(error, OSError) else error)
    message = message.removeprefix(f"{path}:").lstrip()
    _add(report, "error", path, re.sub(r"^(\d+): ", r"line \1: ", message))


def _check_image_end(path: Path) -> None:
    with path.open("rb") as file:
        file.seek(-12, os.SEEK_END)
        if file.read()[4:8] != b"IEND":
            raise DataError(f"{path}: the PNG does not end as it should: truncated")


def _odd_points(points: np.ndarray) -> list[str]:
    if not len(points):
        return ["no points"]
    odd = []
    finite = np.isfinite(points).all(axis=1)
    if not finite.all():
        odd.append(f"{np.count_nonzero(~finite)} points are not finite")
    if not _FEW_POINTS <= len(points) <= _MANY_POINTS:
        odd.append(f"{len(points)} points; KITTI's sweeps have 78,596 to 128,467")
    points = points[finite]
    if len(points) and np.abs(points[:, :3]).max() > _FAR:
        far = np.count_nonzero((np.abs(points[:, :3]) > _FAR).any(axis=1))
        odd.append(f"{far} points are further than {_FAR:g} m")
    if len(points) and not (points[:, 3].min() >= 0 and points[:, 3].max() <= 1):
        low, high = points[:, 3].min(), points[:, 3].max()
        odd.append(f"reflectance goes from {low:g} to {high:g}, expected 0 to 1")
    return odd


def _odd_calibration(calibration: Calibration) -> list[str]:
    odd = []
    rotations = {"R0_rect": calibration.R0, "Tr_velo_to_cam": calibration.Tr_velo_to_cam[:, :3]}
    for name, matrix in rotations.items():
        unlike = np.abs(matrix @ matrix.T - np.eye(3)).max()
        if unlike > 1e-3 or np.linalg.det(matrix) < 0:
            odd.append(f"{name} is not a rotation (off by {unlike:.2g})")
    return odd


def _odd_objects(objects: KittiObjects) -> list[str]:
    odd = []
    real = np.array([name != DONT_CARE for name in objects.type], bool)
    flat = (objects.bbox[:, 2] <= objects.bbox[:, 0]) | (objects.bbox[:, 3] <= objects.bbox[:, 1])
    for row in np.flatnonzero(flat):
        odd.append(f"object {row} ({objects.type[row]}): the 2D box is empty")
    for row in np.flatnonzero(real & (objects.dimensions <= 0).any(axis=1)):
        odd.append(f"object {row} ({objects.type[row]}): a dimension is not positive")
    for row in np.flatnonzero(real & (np.abs(objects.rotation_y) > 2 * np.pi)):
        odd.append(f"object {row} ({objects.type[row]}): rotation_y is beyond 2 pi")
    return odd
