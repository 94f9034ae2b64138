"""KITTI evaluation against a second evaluator: plain loops over frames, objects and thresholds."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelpool.evaluation import evaluate, overlaps
from voxelpool.evaluation.matching import score_thresholds

NEIGHBOUR = {"Car": "Van", "Pedestrian": "Person_sitting", "Cyclist": None}
MIN_IOU = {"Car": 0.7, "Pedestrian": 0.5, "Cyclist": 0.5}


# ---------------------------------------------------------------------------------------- oracle
def oracle(labels, results, min_iou=MIN_IOU):
    """Class -> metric -> three lists of 41 values; frames are lists of dictionaries."""
    alphas = [d["alpha"] for frame in results for d in frame]
    answer = {}
    for name in MIN_IOU:
        dets = [d for frame in results for d in frame if d["type"] == name]
        metrics = {}
        if any(d["bbox"][0] >= 0 for d in dets):
            metrics["2d"] = image_iou
        if any(
            d["xyz"][0] != -1000 and d["xyz"][2] != -1000 and min(d["hwl"][1:]) > 0 for d in dets
        ):
            metrics["bev"] = ground_iou
        if any(-1000 not in d["xyz"] and min(d["hwl"]) > 0 for d in dets):
            metrics["3d"] = space_iou
        curves = {}
        for metric, iou in metrics.items():
            both = [curve(labels, results, name, level, iou, min_iou[name]) for level in range(3)]
            curves[metric] = [precision for precision, _ in both]
            if metric == "2d" and -10 not in alphas:
                curves["aos"] = [orientation for _, orientation in both]
        if curves:
            answer[name] = curves
    return answer


def curve(labels, results, name, level, iou, least):
    scores = []
    total = 0
    for truth, dets in zip(labels, results, strict=True):
        total += sum(truth_flag(g, name, level) == 0 for g in truth)
        scores += first_pass(truth, dets, name, level, iou, least)
    precision, orientation = [0.0] * 41, [0.0] * 41
    for slot, threshold in enumerate(walk(scores, total)):
        tp = fp = 0
        likeness = 0.0
        for truth, dets in zip(labels, results, strict=True):
            a, b, c = second_pass(truth, dets, name, level, iou, least, threshold)
            tp, fp, likeness = tp + a, fp + b, likeness + c
        if tp + fp:
            precision[slot] = tp / (tp + fp)
            orientation[slot] = likeness / (tp + fp)
    return (
        [max(precision[i:]) for i in range(41)],
        [max(orientation[i:]) for i in range(41)],
    )


def truth_flag(g, name, level):
    if g["type"] == NEIGHBOUR[name]:
        return 1
    if g["type"] != name:
        return -1
    height = g["bbox"][3] - g["bbox"][1]
    hard = (
        height <= (40, 25, 25)[level]
        or g["occluded"] > (0, 1, 2)[level]
        or g["truncated"] > (0.15, 0.3, 0.5)[level]
    )
    return 1 if hard else 0


def det_flag(d, name, level):
    if int(abs(d["bbox"][3] - d["bbox"][1])) < (40, 25, 25)[level]:
        return 1
    return 0 if d["type"] == name else -1


def first_pass(truth, dets, name, level, iou, least):
    used, scores = set(), []
    for g in truth:
        if truth_flag(g, name, level) == -1:
            continue
        best = None
        for j, d in enumerate(dets):
            if j in used or det_flag(d, name, level) == -1 or not iou(g, d) > least:
                continue
            if best is None or d["score"] > dets[best]["score"]:
                best = j
        if best is not None:
            used.add(best)
            if truth_flag(g, name, level) == 0 and det_flag(dets[best], name, level) == 0:
                scores.append(dets[best]["score"])
    return scores


def second_pass(truth, dets, name, level, iou, least, threshold):
    used = set()
    tp = 0
    likeness = 0.0
    for g in truth:
        if truth_flag(g, name, level) == -1:
            continue
        best = None
        best_overlap = 0.0
        for j, d in enumerate(dets):
            if j in used or d["score"] < threshold or not iou(g, d) > least:
                continue
            if det_flag(d, name, level) == 0:
                if (
                    best is None
                    or det_flag(dets[best], name, level) == 1
                    or iou(g, d) > best_overlap
                ):
                    best, best_overlap = j, iou(g, d)
            elif det_flag(d, name, level) == 1 and best is None:
                best = j
        if best is not None:
            used.add(best)
            if truth_flag(g, name, level) == 0 and det_flag(dets[best], name, level) == 0:
                tp += 1
                likeness += (1 + math.cos(g["alpha"] - dets[best]["alpha"])) / 2
    fp = 0
    for j, d in enumerate(dets):
        if j in used or d["score"] < threshold or det_flag(d, name, level) != 0:
            continue
        regions = [g for g in truth if g["type"] == "DontCare"]
        if iou is image_iou and any(share_inside(d, region) > least for region in regions):
            continue
        fp += 1
    return tp, fp, likeness


def walk(scores, total):
    scores = sorted(scores, reverse=True)
    recall, kept = 0.0, []
    for i, score in enumerate(scores):
        if i < len(scores) - 1 and (i + 2) / total - recall < recall - (i + 1) / total:
            continue
        kept.append(score)
        recall += 1 / 40
    return kept


def area(b):
    return (b[2] - b[0]) * (b[3] - b[1])


def image_intersection(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


def image_iou(g, d):
    inter = image_intersection(g["bbox"], d["bbox"])
    return inter / (area(g["bbox"]) + area(d["bbox"]) - inter) if inter else 0.0


def share_inside(d, region):
    inter = image_intersection(d["bbox"], region["bbox"])
    return inter / area(d["bbox"]) if inter else 0.0


def corners(o):
    """Ground corners: x' = x cos + z sin, z' = -x sin + z cos, as rotation_y turns x to -z."""
    _, w, length = o["hwl"]
    c, s = math.cos(o["ry"]), math.sin(o["ry"])
    signs = ((1, 1), (-1, 1), (-1, -1), (1, -1))
    local = [(length / 2 * i, w / 2 * j) for i, j in signs]
    return [(x * c + z * s + o["xyz"][0], -x * s + z * c + o["xyz"][2]) for x, z in local]


def shoelace(polygon):
    n = len(polygon)
    return (
        sum(
            polygon[i][0] * polygon[(i + 1) % n][1] - polygon[(i + 1) % n][0] * polygon[i][1]
            for i in range(n)
        )
        / 2
    )


def clipped_area(subject, clip):
    """Sutherland-Hodgman: cuts the subject by every edge of a counter-clockwise clip polygon."""
    for i in range(4):
        (ax, ay), (bx, by) = clip[i], clip[(i + 1) % 4]
        sides = [(bx - ax) * (y - ay) - (by - ay) * (x - ax) for x, y in subject]
        kept = []
        for k, point in enumerate(subject):
            previous, s0, s1 = subject[k - 1], sides[k - 1], sides[k]
            if (s0 >= 0) != (s1 >= 0):
                t = s0 / (s0 - s1)
                kept.append(tuple(p + t * (q - p) for p, q in zip(previous, point, strict=True)))
            if s1 >= 0:
                kept.append(point)
        subject = kept
        if not subject:
            return 0.0
    return max(shoelace(subject), 0.0)


def ground_iou(g, d):
    if min(g["hwl"][1:]) <= 0 or min(d["hwl"][1:]) <= 0:
        return 0.0
    inter = clipped_area(corners(d), corners(g))
    return inter / (g["hwl"][1] * g["hwl"][2] + d["hwl"][1] * d["hwl"][2] - inter)


def space_iou(g, d):
    if min(g["hwl"]) <= 0 or min(d["hwl"]) <= 0:
        return 0.0
    top = max(g["xyz"][1] - g["hwl"][0], d["xyz"][1] - d["hwl"][0])
    height = max(0.0, min(g["xyz"][1], d["xyz"][1]) - top)
    inter = clipped_area(corners(d), corners(g)) * height
    return inter / (math.prod(g["hwl"]) + math.prod(d["hwl"]) - inter)


# ----------------------------------------------------------------------------------- comparison
def columns(frame, scored):
    n = len(frame)
    return SimpleNamespace(
        type=[o["type"] for o in frame],
        truncated=np.array([o["truncated"] for o in frame], dtype=float),
        occluded=np.array([o["occluded"] for o in frame], dtype=int),
        alpha=np.array([o["alpha"] for o in frame], dtype=float),
        bbox=np.array([o["bbox"] for o in frame], dtype=float).reshape(n, 4),
        dimensions=np.array([o["hwl"] for o in frame], dtype=float).reshape(n, 3),
        location=np.array([o["xyz"] for o in frame], dtype=float).reshape(n, 3),
        rotation_y=np.array([o["ry"] for o in frame], dtype=float),
        score=np.array([o["score"] for o in frame], dtype=float) if scored else None,
    )


def assert_same(labels, results, min_iou=MIN_IOU):
    expected = oracle(labels, results, min_iou)
    found = evaluate(
        [columns(frame, False) for frame in labels],
        [columns(frame, True) for frame in results],
        min_iou=min_iou,
    )
    assert {n: set(m) for n, m in found.curves.items()} == {n: set(m) for n, m in expected.items()}
    for name, metrics in expected.items():
        for metric, rows in metrics.items():
            np.testing.assert_allclose(
                found.curves[name][metric], rows, rtol=0, atol=1e-12, err_msg=f"{name} {metric}"
            )
    return expected


SIZES = {
    "Car": (1.5, 1.6, 3.9),
    "Van": (2.0, 1.9, 4.5),
    "Pedestrian": (1.7, 0.6, 0.8),
    "Person_sitting": (1.2, 0.6, 0.8),
    "Cyclist": (1.7, 0.6, 1.8),
    "Truck": (3.0, 2.5, 9.0),
}


def random_object(rng, kind):
    height = rng.choice([24.0, 25.0, 25.9, 26.0, 30.0, 39.9, 40.0, 40.5, 41.0, 60.0])
    left, top = rng.uniform(0, 200), rng.uniform(0, 60)
    return {
        "type": kind,
        "truncated": rng.choice([0.0, 0.0, 0.15, 0.3, 0.4, 0.5, 0.6]),
        "occluded": rng.choice([0, 0, 0, 1, 2, 3]),
        "alpha": rng.uniform(-3, 3),
        "bbox": [left, top, left + rng.uniform(20, 80), top + height],
        "hwl": [v * rng.uniform(0.9, 1.1) for v in SIZES[kind]],
        "xyz": [rng.uniform(-5, 5), rng.uniform(1.4, 1.7), rng.uniform(5, 20)],
        "ry": rng.uniform(-3.1, 3.1),
    }


def jittered(rng, o, amount):
    moved = dict(o)
    moved["bbox"] = [v + rng.gauss(0, amount * 8) for v in o["bbox"]]
    moved["xyz"] = [v + rng.gauss(0, amount) for v in o["xyz"]]
    moved["ry"] = o["ry"] + rng.gauss(0, amount)
    moved["alpha"] = o["alpha"] + rng.gauss(0, 0.5)
    if rng.random() < 0.15:
        moved["type"] = rng.choice(list(SIZES))
    return moved


def random_set(rng, frames, *, crowded=False, scores=None):
    """Frames whose detections surround the truth; crowded truth overlaps truth as well."""
    labels, results = [], []
    for _ in range(frames):
        truth = []
        for _ in range(rng.randrange(0, 6)):
            kind = rng.choice(list(SIZES))
            if crowded and truth and rng.random() < 0.6:
                truth.append(jittered(rng, rng.choice(truth), 0.05))
            else:
                truth.append(random_object(rng, kind))
        dets = []
        for g in truth:
            dets += [
                jittered(rng, g, rng.choice([0, 0.03, 0.1])) for _ in range(rng.randrange(0, 4))
            ]
        dets += [random_object(rng, rng.choice(list(SIZES))) for _ in range(rng.randrange(0, 4))]
        if dets and rng.random() < 0.3:
            dets.append(dict(rng.choice(dets)))
        rng.shuffle(dets)
        for d in dets:
            d["score"] = rng.choice(scores) if scores else rng.random()
        for _ in range(rng.randrange(0, 3)):
            region = random_object(rng, "Car")
            if dets and rng.random() < 0.5:
                region["bbox"] = [v + rng.gauss(0, 3) for v in rng.choice(dets)["bbox"]]
            region.update(
                type="DontCare",
                truncated=-1,
                occluded=-1,
                alpha=-10,
                hwl=[-1] * 3,
                xyz=[-1000] * 3,
                ry=-10,
            )
            truth.insert(rng.randrange(len(truth) + 1), region)
        labels.append(truth)
        results.append(dets)
    return labels, results


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(
    ("crowded", "scores"),
    [(False, None), (True, None), (True, [0.25, 0.5]), (False, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])],
    ids=["sparse", "crowded", "tied", "coarse scores"],
)
def test_agrees_with_plain_loops(seed, crowded, scores):
    rng = random.Random(f"{seed} {crowded} {scores}")
    labels, results = random_set(rng, 15, crowded=crowded, scores=scores)
    assert_same(labels, results)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
def test_agrees_at_other_overlaps(overlap):
    labels, results = random_set(random.Random(overlap), 12, crowded=True)
    assert_same(labels, results, dict.fromkeys(MIN_IOU, overlap))


def test_more_true_positives_than_recall_slots():
    rng = random.Random(3)
    labels, results = [], []
    for _ in range(60):
        truth = [random_object(rng, "Car") for _ in range(3)]
        dets = [jittered(rng, g, 0.03) for g in truth]
        for o in truth + dets:
            o.update(truncated=0.0, occluded=0, type="Car", score=rng.random())
            o["bbox"][3] += 30
        labels.append(truth)
        results.append(dets)
    expected = assert_same(labels, results, dict.fromkeys(MIN_IOU, 0.3))
    assert np.count_nonzero(expected["Car"]["2d"][2]) > 35


@pytest.mark.parametrize("found", [1, 2, 3, 10, 30, None])
def test_thresholds_for_every_number_of_objects(found):
    # None: all are found. Ties between the two neighbours of a recall step are decided in double.
    for total in range(found or 1, 400):
        scores = [i / 1000 for i in range(found or total)]
        assert score_thresholds(np.array(scores), total).tolist() == walk(scores, total)
        assert len(walk(scores, total)) <= 41


def test_pairs_are_worked_off_in_portions(monkeypatch):
    monkeypatch.setattr(overlaps, "_PAIRS_AT_ONCE", 5)
    labels, results = random_set(random.Random(8), 10, crowded=True)
    assert_same(labels, results)


@given(st.randoms(use_true_random=False), st.integers(1, 4), st.booleans())
@settings(max_examples=60, deadline=None)
def test_agrees_on_whole_pixel_boxes(rng, frames, missing_angle):
    """Whole pixels and few scores make exact ties in overlap, height and score common."""
    labels, results = [], []
    for _ in range(frames):
        both = []
        for kinds, count in (
            (("Car", "Van", "Pedestrian", "DontCare"), 4),
            (("Car", "Pedestrian"), 5),
        ):
            objects = []
            for _ in range(rng.randint(0, count)):
                kind = rng.choice(kinds)
                o = random_object(rng, "Car" if kind == "DontCare" else kind)
                left, top = rng.choice([0, 10, 20]), rng.choice([0, 10])
                o["bbox"] = [
                    left,
                    top,
                    left + rng.choice([20, 30, 40]),
                    top + rng.choice([25, 30, 40, 50]),
                ]
                o["xyz"], o["ry"], o["type"] = [0.0, 1.5, 10.0 + rng.choice([0, 5])], 0.0, kind
                o["score"] = rng.choice([0.25, 0.5, 0.75])
                objects.append(o)
            both.append(objects)
        labels.append(both[0])
        results.append(both[1])
    if missing_angle and results[-1]:
        results[-1][-1]["alpha"] = -10
    assert_same(labels, results, dict.fromkeys(MIN_IOU, 0.5))
