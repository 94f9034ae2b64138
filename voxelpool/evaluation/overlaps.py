"""Overlaps between ground truth and detections of many frames at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from voxelpool.evaluation.objects import Bools, FlatObjects, Floats, Ints
from voxelpool.ops import boxes_iou_bev

_PAIRS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Candidates:
    """Pairs that overlap at all, sorted by ground truth, then by detection.

    Attributes:
        gt: (p,) index of the ground-truth object.
        det: (p,) index of the detection.
        overlap: (p,) intersection over union, > 0.
    """

    gt: Ints
    det: Ints
    overlap: Floats


@dataclass(frozen=True)
class OverlapSet:
    """Overlaps in the image, on the ground plane and in space.

    Attributes:
        image: overlapping 2D boxes.
        ground: overlapping rotated rectangles in (x, z).
        space: overlapping 3D boxes.
        dontcare_cover: (detections,) largest share of a detection's 2D box inside one DontCare
            region of its frame.
    """

    image: Candidates
    ground: Candidates
    space: Candidates
    dontcare_cover: Floats


def compute_overlaps(
    truth: FlatObjects, detected: FlatObjects, wanted: Bools, dontcare: Bools
) -> OverlapSet:
    """Finds every overlapping pair of a ground-truth object and a detection of the same frame.

    Args:
        truth: ground truth, n objects.
        detected: detections, m objects, of the same frames.
        wanted: (n,) ground truth to pair with detections.
        dontcare: (n,) ground truth that is a DontCare region.

    Returns:
        The pairs for each metric and the cover by DontCare regions.
    """
    image, near = [], []
    for gt, det in _pairs_of_frames(truth, detected, np.flatnonzero(wanted)):
        inter = _image_intersection(truth.bbox[gt], detected.bbox[det])
        hit = inter > 0
        union = _area(truth.bbox[gt[hit]]) + _area(detected.bbox[det[hit]]) - inter[hit]
        image.append((gt[hit], det[hit], inter[hit] / union))
        close = _may_touch(truth, detected, gt, det)
        near.append((gt[close], det[close]))

    cover = np.zeros(len(detected.frame))
    for gt, det in _pairs_of_frames(truth, detected, np.flatnonzero(dontcare)):
        inter = _image_intersection(truth.bbox[gt], detected.bbox[det])
        hit = inter > 0
        np.maximum.at(cover, det[hit], inter[hit] / _area(detected.bbox[det[hit]]))

    image_pairs = Candidates(*(np.concatenate(column) for column in zip(*image, strict=True)))
    gt, det = (np.concatenate(column) for column in zip(*near, strict=True))
    ground = _ground_candidates(truth, detected, gt, det)
    return OverlapSet(image_pairs, ground, _space_candidates(truth, detected, ground), cover)


def _pairs_of_frames(
    truth: FlatObjects, detected: FlatObjects, chosen: Ints
) -> Iterator[tuple[Ints, Ints]]:
    """Yields (gt, det) index arrays of all pairs within frames, a bounded number at a time.

    There is at least one yield, if need be of no pairs.
    """
    per_gt = detected.counts[truth.frame[chosen]]
    first_det = (np.cumsum(detected.counts) - detected.counts)[truth.frame[chosen]]
    block = np.cumsum(per_gt) // _PAIRS_AT_ONCE
    for part in np.split(np.arange(len(chosen)), np.flatnonzero(np.diff(block)) + 1):
        counts = per_gt[part]
        starts = np.cumsum(counts) - counts
        within = np.arange(counts.sum()) - np.repeat(starts, counts)
        yield np.repeat(chosen[part], counts), np.repeat(first_det[part], counts) + within


def _area(bbox: Floats) -> Floats:
    return (bbox[:, 2] - bbox[:, 0]) * (bbox[:, 3] - bbox[:, 1])


def _image_intersection(a: Floats, b: Floats) -> Floats:
    width = np.minimum(a[:, 2], b[:, 2]) - np.maximum(a[:, 0], b[:, 0])
    height = np.minimum(a[:, 3], b[:, 3]) - np.maximum(a[:, 1], b[:, 1])
    return np.where((width > 0) & (height > 0), width * height, 0.0)


def _may_touch(truth: FlatObjects, detected: FlatObjects, gt: Ints, det: Ints) -> Bools:
    """Says of each pair whether the circles around both ground rectangles meet."""
    size_a, size_b = truth.dimensions[gt, 1:], detected.dimensions[det, 1:]
    offset = truth.location[gt][:, [0, 2]] - detected.location[det][:, [0, 2]]
    reach = (np.hypot(size_a[:, 0], size_a[:, 1]) + np.hypot(size_b[:, 0], size_b[:, 1])) / 2
    solid: Bools = np.all((size_a > 0) & (size_b > 0), axis=1)
    return solid & (np.hypot(offset[:, 0], offset[:, 1]) <= reach * (1 + 1e-9))


def _ground_candidates(
    truth: FlatObjects, detected: FlatObjects, gt: Ints, det: Ints
) -> Candidates:
    a, b = _ground_boxes(truth), _ground_boxes(detected)
    overlap = np.zeros(len(gt))
    first_of_frame = np.unique(truth.frame[gt], return_index=True)[1].tolist()
    for start, end in pairwise([*first_of_frame, len(gt)]):
        rows, row = np.unique(gt[start:end], return_inverse=True)
        columns, column = np.unique(det[start:end], return_inverse=True)
        iou = boxes_iou_bev(a[rows], b[columns]).numpy()
        overlap[start:end] = iou[row, column]
    hit = overlap > 0
    return Candidates(gt[hit], det[hit], overlap[hit])


def _ground_boxes(boxes: FlatObjects) -> torch.Tensor:
    """Gives (n, 7) float64 boxes whose x, y axes are the camera's x, z.

    A positive rotation_y turns x towards -z, hence the minus.
    """
    ground = np.zeros((len(boxes.frame), 7))
    ground[:, 0] = boxes.location[:, 0]
    ground[:, 1] = boxes.location[:, 2]
    ground[:, 3] = boxes.dimensions[:, 2]
    ground[:, 4] = boxes.dimensions[:, 1]
    ground[:, 5] = 1.0
    ground[:, 6] = -boxes.rotation_y
    return torch.from_numpy(ground)


def _space_candidates(truth: FlatObjects, detected: FlatObjects, ground: Candidates) -> Candidates:
    """Adds the heights to pairs on the ground; y points down and the location is the lower face."""
    size_a, size_b = truth.dimensions[ground.gt], detected.dimensions[ground.det]
    floor_a, floor_b = truth.location[ground.gt, 1], detected.location[ground.det, 1]
    shared = np.minimum(floor_a, floor_b) - np.maximum(
        floor_a - size_a[:, 0], floor_b - size_b[:, 0]
    )
    area_a, area_b = size_a[:, 1] * size_a[:, 2], size_b[:, 1] * size_b[:, 2]
    area = ground.overlap / (1 + ground.overlap) * (area_a + area_b)
    volume = area * np.maximum(shared, 0.0)
    total = area_a * size_a[:, 0] + area_b * size_b[:, 0]
    hit = volume > 0
    overlap = volume[hit] / (total[hit] - volume[hit])
    return Candidates(ground.gt[hit], ground.det[hit], overlap)
