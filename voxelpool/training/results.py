"""What a trained detector finds, as KITTI's results."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from voxelpool.config import Config
from voxelpool.datasets.kitti import (
    Frame,
    KittiDataset,
    KittiObjects,
    read_result,
    results_from_boxes,
)
from voxelpool.datasets.objects import Progress
from voxelpool.detection import Detections
from voxelpool.errors import DataError
from voxelpool.models import Precision, VoxelDetector, load_detector
from voxelpool.ops import points_in_boxes
from voxelpool.training.data import collate


def result_objects(found: Detections, frame: Frame) -> KittiObjects:
    """The detections of a frame as KITTI writes them; what lies outside its image is left out.

    Args:
        found: boxes, scores and classes.
        frame: the frame that they were found in; its calibration and image size are used.
    """
    return results_from_boxes(
        found.boxes.double().cpu().numpy(),
        found.scores.double().cpu().numpy(),
        found.names,
        frame.calibration,
        frame.image_size,
    )


def detect_frames(
    detector: VoxelDetector,
    frames: Dataset[Frame],
    *,
    num_workers: int = 1,
    precision: Precision = "32",
) -> Iterator[tuple[Frame, KittiObjects]]:
    """Detects in one frame after the other.

    Args:
        detector: in evaluation mode; its device is used.
        frames: a data set of frames.
        num_workers: processes that read ahead.
        precision: see `VoxelDetector.detect`.

    Yields:
        Each frame and what was found in it.
    """
    classes = detector.config.classes
    loader = DataLoader(
        frames, num_workers=num_workers, collate_fn=partial(collate, classes=classes)
    )
    for batch in loader:
        batch = batch.to(detector.anchors.device)
        (found,) = detector.detect(batch.points, batch.batch, batch.batch_size, precision=precision)
        yield batch.frames[0], result_objects(found, batch.frames[0])


def labelled_frames(config: Config, split: str | os.PathLike[str] | None = None) -> KittiDataset:
    """The frames that a configuration is evaluated on, each with its labels.

    Args:
        config: the configuration.
        split: another split than its data.val_split, without its data.val_limit.

    Raises:
        DataError: the data set is not there, or a label file is missing.
    """
    return KittiDataset(
        config.data.root,
        split or config.data.val_split,
        classes=config.classes,
        crop_to_image=config.data.crop_to_image,
        require_labels=True,
        limit=None if split else config.data.val_limit,
    )


def detect_split(
    config: Config,
    checkpoint: str | os.PathLike[str],
    *,
    split: str | os.PathLike[str] | None = None,
    device: torch.device | str = "cpu",
    precision: Precision = "32",
    progress: Progress | None = None,
) -> Iterator[tuple[Frame, KittiObjects]]:
    """Detects in every frame of a split with a trained detector.

    Args:
        config: what it must fit, and the data.
        checkpoint: its weights.
        split: see `labelled_frames`.
        device: where it computes.
        precision: see `VoxelDetector.detect`.
        progress: called with "detecting", frames done and frames in all.

    Yields:
        Each frame, with its labels, and what was found in it.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or of another network.
        DataError: the data set cannot be read.
    """
    detector = load_detector(checkpoint, config).to(device)
    frames = labelled_frames(config, split)
    found = detect_frames(
        detector, frames, num_workers=config.data.num_workers, precision=precision
    )
    yield from _told(found, "detecting", len(frames), progress)


def read_split_results(
    config: Config,
    folder: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
) -> Iterator[tuple[Frame, KittiObjects]]:
    """Reads what was found in every frame of the validation split, instead of finding it again.

    Args:
        config: the data.
        folder: of result files, one a frame.
        progress: called with "reading", frames done and frames in all.

    Yields:
        Each frame, with its labels, and what was found in it.

    Raises:
        DataError: the folder, a result file or the data set is missing or cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of results")
    frames = labelled_frames(config)
    paths = [folder / f"{frame_id}.txt" for frame_id in frames.frame_ids]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"{missing[0]}: no such result file ({len(missing)} of the {len(paths)} frames of "
            f"split {frames.split!r} have none)"
        )
    found = ((frames[row], read_result(path)) for row, path in enumerate(paths))
    yield from _told(found, "reading", len(frames), progress)


def _told(
    found: Iterator[tuple[Frame, KittiObjects]], what: str, total: int, progress: Progress | None
) -> Iterator[tuple[Frame, KittiObjects]]:
    for done, pair in enumerate(found):
        if progress is not None:
            progress(what, done, total)
        yield pair
    if progress is not None:
        progress(what, total, total)


@dataclass(eq=False)
class FoundInFrames:
    """What is labelled and what was found in frames, without their points.

    Attributes:
        ids: of the frames.
        labels: all rows of their label files.
        results: what was found.
        label_points: points in the box of each label; 0 for DontCare.
        result_points: points in the box of each result.
    """

    ids: list[str] = field(default_factory=list)
    labels: list[KittiObjects] = field(default_factory=list)
    results: list[KittiObjects] = field(default_factory=list)
    label_points: list[NDArray[np.int64]] = field(default_factory=list)
    result_points: list[NDArray[np.int64]] = field(default_factory=list)

    @classmethod
    def gather(cls, found: Iterable[tuple[Frame, KittiObjects]]) -> FoundInFrames:
        """Takes what `detect_split` or `read_split_results` yields.

        Raises:
            DataError: there are no frames.
        """
        gathered = cls()
        for frame, objects in found:
            assert frame.objects is not None, "frames are read with their labels"
            gathered.ids.append(frame.frame_id)
            gathered.labels.append(frame.objects)
            gathered.results.append(objects)
            gathered.label_points.append(_points_inside(frame, frame.objects))
            gathered.result_points.append(_points_inside(frame, objects))
        if not gathered.ids:
            raise DataError("the validation split holds no frames")
        return gathered


def _points_inside(frame: Frame, objects: KittiObjects) -> NDArray[np.int64]:
    counts = np.zeros(len(objects), np.int64)
    rows = np.flatnonzero((objects.dimensions > 0).all(axis=1))
    if len(rows) and len(frame.points):
        boxes = objects[rows].lidar_boxes(frame.calibration)
        xyz = np.ascontiguousarray(frame.points[:, :3], np.float64)
        inside = points_in_boxes(torch.from_numpy(xyz), torch.from_numpy(boxes))
        counts[rows] = inside.sum(0).numpy()
    return counts
