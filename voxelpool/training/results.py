"""From detections in the LiDAR frame to KITTI's results."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch.utils.data import DataLoader, Dataset

from voxelpool.datasets.kitti import Frame, KittiObjects, results_from_boxes
from voxelpool.detection import Detections
from voxelpool.models import Precision, VoxelDetector
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
