"""From candidate pairs to precision over recall: the two matching passes of KITTI's evaluator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from voxelpool.evaluation.objects import Bools, Floats, Ints

RECALL_SLOTS = 41


@dataclass(frozen=True)
class Matching:
    """One class at one difficulty in one metric, over all frames.

    Attributes:
        gt_flag: (n,) 0 counted, 1 ignored, -1 invisible.
        det_flag: (m,) likewise.
        score: (m,) confidence of the detections.
        frame: (n,) frame of each ground-truth object, ascending.
        excused: (m,) detections that are no false positive though unmatched.
        gt: (p,) ground truth of each overlapping pair, ascending.
        det: (p,) detection of each pair, ascending for one object.
        overlap: (p,) overlap of each pair.
        similarity: (p,) agreement of the orientations in [0, 1], or None.
    """

    gt_flag: Ints
    det_flag: Ints
    score: Floats
    frame: Ints
    excused: Bools
    gt: Ints
    det: Ints
    overlap: Floats
    similarity: Floats | None


def precision_curves(matching: Matching, min_overlap: float) -> tuple[Floats, Floats]:
    """Computes precision and orientation similarity at 41 recall slots, interpolated.

    Args:
        matching: flags, scores and overlapping pairs.
        min_overlap: a pair must exceed it to match.

    Returns:
        Two (41,) curves in [0, 1]: at each slot the best value of that slot or any later one, and
        0 where the recall is not reached. A slot at whose threshold nothing counts, neither hit nor
        alarm, is 0 by itself (the devkit divides 0 by 0 there). The second curve is all 0 without
        ``similarity``.
    """
    m = matching
    usable = (m.overlap > min_overlap) & (m.gt_flag[m.gt] >= 0) & (m.det_flag[m.det] >= 0)
    pair = np.flatnonzero(usable)
    by_score = np.lexsort((pair, -m.score[m.det[pair]], m.gt[pair]))
    chosen = _greedy_choice(m, pair[by_score], np.array([-np.inf]))
    hits = chosen[_true_positives(m, chosen)]
    num_ground_truth = int(np.count_nonzero(m.gt_flag == 0))
    thresholds = score_thresholds(m.score[m.det[hits]], num_ground_truth)

    # An ignored detection is taken only by an object that finds no other, and then neither hits
    # nor alarms change: it can be left out of the second pass.
    pair = pair[m.det_flag[m.det[pair]] == 0]
    by_overlap = np.lexsort((pair, -m.overlap[pair], m.gt[pair]))
    chosen = _greedy_choice(m, pair[by_overlap], thresholds)
    positive = _true_positives(m, chosen)
    true = np.count_nonzero(positive, axis=1)

    alarm = (m.det_flag == 0) & ~m.excused
    alarms = np.sort(m.score[alarm])
    raised = len(alarms) - np.searchsorted(alarms, thresholds, side="left")
    explained = np.zeros(chosen.shape, dtype=bool)
    explained[chosen >= 0] = alarm[m.det[chosen[chosen >= 0]]]
    false = raised - np.count_nonzero(explained, axis=1)

    agreement = np.zeros(chosen.shape)
    if m.similarity is not None:
        agreement[positive] = m.similarity[chosen[positive]]
    total = true + false
    return _interpolated(true, total), _interpolated(agreement.sum(axis=1), total)


def surest_pairs(matching: Matching, min_overlap: float) -> Ints:
    """Lets each object, in file order, take its surest detection that is still free.

    Returns:
        The pairs that match. Ignored detections are in none; ignored objects may be.
    """
    m = matching
    pair = np.flatnonzero(
        (m.overlap > min_overlap) & (m.gt_flag[m.gt] >= 0) & (m.det_flag[m.det] == 0)
    )
    by_score = np.lexsort((pair, -m.score[m.det[pair]], m.gt[pair]))
    chosen = _greedy_choice(m, pair[by_score], np.array([-np.inf]))
    return chosen[chosen >= 0]


def score_thresholds(scores: Floats, num_ground_truth: int) -> Floats:
    """Picks the scores at which recall comes closest to each multiple of 1/40.

    Args:
        scores: (k,) scores of the true positives, in any order.
        num_ground_truth: objects that count.

    Returns:
        At most 41 scores, descending.
    """
    ordered = np.sort(scores)[::-1].tolist()
    last = len(ordered) - 1
    thresholds = []
    recall = 0.0
    for i, score in enumerate(ordered):
        left = (i + 1) / num_ground_truth
        right = (i + 2) / num_ground_truth
        if i < last and right - recall < recall - left:
            continue
        thresholds.append(score)
        recall += 1.0 / (RECALL_SLOTS - 1)
    return np.array(thresholds, dtype=np.float64)


def _greedy_choice(m: Matching, pair: Ints, thresholds: Floats) -> Ints:
    """Lets each ground-truth object, in file order, take its best detection that is still free.

    Objects of different frames cannot compete, so the k-th object of every frame chooses at once,
    at all thresholds.

    Args:
        m: flags, scores and pairs.
        pair: (q,) usable pairs, sorted by ground truth, then best first.
        thresholds: (t,) a detection takes part where its score is at least the threshold.

    Returns:
        (t, objects that have a pair) the pair that each takes, or -1.
    """
    if not len(pair) or not len(thresholds):
        return np.zeros((len(thresholds), 0), dtype=np.int64)
    objects, first = np.unique(m.gt[pair], return_index=True)
    length = np.diff(first, append=len(pair))
    _, first_of_frame = np.unique(m.frame[objects], return_index=True)
    place = np.arange(len(objects)) - np.repeat(
        first_of_frame, np.diff(first_of_frame, append=len(objects))
    )

    competitors, det = np.unique(m.det[pair], return_inverse=True)
    free = m.score[competitors] >= thresholds[:, None]
    chosen = np.full((len(thresholds), len(objects)), -1, dtype=np.int64)
    none = len(pair)
    for k in range(int(place.max()) + 1):
        turn = np.flatnonzero(place == k)
        starts = np.cumsum(length[turn]) - length[turn]
        position = np.arange(length[turn].sum()) + np.repeat(first[turn] - starts, length[turn])
        option = np.where(free[:, det[position]], position, none)
        best = np.minimum.reduceat(option, starts, axis=1)
        row, column = np.nonzero(best < none)
        taken = best[row, column]
        free[row, det[taken]] = False
        chosen[row, turn[column]] = pair[taken]
    return chosen


def _true_positives(m: Matching, chosen: Ints) -> Bools:
    both_count: Bools = (m.gt_flag[m.gt] == 0) & (m.det_flag[m.det] == 0)
    positive = np.zeros(chosen.shape, dtype=bool)
    positive[chosen >= 0] = both_count[chosen[chosen >= 0]]
    return positive


def _interpolated(gained: Ints | Floats, total: Ints) -> Floats:
    curve = np.zeros(RECALL_SLOTS)
    np.divide(gained, total, out=curve[: len(total)], where=total > 0)
    return np.maximum.accumulate(curve[::-1])[::-1]
