"""Which objects were found and which detections were wrong, and how that depends on something.

Where `evaluate` follows the devkit, whose 41 recall slots say little of a dozen objects, this
counts each object by itself: every detection takes part once, and average precision is the area
under the interpolated curve.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from voxelpool.evaluation.kitti import (
    DIFFICULTIES,
    checked_min_iou,
    class_overlaps,
    object_flags,
)
from voxelpool.evaluation.matching import Matching, surest_pairs
from voxelpool.evaluation.objects import FlatObjects, Floats, Ints, KittiObjects


@dataclass(frozen=True, eq=False)
class Matches:
    """The objects of one class that count, the detections that count, and which found which.

    Detections of objects that do not count are in neither.

    Attributes:
        object_frame: (n,) frame of each object.
        object_row: (n,) its row in the frame's labels.
        finder: (n,) which detection found it, -1 none.
        found_frame: (m,) frame of each detection.
        found_row: (m,) its row in the frame's results.
        score: (m,) its score.
        found: (m,) which object it found, -1 none: a false alarm.
    """

    object_frame: Ints
    object_row: Ints
    finder: Ints
    found_frame: Ints
    found_row: Ints
    score: Floats
    found: Ints

    @property
    def recall(self) -> float:
        """Share of the objects that were found, at whatever score; NaN without any."""
        return float(np.mean(self.finder >= 0)) if len(self.finder) else math.nan

    @property
    def average_precision(self) -> float:
        """Area under the interpolated curve of precision over recall, percent; NaN without objects.

        Detections of equal score take part together.
        """
        if not len(self.finder):
            return math.nan
        _, hits, alarms = self._counts()
        precision = np.maximum.accumulate((hits / (hits + alarms))[::-1])[::-1]
        return 100.0 * math.fsum(np.diff(hits, prepend=0) * precision) / len(self.finder)

    @property
    def best_score(self) -> float:
        """The score from which on detections are worth most (F1); infinite if all are wrong."""
        scores, hits, alarms = self._counts()
        if not hits.any():
            return math.inf
        f1 = 2 * hits / (hits + alarms + len(self.finder))
        return float(scores[f1.argmax()])

    def _counts(self) -> tuple[Floats, Ints, Ints]:
        """Scores that occur, descending, with the hits and the false alarms from each on."""
        scores = np.unique(self.score)[::-1]
        hits, alarms = (
            len(part) - np.searchsorted(np.sort(part), scores, side="left")
            for part in (self.score[self.found >= 0], self.score[self.found < 0])
        )
        return scores, hits, alarms

    def of_objects(self, values: Sequence[ArrayLike]) -> Floats:
        """(n,) of values for each frame, one for each row of its labels."""
        return _picked(values, self.object_frame, self.object_row)

    def of_found(self, values: Sequence[ArrayLike]) -> Floats:
        """(m,) of values for each frame, one for each row of its results."""
        return _picked(values, self.found_frame, self.found_row)


def _picked(values: Sequence[ArrayLike], frame: Ints, row: Ints) -> Floats:
    counts = np.array([len(np.asarray(part)) for part in values], dtype=np.int64)
    flat = np.concatenate([np.zeros(0), *(np.asarray(part, np.float64) for part in values)])
    return flat[(np.cumsum(counts) - counts)[frame] + row]


def match_objects(
    labels: Sequence[KittiObjects],
    results: Sequence[KittiObjects],
    classes: Sequence[str],
    *,
    metric: str = "3d",
    difficulty: str = "hard",
    min_iou: Mapping[str, float] | None = None,
) -> dict[str, Matches]:
    """Finds which detections match which objects.

    What counts is what counts in `evaluate`: at "hard" also what is easy or moderate. Each object
    takes the surest detection that overlaps it by enough and is still free.

    Args:
        labels: ground truth of each frame.
        results: detections of the same frames.
        classes: names of `MIN_IOU`.
        metric: "3d" or "bev".
        difficulty: "easy", "moderate" or "hard".
        min_iou: overlap to exceed, per class; `MIN_IOU` where not given.

    Returns:
        `Matches` of each class.

    Raises:
        ValueError: the lists differ in length, or another metric or difficulty.
        ConfigError: a class is unknown, or an overlap is not in [0, 1).
        DataError: as `evaluate`.
    """
    if len(labels) != len(results):
        raise ValueError(f"{len(labels)} frames of labels but {len(results)} frames of results")
    if metric not in ("3d", "bev") or difficulty not in DIFFICULTIES:
        raise ValueError(f"metric {metric!r} at {difficulty!r}: neither 3d nor bev, or no such one")
    overlap_of = checked_min_iou(classes, min_iou)
    truth = FlatObjects.from_frames(labels, "labels", scored=False)
    detected = FlatObjects.from_frames(results, "results", scored=True)
    overlaps = class_overlaps(truth, detected, classes)
    pairs = overlaps.space if metric == "3d" else overlaps.ground
    matches = {}
    for name in classes:
        gt_flag, det_flag = object_flags(truth, detected, name, DIFFICULTIES.index(difficulty))
        matching = Matching(
            gt_flag=gt_flag,
            det_flag=det_flag,
            score=detected.score,
            frame=truth.frame,
            excused=np.zeros(len(detected.score), dtype=bool),
            gt=pairs.gt,
            det=pairs.det,
            overlap=pairs.overlap,
            similarity=None,
        )
        chosen = surest_pairs(matching, overlap_of[name])
        matches[name] = _matches(truth, detected, matching, pairs.gt[chosen], pairs.det[chosen])
    return matches


def _matches(
    truth: FlatObjects, detected: FlatObjects, matching: Matching, gt: Ints, det: Ints
) -> Matches:
    counts = matching.gt_flag == 0
    objects = np.flatnonzero(counts)
    taken = np.full(len(matching.det_flag), -1, dtype=np.int64)
    taken[det] = gt
    found = np.flatnonzero((matching.det_flag == 0) & ((taken < 0) | counts[taken]))
    place = np.full(len(counts) + 1, -1, dtype=np.int64)  # the last row is that of no object
    place[objects] = np.arange(len(objects))
    of_found = place[taken[found]]
    finder = np.full(len(objects), -1, dtype=np.int64)
    finder[of_found[of_found >= 0]] = np.flatnonzero(of_found >= 0)
    return Matches(
        object_frame=truth.frame[objects],
        object_row=_row_in_frame(truth)[objects],
        finder=finder,
        found_frame=detected.frame[found],
        found_row=_row_in_frame(detected)[found],
        score=detected.score[found],
        found=of_found,
    )


def _row_in_frame(objects: FlatObjects) -> Ints:
    first = np.cumsum(objects.counts) - objects.counts
    return np.arange(len(objects.frame)) - first[objects.frame]


@dataclass(frozen=True)
class Band:
    """The objects of which some value lies in a range.

    Attributes:
        low: of the range; belongs to it.
        high: does not.
        objects: how many there are.
        hits: how many of them were found.
        false_alarms: detections in the range that found nothing.
        recall: hits by objects; NaN without any.
        average_precision: percent, of these objects and false alarms by themselves; NaN likewise.
    """

    low: float
    high: float
    objects: int
    hits: int
    false_alarms: int
    recall: float
    average_precision: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; null where there is nothing to share or no end."""
        return {name: plain(value) for name, value in vars(self).items()}


