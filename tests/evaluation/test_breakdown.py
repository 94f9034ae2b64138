"""Matches, bands and frames against what follows from how the cases were made."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from voxelpool.datasets.kitti import KittiObjects
from voxelpool.errors import ConfigError
from voxelpool.evaluation import (
    LOOSE_IOU,
    MIN_IOU,
    bands,
    evaluate,
    frame_scores,
    match_objects,
    score_histogram,
)

EDGES = [0, 10, 20, 30, 40, math.inf]


def cars(places, *, kind="Car", scores=None, height=50.0, shift=0.0):
    """Cars whose middles are so many metres ahead, 10 m apart from one another sideways.

    A shift of f lengths gives an overlap of (1 - f) / (1 + f).
    """
    n = len(places)
    aside = 10.0 * np.arange(n)
    left = 100.0 * np.arange(n)
    return KittiObjects(
        type=[kind] * n,
        truncated=np.zeros(n),
        occluded=np.zeros(n, np.int64),
        alpha=np.zeros(n),
        bbox=np.stack([left, np.full(n, 100.0), left + 80, np.full(n, 100.0 + height)], 1),
        dimensions=np.tile([1.5, 1.6, 4.0], (n, 1)),
        location=np.stack([aside + 4.0 * shift, np.full(n, 1.6), np.array(places, float)], 1),
        rotation_y=np.zeros(n),
        score=None if scores is None else np.array(scores, float),
    )


def ahead(frames):
    return [objects.location[:, 2] for objects in frames]


def banded(labels, results, **options):
    matches = match_objects(labels, results, ["Car"], **options)["Car"]
    objects, found = matches.of_objects(ahead(labels)), matches.of_found(ahead(results))
    return bands(matches, objects, found, EDGES)


LABELS = [cars([5, 15, 25]), cars([]), cars([8, 9, 28, 12]), cars([35, 21])]


def perfect(skip=()):
    """Every car but those at (frame, row), each with a score of its own."""
    results = []
    for frame, objects in enumerate(LABELS):
        rows = [row for row in range(len(objects)) if (frame, row) not in skip]
        kept = objects[rows]
        kept.score = 0.5 + 0.01 * np.arange(len(rows)) + 0.1 * frame
        results.append(kept)
    return results


def test_perfect_detections_are_perfect_in_every_band():
    *found, empty = banded(LABELS, perfect())
    assert [(band.low, band.high) for band in found] == [(0, 10), (10, 20), (20, 30), (30, 40)]
    assert [band.objects for band in found] == [3, 2, 3, 1]
    assert empty.objects == empty.hits == empty.false_alarms == 0 and math.isnan(empty.recall)
    assert all(band.recall == 1 and band.average_precision == 100 for band in found)
    assert all(band.hits == band.objects and band.false_alarms == 0 for band in found)


@pytest.mark.parametrize("missed", [(0, 0), (0, 2), (2, 3), (3, 0)])
def test_a_missed_car_shows_in_its_band_alone(missed):
    before, after = banded(LABELS, perfect())[:4], banded(LABELS, perfect({missed}))[:4]
    place = LABELS[missed[0]].location[missed[1], 2]
    for whole, band in zip(before, after, strict=True):
        if not band.low <= place < band.high:
            assert band == whole
            continue
        share = (band.objects - 1) / band.objects
        assert band.objects == whole.objects and band.hits == whole.hits - 1
        assert band.recall == pytest.approx(share)
        assert band.average_precision == pytest.approx(100 * share)


def test_a_false_alarm_belongs_where_it_is_and_a_hit_where_its_object_is():
    # The object at 9.9 is found a little farther, at 10.1; something is found at 50 m.
    labels = [cars([9.9, 15])]
    results = [cars([10.1, 15, 50], scores=[0.5, 0.6, 0.9])]
    found = banded(labels, results, min_iou={"Car": 0.5})
    assert [(band.objects, band.hits, band.false_alarms) for band in found] == [
        (1, 1, 0), (1, 1, 0), (0, 0, 0), (0, 0, 0), (0, 0, 1),
    ]  # fmt: skip
    assert [band.recall for band in found[:2]] == [1, 1]
    assert math.isnan(found[2].recall) and math.isnan(found[4].average_precision)
    text = json.dumps([band.to_dict() for band in found], allow_nan=False)
    assert json.loads(text)[4]["high"] is None and json.loads(text)[4]["recall"] is None


def brute_force_area(scores, hit, count):
    """Precision at each score from the list of detections itself; the best from there on."""
    area, reached = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        recall = sum(h for s, h in zip(scores, hit, strict=True) if s >= threshold) / count
        best = max(
            sum(h for s, h in zip(scores, hit, strict=True) if s >= lower)
            / sum(s >= lower for s in scores)
            for lower in set(scores)
            if lower <= threshold
        )
        area, reached = area + (recall - reached) * best, recall
    return 100 * area


@pytest.mark.parametrize("seed", range(4))
def test_area_of_ranked_detections(seed):
    rng = np.random.default_rng(seed)
    count = 12
    hit = rng.random(count) < 0.6
    scores = rng.integers(1, 8, count) / 8  # with ties
    labels = [cars(np.full(count, 20.0))]
    places = np.where(hit, 20.0, 60.0)
    matches = match_objects(labels, [cars(places, scores=scores)], ["Car"])["Car"]
    assert matches.recall == pytest.approx(hit.mean())
    expected = brute_force_area(scores.tolist(), hit.tolist(), count)
    assert matches.average_precision == pytest.approx(expected)


def test_many_objects_come_near_to_the_devkit():
    """With hundreds of objects the area is the mean of 40 slots to within one of them."""
    rng = np.random.default_rng(0)
    labels, results = [], []
    for _ in range(60):
        count = rng.integers(4, 9)
        places = rng.uniform(5, 60, count)
        labels.append(cars(places))
        good = rng.random(count) < 0.8
        scores = np.clip(rng.normal(np.where(good, 0.7, 0.4), 0.15), 0, 1)
        results.append(cars(np.where(good, places, places + 30), scores=scores))
    matches = match_objects(labels, results, ["Car"])["Car"]
    devkit = evaluate(labels, results, ["Car"]).average_precision("Car", "3d")["R40"][2]
    assert matches.average_precision == pytest.approx(devkit, abs=2.5)


def test_what_does_not_count_is_neither_missed_nor_an_alarm():
    # A van found as a car, a car too small to count, and a detection too small to count.
    labels = [cars([20], kind="Van"), cars([20], height=20.0), cars([20])]
    results = [
        cars([20], scores=[0.9]),
        cars([20], scores=[0.8]),
        cars([20, 60], scores=[0.7, 0.6], height=20.0),
    ]
    matches = match_objects(labels, results, ["Car", "Pedestrian"])
    car = matches["Car"]
    assert car.object_frame.tolist() == [2] and car.finder.tolist() == [-1]
    assert len(car.score) == 0
    assert len(matches["Pedestrian"].score) == 0
    assert math.isnan(matches["Pedestrian"].average_precision)
    assert matches["Pedestrian"].best_score == math.inf


def test_overlap_and_metric():
    labels, results = [cars([20])], [cars([20], scores=[0.9], shift=0.25)]  # overlap 0.6
    results[0].location[:, 1] += 0.75  # half as high: 0.23 in space
    found = {
        (metric, overlap): match_objects(
            labels, results, ["Car"], metric=metric, min_iou={"Car": overlap}
        )["Car"].recall
        for metric in ("3d", "bev")
        for overlap in (0.2, 0.5, 0.7)
    }
    assert found == {
        ("3d", 0.2): 1, ("3d", 0.5): 0, ("3d", 0.7): 0,
        ("bev", 0.2): 1, ("bev", 0.5): 1, ("bev", 0.7): 0,
    }  # fmt: skip
    assert LOOSE_IOU["Car"] == 0.5 and LOOSE_IOU["Pedestrian"] == 0.25
    assert LOOSE_IOU.keys() == MIN_IOU.keys()


def test_the_surest_of_two_finds_the_object():
    twice = cars([20, 20], scores=[0.35, 0.85])
    twice.location[1] = twice.location[0]
    matches = match_objects([cars([20])], [twice], ["Car"])["Car"]
    assert matches.found.tolist() == [-1, 0] and matches.finder.tolist() == [1]
    edges, hits, alarms = score_histogram(matches, 10)
    assert edges.tolist() == pytest.approx(np.linspace(0, 1, 11).tolist())
    assert np.flatnonzero(hits).tolist() == [8] and np.flatnonzero(alarms).tolist() == [3]
    assert matches.best_score == 0.85


def test_histogram_of_scores_beyond_0_and_1():
    matches = match_objects([cars([20])], [cars([20, 60], scores=[4.0, -2.0])], ["Car"])["Car"]
    edges, hits, alarms = score_histogram(matches, 6)
    assert edges[0] == -2 and edges[-1] == 4 and hits.sum() == alarms.sum() == 1


def test_frames_from_best_to_worst():
    labels = [cars([20, 30]), cars([20]), cars([]), cars([20, 30, 40]), cars([])]
    results = [
        cars([20, 30], scores=[0.9, 0.8]),
        cars([60], scores=[0.9]),
        cars([]),
        cars([20, 30], scores=[0.9, 0.1]),
        cars([20], scores=[0.05]),
    ]
    for objects in results:
        objects.score = np.zeros(0) if objects.score is None else objects.score
    matches = match_objects(labels, results, ["Car"])
    ranked = frame_scores(matches, 5, {"Car": 0.5})
    assert [(s.frame, s.hits, s.missed, s.false_alarms) for s in ranked] == [
        (0, 2, 0, 0), (3, 1, 2, 0), (1, 0, 1, 1),
    ]  # fmt: skip
    assert ranked[0].f1 == 1 and ranked[1].f1 == pytest.approx(0.5) and ranked[2].f1 == 0
    everything = frame_scores(matches, 5, {"Car": 0.0})
    assert [s.frame for s in everything] == [0, 3, 4, 1]


def test_the_curve_gives_the_average_precision():
    rng = np.random.default_rng(1)
    labels = [cars(rng.uniform(5, 60, 6)) for _ in range(30)]
    results = [cars(objects.location[:, 2], scores=rng.random(6)) for objects in labels]
    for objects in results:
        objects.location[rng.random(6) < 0.3, 0] += 100
    result = evaluate(labels, results, ["Car"])
    for metric in ("3d", "bev", "2d", "aos"):
        recall, precision = result.precision_recall("Car", metric)
        assert recall.tolist() == pytest.approx([k / 40 for k in range(41)])
        assert (100 * precision[:, 1:].mean(axis=1)).tolist() == pytest.approx(
            result.average_precision("Car", metric)["R40"]
        )


def test_bad_input():
    with pytest.raises(ValueError, match="1 frames of labels but 0"):
        match_objects([cars([1])], [], ["Car"])
    with pytest.raises(ConfigError, match="unknown class 'Bus'"):
        match_objects([], [], ["Bus"])
    for options in ({"metric": "2d"}, {"difficulty": "harder"}):
        with pytest.raises(ValueError, match="metric"):
            match_objects([], [], ["Car"], **options)
