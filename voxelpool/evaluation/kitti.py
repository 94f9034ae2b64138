"""Average precision on KITTI's object benchmark, by the rules of its development kit (2019 on).

Source: the rules of the public devkit's evaluator, written anew. For each class, difficulty and
metric: ground truth and detections get a flag (counted, ignored, invisible); a first matching
without a score threshold gives the scores of the true positives, from which at most 41 thresholds
are taken, one per recall step of 1/40; a second matching at each threshold gives precision and,
from the observation angles, orientation similarity. R40 averages recall slots 1 to 40, R11 the
slots 0, 4, ..., 40 of the same curve.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from voxelpool.errors import ConfigError
from voxelpool.evaluation.matching import RECALL_SLOTS, Matching, precision_curves
from voxelpool.evaluation.objects import Bools, FlatObjects, Floats, Ints, KittiObjects, fold
from voxelpool.evaluation.overlaps import Candidates, OverlapSet, compute_overlaps

DIFFICULTIES = ("easy", "moderate", "hard")
METRICS = ("3d", "bev", "2d", "aos")
MIN_IOU: Mapping[str, float] = {
    "Car": 0.7,
    "Van": 0.7,
    "Truck": 0.7,
    "Tram": 0.7,
    "Pedestrian": 0.5,
    "Person_sitting": 0.5,
    "Cyclist": 0.5,
    "Misc": 0.5,
}
"""Overlap that a match must exceed. The devkit knows Car, Pedestrian and Cyclist; the rest follow
the class they resemble."""
LOOSE_IOU: Mapping[str, float] = {
    name: {0.7: 0.5, 0.5: 0.25}[overlap] for name, overlap in MIN_IOU.items()
}
"""Overlap that shows whether an object was seen at all, rather than how well its box fits."""

_NEIGHBOURS = {"Car": "Van", "Pedestrian": "Person_sitting"}
_MIN_HEIGHT = (40, 25, 25)  # pixels
_MAX_OCCLUSION = (0, 1, 2)
_MAX_TRUNCATION = (0.15, 0.30, 0.50)
_NO_ALPHA = -10.0
_NO_LOCATION = -1000.0
_R40_SLOTS = slice(1, 41)
_R11_SLOTS = slice(0, 41, 4)


class TableRow(NamedTuple):
    """One line of a result table; average precision in percent for easy, moderate, hard."""

    class_name: str
    metric: str
    r40: tuple[float, float, float]
    r11: tuple[float, float, float]


@dataclass(frozen=True)
class KittiResult:
    """Interpolated precision curves and the average precision they give.

    Attributes:
        curves: class -> metric ("3d", "bev", "2d", "aos") -> (3, 41) precision (for "aos",
            orientation similarity) in [0, 1] by difficulty and recall slot. A class without
            detections has no entry; "aos" is missing where a detection has no angle.
        num_ground_truth: class -> objects that count at easy, moderate, hard.
        num_frames: frames evaluated.
    """

    curves: Mapping[str, Mapping[str, Floats]]
    num_ground_truth: Mapping[str, tuple[int, int, int]]
    num_frames: int

    def precision_recall(self, class_name: str, metric: str) -> tuple[Floats, Floats]:
        """Gives (41,) recall and (3, 41) precision at easy, moderate, hard, both from 0 to 1.

        Precision (for "aos", orientation similarity) is that of `curves`: interpolated, and 0
        where the recall is not reached.

        Raises:
            KeyError: the class or the metric was not evaluated.
        """
        return np.linspace(0, 1, RECALL_SLOTS), self.curves[class_name][metric]

    def average_precision(self, class_name: str, metric: str) -> dict[str, list[float]]:
        """Gives {"R40": [easy, moderate, hard], "R11": [...]} in percent.

        Raises:
            KeyError: the class or the metric was not evaluated.
        """
        _, curve = self.precision_recall(class_name, metric)
        return {
            "R40": [100.0 * math.fsum(row[_R40_SLOTS]) / 40 for row in curve],
            "R11": [100.0 * math.fsum(row[_R11_SLOTS]) / 11 for row in curve],
        }

    def to_dict(self) -> dict[str, dict[str, dict[str, list[float]]]]:
        """Gives class -> metric -> "R40"/"R11" -> [easy, moderate, hard] in percent, for JSON."""
        return {
            name: {metric: self.average_precision(name, metric) for metric in metrics}
            for name, metrics in self.curves.items()
        }

    def scalars(self, classes: Sequence[str] = (), recall: str = "R40") -> dict[str, float]:
        """Gives flat values for a log, such as {"Car/3d/moderate": 65.46}, in percent.

        Args:
            classes: classes that must be there; one that was not evaluated for lack of detections
                counts as 0 in "3d", "bev" and "2d", so that a monitored value always exists.
            recall: "R40" or "R11".
        """
        values = {
            f"{name}/{metric}/{difficulty}": 0.0
            for name in classes
            for metric in ("3d", "bev", "2d")
            for difficulty in DIFFICULTIES
        }
        for row in table_rows(self):
            triple = row.r40 if recall == "R40" else row.r11
            for difficulty, value in zip(DIFFICULTIES, triple, strict=True):
                values[f"{row.class_name}/{row.metric}/{difficulty}"] = value
        return values


def table_rows(result: KittiResult) -> list[TableRow]:
    """Lists average precision class by class, metrics in the order 3d, bev, 2d, aos."""
    rows = []
    for name, metrics in result.to_dict().items():
        for metric in METRICS:
            if metric in metrics:
                r40, r11 = metrics[metric]["R40"], metrics[metric]["R11"]
                rows.append(
                    TableRow(name, metric, (r40[0], r40[1], r40[2]), (r11[0], r11[1], r11[2]))
                )
    return rows


def evaluate(
    labels: Sequence[KittiObjects],
    results: Sequence[KittiObjects],
    classes: Sequence[str] = ("Car", "Pedestrian", "Cyclist"),
    min_iou: Mapping[str, float] | None = None,
) -> KittiResult:
    """Computes average precision for 2D, bird's-eye view, 3D and orientation (AOS).

    A class is evaluated in a metric if some detection of that class has a box for it (2D: left
    edge >= 0; BEV and 3D: a location and positive sizes). AOS needs an angle in every detection of
    every class. Class names compare without regard to case.

    Args:
        labels: ground truth of each evaluated frame.
        results: detections of the same frames, in the same order. A frame whose result file is
            missing belongs in neither list; an empty result file is a frame without detections.
        classes: classes to evaluate, names of `MIN_IOU`.
        min_iou: overlap to exceed, per class, in all metrics; `MIN_IOU` where not given.

    Returns:
        The curves and their average precision.

    Raises:
        ValueError: the lists differ in length.
        ConfigError: a class is unknown, or an overlap is not in [0, 1).
        DataError: a detection has no score, an array has the wrong length, or a number is not
            finite; names the position of the frame.
    """
    if len(labels) != len(results):
        raise ValueError(f"{len(labels)} frames of labels but {len(results)} frames of results")
    overlap_of = checked_min_iou(classes, min_iou)
    truth = FlatObjects.from_frames(labels, "labels", scored=False)
    detected = FlatObjects.from_frames(results, "results", scored=True)

    overlaps = class_overlaps(truth, detected, classes)
    similarity = None
    if not np.any(detected.alpha == _NO_ALPHA):
        pairs = overlaps.image
        similarity = (1.0 + np.cos(truth.alpha[pairs.gt] - detected.alpha[pairs.det])) / 2.0

    curves: dict[str, dict[str, Floats]] = {}
    counts: dict[str, tuple[int, int, int]] = {}
    for name in classes:
        flags = [object_flags(truth, detected, name, difficulty) for difficulty in range(3)]
        of_class = _class_curves(
            name, flags, truth, detected, overlaps, similarity, overlap_of[name]
        )
        if of_class:
            curves[name] = of_class
        easy, moderate, hard = (int(np.count_nonzero(gt_flag == 0)) for gt_flag, _ in flags)
        counts[name] = (easy, moderate, hard)
    return KittiResult(curves, counts, len(labels))


def _class_curves(
    name: str,
    flags: Sequence[tuple[Ints, Ints]],
    truth: FlatObjects,
    detected: FlatObjects,
    overlaps: OverlapSet,
    similarity: Floats | None,
    min_iou: float,
) -> dict[str, Floats]:
    of_class = detected.is_any({fold(name)})
    on_ground = (
        of_class
        & np.all(detected.location[:, [0, 2]] != _NO_LOCATION, axis=1)
        & np.all(detected.dimensions[:, 1:] > 0, axis=1)
    )
    in_space = (
        on_ground & (detected.location[:, 1] != _NO_LOCATION) & (detected.dimensions[:, 0] > 0)
    )
    evaluated: dict[str, tuple[Bools, Candidates]] = {
        "3d": (in_space, overlaps.space),
        "bev": (on_ground, overlaps.ground),
        "2d": (of_class & (detected.bbox[:, 0] >= 0), overlaps.image),
    }
    nowhere = np.zeros(len(detected.score), dtype=bool)
    curves: dict[str, Floats] = {}
    for metric, (present, pairs) in evaluated.items():
        if not present.any():
            continue
        image = metric == "2d"
        precision, orientation = np.zeros((3, 41)), np.zeros((3, 41))
        for difficulty, (gt_flag, det_flag) in enumerate(flags):
            matching = Matching(
                gt_flag=gt_flag,
                det_flag=det_flag,
                score=detected.score,
                frame=truth.frame,
                excused=overlaps.dontcare_cover > min_iou if image else nowhere,
                gt=pairs.gt,
                det=pairs.det,
                overlap=pairs.overlap,
                similarity=similarity if image else None,
            )
            precision[difficulty], orientation[difficulty] = precision_curves(matching, min_iou)
        curves[metric] = precision
        if image and similarity is not None:
            curves["aos"] = orientation
    return curves


def object_flags(
    truth: FlatObjects, detected: FlatObjects, name: str, difficulty: int
) -> tuple[Ints, Ints]:
    """Says of every object whether it counts (0), is ignored (1) or is invisible (-1)."""
    min_height = _MIN_HEIGHT[difficulty]
    height = truth.bbox[:, 3] - truth.bbox[:, 1]
    too_hard = (
        (height <= min_height)
        | (truth.occluded > _MAX_OCCLUSION[difficulty])
        | (truth.truncated > _MAX_TRUNCATION[difficulty])
    )
    gt_flag = np.full(len(height), -1, dtype=np.int64)
    if name in _NEIGHBOURS:
        gt_flag[truth.is_any({fold(_NEIGHBOURS[name])})] = 1
    of_class = truth.is_any({fold(name)})
    gt_flag[of_class] = too_hard[of_class]

    whole_pixels = np.trunc(np.abs(detected.bbox[:, 3] - detected.bbox[:, 1]))
    det_flag = np.where(detected.is_any({fold(name)}), 0, -1)
    det_flag[whole_pixels < min_height] = 1
    return gt_flag, det_flag.astype(np.int64)


def class_overlaps(truth: FlatObjects, detected: FlatObjects, classes: Sequence[str]) -> OverlapSet:
    """Overlaps of all detections with the objects of some classes and of those like them."""
    wanted = {fold(name) for c in classes for name in (c, _NEIGHBOURS.get(c)) if name}
    return compute_overlaps(truth, detected, truth.is_any(wanted), truth.is_any({fold("DontCare")}))


def checked_min_iou(classes: Sequence[str], given: Mapping[str, float] | None) -> dict[str, float]:
    """The overlap that a match must exceed, of each class.

    Raises:
        ConfigError: a class is unknown, or an overlap is not in [0, 1).
    """
    given = dict(given or {})
    for name in (*classes, *given):
        if name not in MIN_IOU:
            raise ConfigError(f"unknown class {name!r}; known are {', '.join(MIN_IOU)}")
    for name, value in given.items():
        if not 0.0 <= value < 1.0:
            raise ConfigError(f"minimum overlap of {name} must be in [0, 1), got {value}")
    return {name: given.get(name, MIN_IOU[name]) for name in classes}