def bands(
    matches: Matches, objects: ArrayLike, found: ArrayLike, edges: Sequence[float]
) -> list[Band]:
    """Recall and average precision by ranges of a value.

    A detection that found an object belongs where that object does; a false alarm where its own
    value puts it.

    Args:
        matches: of n objects and m detections.
        objects: (n,) the value of each object.
        found: (m,) that of each detection.
        edges: k + 1 ends of k ranges, ascending.

    Returns:
        A band for each range.
    """
    of_objects, of_found = np.asarray(objects, np.float64), np.array(found, np.float64)
    hit = matches.found >= 0
    of_found[hit] = of_objects[matches.found[hit]]
    rows = []
    for low, high in pairwise(edges):
        part = _part(
            matches,
            (of_objects >= low) & (of_objects < high),
            (of_found >= low) & (of_found < high),
        )
        rows.append(
            Band(
                float(low),
                float(high),
                len(part.finder),
                int(np.count_nonzero(part.finder >= 0)),
                int(np.count_nonzero(part.found < 0)),
                part.recall,
                part.average_precision,
            )
        )
    return rows


def _part(matches: Matches, objects: Any, found: Any) -> Matches:
    """Some of the objects, with all that found them, and some of the false alarms."""
    object_place, found_place = (
        np.append(np.where(chosen, np.cumsum(chosen) - 1, -1), -1) for chosen in (objects, found)
    )
    return Matches(
        matches.object_frame[objects],
        matches.object_row[objects],
        found_place[matches.finder[objects]],
        matches.found_frame[found],
        matches.found_row[found],
        matches.score[found],
        object_place[matches.found[found]],
    )


@dataclass(frozen=True)
class FrameScore:
    """How well one frame went.

    Attributes:
        frame: its place among the frames.
        hits: objects that were found.
        missed: objects that were not.
        false_alarms: detections that found nothing.
    """

    frame: int
    hits: int
    missed: int
    false_alarms: int

    @property
    def f1(self) -> float:
        """From 0, all wrong, to 1, all right; NaN if there is nothing to be right about."""
        whole = 2 * self.hits + self.missed + self.false_alarms
        return 2 * self.hits / whole if whole else math.nan


def frame_scores(
    matches: Mapping[str, Matches], num_frames: int, min_score: Mapping[str, float]
) -> list[FrameScore]:
    """What was right and wrong in each frame, all classes together, from a score of each class on.

    Returns:
        One a frame in which anything counts, the best first: by `FrameScore.f1`, then those with
        more objects, and the worst last: by it, then those with more mistakes.
    """
    hits, missed, alarms = np.zeros((3, num_frames), dtype=np.int64)
    for name, of_class in matches.items():
        sure = np.append(of_class.score >= min_score[name], False)
        seen = sure[of_class.finder]
        np.add.at(hits, of_class.object_frame[seen], 1)
        np.add.at(missed, of_class.object_frame[~seen], 1)
        np.add.at(alarms, of_class.found_frame[sure[:-1] & (of_class.found < 0)], 1)
    scores = [
        FrameScore(frame, *counts)
        for frame, counts in enumerate(
            zip(*(x.tolist() for x in (hits, missed, alarms)), strict=True)
        )
        if any(counts)
    ]
    return sorted(scores, key=lambda s: (-s.f1, s.missed + s.false_alarms, -s.hits, s.frame))


def score_histogram(matches: Matches, num_bins: int = 20) -> tuple[Floats, Ints, Ints]:
    """Counts the detections that found an object, and the others, by score.

    Returns:
        (num_bins + 1,) edges, from 0 to 1 unless scores lie beyond; (num_bins,) hits and false
        alarms.
    """
    low, high = min(0.0, *matches.score, 0.0), max(1.0, *matches.score, 1.0)
    edges = np.linspace(low, high, num_bins + 1)
    hit = matches.found >= 0
    return (
        edges,
        np.histogram(matches.score[hit], edges)[0],
        np.histogram(matches.score[~hit], edges)[0],
    )


def plain(value: Any) -> Any:
    """A number as JSON has it: null for what is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
