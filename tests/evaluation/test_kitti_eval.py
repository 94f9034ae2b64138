"""KITTI evaluation against the devkit's published figures, and rule by rule by hand."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from voxelpool.datasets.kitti import read_label, read_result
from voxelpool.errors import ConfigError, DataError
from voxelpool.evaluation import MIN_IOU, evaluate, table_rows

CURVE = {"detection": "2d", "detection_BEV": "bev", "detection_ground": "bev"} | {
    "detection_3D": "3d",
    "detection_3d": "3d",
    "orientation": "aos",
}


def parse(key):
    """("Car", "bev") from "car_detection_BEV_AP" or "car_detection_ground"."""
    name, _, rest = key.partition("_")
    return name.capitalize(), CURVE[rest.removesuffix("_AP").removesuffix("_AOS")]


@pytest.mark.parametrize("case", ["B1_small_noise", "B4_tied_scores", "E1_edges"])
def test_devkit_figures(kitti_eval_cases, case):
    folder = kitti_eval_cases / case
    names = sorted(path.name for path in (folder / "results").glob("*.txt"))
    result = evaluate(
        [read_label(folder / "label_2" / name) for name in names],
        [read_result(folder / "results" / name) for name in names],
    )
    expected = json.loads((folder / "expected.json").read_text())
    assert {parse(key) for key in expected["r40"]} == {
        (name, metric) for name, metrics in result.curves.items() for metric in metrics
    }
    for recall, curves in expected.items():
        for key, figures in curves.items():
            name, metric = parse(key)
            if (recall, case, name) == ("r11", "E1_edges", "Car"):
                continue  # that tool still counts a height of exactly the minimum
            found = result.average_precision(name, metric)[recall.upper()]
            np.testing.assert_allclose(found, figures["AP"], rtol=0, atol=1e-4, err_msg=key)
            np.testing.assert_allclose(
                result.curves[name][metric][1],
                figures["precision_moderate"],
                rtol=0,
                atol=1e-6,
                err_msg=key,
            )


# ------------------------------------------------------------------------------ cases made by hand
def obj(
    kind,
    place=0,
    *,
    score=0.5,
    shift=0.0,
    height=50.0,
    truncated=0.0,
    occluded=0,
    alpha=0.1,
    **changes,
):
    """An object 80 px wide and 4 m long. Equal places coincide, others do not touch.

    A shift of f lengths gives an overlap of (1 - f) / (1 + f) in all metrics.
    """
    left = 100.0 * place + 80 * shift
    row = {
        "type": kind,
        "truncated": truncated,
        "occluded": occluded,
        "alpha": alpha,
        "bbox": [left, 150, left + 80, 150 + height],
        "dimensions": [1.5, 1.6, 4.0],
        "location": [10.0 * place + 4 * shift, 1.6, 20.0],
        "rotation_y": 0.0,
        "score": score,
    }
    if kind == "DontCare":
        row |= {
            "dimensions": [-1.0] * 3,
            "location": [-1000.0] * 3,
            "alpha": -10,
            "rotation_y": -10,
        }
    return row | changes


def columns(rows):
    n = len(rows)
    column = {key: np.array([r[key] for r in rows], float) for key in obj("Car") if key != "type"}
    for key, width in (("bbox", 4), ("dimensions", 3), ("location", 3)):
        column[key] = column[key].reshape(n, width)
    return SimpleNamespace(type=[r["type"] for r in rows], **column)


def run(*frames, **options):
    """Evaluates frames given as (ground truth, detections)."""
    return evaluate(
        [columns(truth) for truth, _ in frames], [columns(dets) for _, dets in frames], **options
    )


def slots(result, name="Car", metric="2d", difficulty=1, count=3):
    """The first precision slots; the rest must be 0."""
    curve = result.curves[name][metric][difficulty]
    assert not curve[count:].any()
    return curve[:count].tolist()


DETECTION_METRICS = ("2d", "bev", "3d")


def test_one_true_positive_is_worth_one_slot_of_eleven():
    # One threshold, precision 1 in slot 0: R11 = 1/11; slot 0 is not in R40.
    result = run(([obj("Car")], [obj("Car")]))
    for metric in (*DETECTION_METRICS, "aos"):
        figures = result.average_precision("Car", metric)
        assert figures["R11"] == pytest.approx([100 / 11] * 3)
        assert figures["R40"] == [0.0] * 3


def test_forty_found_objects_reach_forty_slots():
    # Recall i/40 is met exactly by the i-th score, so slots 0..39 hold 1: R40 = 39/40, R11 = 10/11.
    frames = [([obj("Car")], [obj("Car", score=i / 100)]) for i in range(40)]
    figures = run(*frames).average_precision("Car", "3d")
    assert figures["R40"] == pytest.approx([97.5] * 3)
    assert figures["R11"] == pytest.approx([1000 / 11] * 3)


def test_eighty_found_objects_reach_all_slots():
    # Scores 1, 2, 4, 6, ..., 80 are kept: 41 slots.
    frames = [([obj("Car")], [obj("Car", score=i / 100)]) for i in range(80)]
    figures = run(*frames).average_precision("Car", "3d")
    assert figures == {"R40": pytest.approx([100.0] * 3), "R11": pytest.approx([100.0] * 3)}


def test_precision_at_each_threshold():
    # Hits .9 and .7, false alarm .8: precision 1/1 and 2/3.
    result = run(
        ([obj("Car", 0), obj("Car", 1)], [obj("Car", 0, score=0.9), obj("Car", 1, score=0.7)]),
        ([], [obj("Car", 2, score=0.8)]),
    )
    for metric in DETECTION_METRICS:
        assert slots(result, metric=metric) == pytest.approx([1, 2 / 3, 0])
    assert result.average_precision("Car", "bev")["R40"][1] == pytest.approx(100 * (2 / 3) / 40)


def test_a_later_better_precision_counts_at_earlier_slots():
    # False alarm .95, hits .9 and .8: 1/2 then 2/3; slot 0 takes 2/3 as well.
    truth = [obj("Car", 0), obj("Car", 1)]
    dets = [obj("Car", 2, score=0.95), obj("Car", 0, score=0.9), obj("Car", 1, score=0.8)]
    assert slots(run((truth, dets))) == pytest.approx([2 / 3, 2 / 3, 0])


def test_missed_objects_limit_recall_not_precision():
    # One of four found: recall 1/4 is one threshold only, as the single hit is the last score.
    truth = [obj("Car", i) for i in range(4)]
    assert slots(run((truth, [obj("Car", 0)]))) == [1, 0, 0]


def test_overlap_must_exceed_the_minimum():
    # 90 px wide, 30 px apart: 60 / 120 = 0.5 exactly.
    truth = [obj("Pedestrian", bbox=[0, 0, 90, 50])]
    dets = [obj("Pedestrian", bbox=[30, 0, 120, 50])]
    assert slots(run((truth, dets)), "Pedestrian") == [0, 0, 0]
    loose = run((truth, dets), min_iou={"Pedestrian": 0.499})
    assert slots(loose, "Pedestrian") == [1, 0, 0]


@pytest.mark.parametrize(("name", "shift", "hit"), [
    ("Car", 0.17, 1), ("Car", 0.18, 0), ("Pedestrian", 0.33, 1), ("Pedestrian", 0.34, 0),
    ("Cyclist", 0.33, 1), ("Cyclist", 0.34, 0),
])  # fmt: skip
def test_standard_minimum_overlaps(name, shift, hit):
    # (1 - f) / (1 + f): .709, .695 about 0.7 and .504, .493 about 0.5.
    result = run(([obj(name)], [obj(name, shift=shift)]))
    for metric in DETECTION_METRICS:
        assert slots(result, name, metric) == [hit, 0, 0]


def test_boxes_that_share_little_still_match_at_a_low_minimum():
    # f = .9: .1 / 1.9 = .053. Crossed at right angles, 2.4 m apart:
    # .4 x 1.6 m of 2 x 6.4 m^2: .64 / 12.16 = .053.
    along = obj("Car", shift=0.9)
    across = obj("Car", location=[2.4, 1.6, 20.0], rotation_y=math.pi / 2, bbox=along["bbox"])
    for det in (along, across):
        result = run(([obj("Car")], [det]), min_iou={"Car": 0.05})
        for metric in DETECTION_METRICS:
            assert slots(result, metric=metric) == [1, 0, 0]
        result = run(([obj("Car")], [det]), min_iou={"Car": 0.054})
        for metric in DETECTION_METRICS:
            assert slots(result, metric=metric) == [0, 0, 0]


def test_last_score_is_always_a_threshold():
    # 3 of 80 found: kept are recall 1/80 and 2/80 (steps 0 and 2/80). At 3/80 the step is 4/80, and
    # only the next score, if there were one, would come closer.
    frames = [([obj("Car")], [obj("Car", score=i / 10)] if i < 3 else []) for i in range(80)]
    assert slots(run(*frames)) == [1, 1, 1]


@pytest.mark.parametrize(
    ("height", "counted"),
    [(25.0, (0, 0, 0)), (25.01, (0, 1, 1)), (40.0, (0, 1, 1)), (40.01, (1, 1, 1))],
)
def test_height_of_ground_truth_must_exceed_the_minimum(height, counted):
    # Ignored truth takes its detection along, so the false-alarm count stays 0 and AP 0 as well.
    result = run(([obj("Car", height=height)], [obj("Car", height=height)]))
    assert result.num_ground_truth["Car"] == counted
    for metric in DETECTION_METRICS:
        assert [slots(result, metric=metric, difficulty=d)[0] for d in range(3)] == list(counted)


@pytest.mark.parametrize(
    ("occluded", "truncated", "counted"),
    [
        (0, 0.15, (1, 1, 1)),
        (0, 0.16, (0, 1, 1)),
        (1, 0.0, (0, 1, 1)),
        (1, 0.30, (0, 1, 1)),
        (1, 0.31, (0, 0, 1)),
        (2, 0.50, (0, 0, 1)),
        (2, 0.51, (0, 0, 0)),
        (3, 0.0, (0, 0, 0)),
    ],
)
def test_occlusion_and_truncation_make_nested_sets(occluded, truncated, counted):
    # A second, plain object is found at a lower score: were the first detection a false alarm where
    # its object is ignored, precision there would be 1/2.
    truth = [obj("Car", occluded=occluded, truncated=truncated), obj("Car", 1)]
    result = run((truth, [obj("Car", score=0.9), obj("Car", 1, score=0.4)]))
    assert result.num_ground_truth["Car"] == tuple(1 + n for n in counted)
    for difficulty, n in enumerate(counted):
        assert slots(result, difficulty=difficulty) == [1, n, 0]


def test_height_of_a_detection_is_cut_to_whole_pixels():
    # 24.99 px -> 24 < 25: ignored, the object is taken along and there is no threshold at moderate.
    # 25 px is not < 25. Truth is 26 px, so overlaps are 24.99/26 and 25/26.
    for height, hit in ((24.99, 0), (25.0, 1)):
        result = run(([obj("Car", height=26)], [obj("Car", height=height)]))
        for metric in DETECTION_METRICS:
            assert slots(result, metric=metric) == [hit, 0, 0]


def test_small_detections_are_no_false_alarms():
    # A 30 px detection of nothing at .9: a false alarm at moderate (1/2), ignored at easy (1/1).
    result = run(([obj("Car")], [obj("Car"), obj("Car", 1, height=30, score=0.9)]))
    assert slots(result, difficulty=0) == [1, 0, 0]
    assert slots(result, difficulty=1) == [0.5, 0, 0]


def test_a_small_detection_of_another_class_takes_an_object():
    # 24 px high, so ignored before its class is looked at: with the higher score it takes the car
    # in the first pass on the ground, no score is left, AP 0. In the image 24/50 is no overlap.
    dets = [obj("Pedestrian", height=24, score=0.9), obj("Car")]
    result = run(([obj("Car")], dets))
    assert slots(result, metric="bev") == slots(result, metric="3d") == [0, 0, 0]
    assert slots(result, metric="2d") == [1, 0, 0]
    tall = run(([obj("Car")], [obj("Pedestrian", height=50, score=0.9), obj("Car")]))
    assert slots(tall, metric="bev") == [1, 0, 0]


@pytest.mark.parametrize("first", ["small", "counted"])
def test_a_small_detection_yields_to_a_counted_one(first):
    # First pass: .9 and .5 are hits. At .5 the small one (.8) is there too, but object 0 takes the
    # counted one: precision 2/2. Were the small one taken, .9 would be a false alarm.
    small, counted = obj("Car", height=24, score=0.8), obj("Car", score=0.9, shift=0.05)
    pair = [small, counted] if first == "small" else [counted, small]
    result = run(([obj("Car"), obj("Car", 1)], [*pair, obj("Car", 1, score=0.5)]))
    assert slots(result, metric="bev") == [1, 1, 0]


@pytest.mark.parametrize(
    ("name", "other", "precision"),
    [
        ("Car", "Van", 1),
        ("Car", "Truck", 0.5),
        ("Pedestrian", "Person_sitting", 1),
        ("Pedestrian", "Cyclist", 0.5),
        ("Cyclist", "Pedestrian", 0.5),
        ("Cyclist", "Van", 0.5),
    ],
)
def test_detecting_a_neighbour_class_is_ignored(name, other, precision):
    # The detection on the other class at .9 is a false alarm unless that class is a neighbour.
    truth = [obj(other, 0), obj(name, 1)]
    result = run((truth, [obj(name, 0, score=0.9), obj(name, 1, score=0.5)]))
    for metric in DETECTION_METRICS:
        assert slots(result, name, metric) == [precision, 0, 0]


def test_objects_choose_in_file_order():
    # One detection on a van and a car in the same place: who stands first in the file takes it.
    van, car = obj("Van"), obj("Car")
    assert slots(run(([van, car], [obj("Car")]))) == [0, 0, 0]
    assert slots(run(([car, van], [obj("Car")]))) == [1, 0, 0]


def test_dontcare_excuses_false_alarms_in_the_image_only():
    # Hit .5, false alarm .9 with 60 of its 80 px in the region: .75 > .7. In the image 1/1, on the
    # ground 1/2.
    region = obj("DontCare", bbox=[320, 100, 500, 300])
    result = run(([obj("Car"), region], [obj("Car"), obj("Car", 3, score=0.9)]))
    assert slots(result) == [1, 0, 0]
    assert slots(result, metric="bev") == slots(result, metric="3d") == [0.5, 0, 0]


@pytest.mark.parametrize(
    ("name", "left", "precision"),
    [("Car", 324, 0.5), ("Car", 323, 1), ("Pedestrian", 340, 0.5), ("Pedestrian", 339, 1)],
)
def test_cover_by_dontcare_must_exceed_the_minimum_overlap(name, left, precision):
    # The alarm spans 300..380 px: cover 56/80 = .7, 57/80, 40/80 = .5 and 41/80.
    region = obj("DontCare", bbox=[left, 100, 500, 300])
    result = run(([obj(name), region], [obj(name), obj(name, 3, score=0.9)]))
    assert slots(result, name) == [precision, 0, 0]


def test_two_dontcare_regions_excuse_one_alarm_once():
    # Hit .5, alarms .9 (covered twice) and .8 (not covered): 1/2, not 1/1.
    region = obj("DontCare", bbox=[290, 100, 500, 300])
    dets = [obj("Car"), obj("Car", 3, score=0.9), obj("Car", 6, score=0.8)]
    assert slots(run(([obj("Car"), region, region], dets))) == [0.5, 0, 0]


def test_dontcare_does_not_take_a_hit_and_needs_its_own_frame():
    region = obj("DontCare", bbox=[0, 0, 1000, 400])
    assert slots(run(([region, obj("Car")], [obj("Car")]))) == [1, 0, 0]
    frames = (([region], []), ([obj("Car")], [obj("Car"), obj("Car", 3, score=0.9)]))
    assert slots(run(*frames)) == [0.5, 0, 0]


def test_equal_scores_count_together_at_each_threshold():
    # Two hits and an alarm, all .5: both thresholds are .5, 2/3 each.
    truth = [obj("Car", 0), obj("Car", 1)]
    result = run((truth, [obj("Car", 0), obj("Car", 1)]), ([], [obj("Car", 2)]))
    assert slots(result) == pytest.approx([2 / 3, 2 / 3, 0])


def test_first_of_equal_scores_is_taken_in_the_first_pass():
    # Counted first: a hit. Small first: the object is taken along and no threshold is left.
    small, counted = obj("Car", height=24), obj("Car")
    assert slots(run(([obj("Car")], [counted, small])), metric="bev") == [1, 0, 0]
    assert slots(run(([obj("Car")], [small, counted])), metric="bev") == [0, 0, 0]


def test_first_of_equal_overlaps_is_taken_in_the_second_pass():
    # Twice the same box at .5; the one taken gives the orientation: (1 + cos 0)/2 / 2 or 0.
    right, wrong = obj("Car"), obj("Car", alpha=0.1 + math.pi)
    for dets, orientation in (([right, wrong], 0.5), ([wrong, right], 0.0)):
        result = run(([obj("Car")], dets))
        assert slots(result) == [0.5, 0, 0]
        assert slots(result, metric="aos") == pytest.approx([orientation, 0, 0])


def test_highest_overlap_is_taken_in_the_second_pass():
    # First pass: .9 (shifted) and .4 are hits. At .9: 1/1. At .4 the exact box (.8) is taken and .9
    # is an alarm: 2/3. Its orientation counts: the shifted one is turned by pi: 0/1, then 2/3.
    shifted = obj("Car", score=0.9, shift=0.1, alpha=0.1 + math.pi)
    dets = [shifted, obj("Car", score=0.8), obj("Car", 1, score=0.4)]
    result = run(([obj("Car"), obj("Car", 1)], dets))
    assert slots(result) == pytest.approx([1, 2 / 3, 0])
    assert slots(result, metric="aos") == pytest.approx([2 / 3, 2 / 3, 0])


def test_a_slot_without_any_counted_detection_is_zero():
    # Van, then car. First pass: the van takes a (.9), the car takes b (.8): threshold .8. There the
    # van takes b, which overlaps it more; a does not reach the car and lies in DontCare: 0 of 0.
    van, car = obj("Van", shift=0.0), obj("Car", shift=0.1)
    region = obj("DontCare", bbox=[-60, 0, 68, 400])
    dets = [obj("Car", shift=-0.15, score=0.9), obj("Car", shift=0.05, score=0.8)]
    result = run(([van, car, region], dets))
    assert slots(result) == [0, 0, 0]


def test_orientation_similarity():
    # One hit with an angle off by pi/2: (1 + 0)/2.
    result = run(([obj("Car")], [obj("Car", alpha=0.1 + math.pi / 2)]))
    assert slots(result, metric="aos") == pytest.approx([0.5, 0, 0])
    assert result.average_precision("Car", "aos")["R11"] == pytest.approx([50 / 11] * 3)


def test_one_detection_without_angle_switches_orientation_off():
    frames = [([obj("Car")], [obj("Car")]), ([], [obj("Truck", 1, alpha=-10)])]
    assert set(run(*frames).curves["Car"]) == set(DETECTION_METRICS)
    assert "aos" in run(*frames[:1]).curves["Car"]
    unlabelled = run(([obj("Car", alpha=-10), obj("DontCare", 3)], [obj("Car")]))
    assert "aos" in unlabelled.curves["Car"]


def test_a_class_without_detections_is_not_evaluated():
    result = run(([obj("Car"), obj("Pedestrian", 1)], [obj("Car")]))
    assert set(result.curves) == {"Car"}
    assert result.num_ground_truth["Pedestrian"] == (1, 1, 1)
    assert run(([obj("Car")], [])).to_dict() == {}
    assert run().to_dict() == {}


def test_a_class_without_ground_truth_scores_zero():
    result = run(([], [obj("Car")]), ([obj("Pedestrian")], []))
    for metric in (*DETECTION_METRICS, "aos"):
        assert slots(result, metric=metric) == [0, 0, 0]


def test_a_metric_without_boxes_is_not_evaluated():
    truth = [obj("Car")]
    outside = obj("Car", bbox=[-1.0, 150, 79, 200])
    assert set(run((truth, [outside])).curves["Car"]) == {"bev", "3d"}
    assert "2d" in run((truth, [outside, obj("Car", 5)])).curves["Car"]
    flat = obj("Car", location=[-1000.0] * 3, dimensions=[-1.0] * 3)
    assert set(run((truth, [flat])).curves["Car"]) == {"2d", "aos"}
    no_height = obj("Car", location=[0, -1000, 20], dimensions=[-1.0, 1.6, 4.0])
    assert set(run((truth, [no_height])).curves["Car"]) == {"2d", "aos", "bev"}


def test_class_names_compare_without_case():
    result = run(([obj("CAR"), obj("van", 1)], [obj("car"), obj("cAr", 1, score=0.9)]))
    assert slots(result) == [1, 0, 0]


def test_location_is_the_bottom_of_the_box():
    # y grows downwards. Truth spans y .1 to 1.6, the detection .1 to 2.0: 1.5 / 1.9 = .79 > .7.
    # Were the location the centre, it would be 1.3 / 2.1 = .62.
    det = obj("Car", dimensions=[1.9, 1.6, 4.0], location=[0, 2.0, 20])
    assert slots(run(([obj("Car")], [det])), metric="3d") == [1, 0, 0]
    # 1.0 to 2.5 and .1 to 1.6 share .6: .6 / 2.4, a hit on the ground alone.
    low = run(([obj("Car")], [obj("Car", location=[0, 2.5, 20])]))
    assert slots(low, metric="bev") == [1, 0, 0]
    assert slots(low, metric="3d") == [0, 0, 0]
    # 3 m lower the boxes share no height at all.
    lower = run(([obj("Car")], [obj("Car", location=[0, 4.6, 20])]), min_iou={"Car": 0.0})
    assert slots(lower, metric="bev") == [1, 0, 0]
    assert slots(lower, metric="3d") == [0, 0, 0]


@pytest.mark.parametrize("turn", [0.0, math.pi])
def test_rotation_turns_x_towards_minus_z(turn):
    # 0.4 m along the heading (cos, -sin): 3.6 / 4.4 = .82, a hit. Along (cos, sin), which is
    # 1.4 rad off: 3.932 * 1.206 / (12.8 - 4.742) = .59, none.
    ry = 0.7
    for sign, hit in ((-1, 1), (1, 0)):
        place = [0.4 * math.cos(ry), 1.6, 20 + sign * 0.4 * math.sin(ry)]
        det = obj("Car", rotation_y=ry + turn, location=place)
        result = run(([obj("Car", rotation_y=ry)], [det]))
        assert slots(result, metric="bev") == slots(result, metric="3d") == [hit, 0, 0]


def test_frames_do_not_mix():
    # The same place in another frame is no match.
    result = run(([obj("Car")], []), ([], [obj("Car")]))
    for metric in DETECTION_METRICS:
        assert slots(result, metric=metric) == [0, 0, 0]


def test_other_classes_and_overlaps():
    result = run(([obj("Truck")], [obj("Truck", shift=0.2)]), classes=["Truck"])
    assert slots(result, "Truck") == [0, 0, 0]
    result = run(
        ([obj("Truck")], [obj("Truck", shift=0.2)]), classes=["Truck"], min_iou={"Truck": 0.6}
    )
    assert slots(result, "Truck") == [1, 0, 0]  # .8 / 1.2 = .67


def test_forms_of_the_result():
    result = run(([obj("Car")], [obj("Car")]))
    expected = {"R40": [0.0] * 3, "R11": pytest.approx([100 / 11] * 3)}
    assert result.to_dict() == {"Car": dict.fromkeys(("3d", "bev", "2d", "aos"), expected)}
    json.dumps(result.to_dict())
    rows = table_rows(result)
    assert [(row.class_name, row.metric) for row in rows] == [
        ("Car", metric) for metric in ("3d", "bev", "2d", "aos")
    ]
    assert rows[0].r40 == (0.0, 0.0, 0.0)
    assert rows[0].r11 == pytest.approx((100 / 11,) * 3)
    assert result.num_frames == 1
    logged = result.scalars(["Car", "Cyclist"], recall="R11")
    assert logged["Car/3d/moderate"] == pytest.approx(100 / 11)
    assert logged["Cyclist/3d/moderate"] == 0.0
    assert "Cyclist/3d/moderate" not in result.scalars()


def test_bad_arguments_are_named():
    car = columns([obj("Car")])
    with pytest.raises(ValueError, match="2 frames of labels but 1"):
        evaluate([car, car], [car])
    with pytest.raises(ConfigError, match="unknown class 'Bus'; known are Car"):
        evaluate([car], [car], classes=["Bus"])
    with pytest.raises(ConfigError, match="unknown class 'Bus'"):
        evaluate([car], [car], min_iou={"Bus": 0.5})
    with pytest.raises(ConfigError, match=r"Car must be in \[0, 1\), got 1.5"):
        evaluate([car], [car], min_iou={"Car": 1.5})
    unscored = columns([obj("Car")])
    unscored.score = None
    with pytest.raises(DataError, match="results, frame 1: no score"):
        evaluate([car, car], [car, unscored])
    bad = columns([obj("Car", score=math.nan)])
    with pytest.raises(DataError, match="results, frame 1: score is not finite"):
        evaluate([car, car], [car, bad])
    short = columns([obj("Car")])
    short.bbox = np.zeros((2, 4))
    with pytest.raises(
        DataError, match=r"labels, frame 0: bbox has shape \(2, 4\), expected \(1, 4\)"
    ):
        evaluate([short], [car])
    assert set(MIN_IOU) >= {"Car", "Pedestrian", "Cyclist"}
