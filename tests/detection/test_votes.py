"""Several looks at a sweep, and what they agree on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelpool.config import Config
from voxelpool.detection import Detections, Look, looks, merge
from voxelpool.detection.votes import LARGEST_ANGLE, LARGEST_SCALING
from voxelpool.models import VoxelDetector, build_detector
from voxelpool.models.weights import random_points
from voxelpool.ops import points_in_boxes

GRID = (0.0, -20.0, -3.0, 40.0, 20.0, 1.0)
AS_IS = Look()
CAR = (10.0, 2.0, -1.0, 4.0, 1.6, 1.5, 0.3)


def found(*boxes: Sequence[float], scores: Sequence[float], ids: Sequence[int] = ()) -> Detections:
    return Detections(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 7),
        torch.tensor(scores, dtype=torch.float32),
        torch.tensor(ids or [0] * len(scores), dtype=torch.int64),
        ("Car", "Cyclist"),
    )


def moved(box: Sequence[float], **changes: float) -> tuple[float, ...]:
    """The box with x, y, length or yaw changed by so much."""
    places = {"x": 0, "y": 1, "length": 3, "yaw": 6}
    values = list(box)
    for name, change in changes.items():
        values[places[name]] += change
    return tuple(values)


# --- looks ---------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    mirrored=st.booleans(),
    angle=st.floats(-3, 3),
    scale=st.floats(0.5, 2),
    x=st.floats(-50, 50),
    y=st.floats(-50, 50),
    yaw=st.floats(-3, 3),
)
def test_boxes_come_back_around_their_points(
    mirrored: bool, angle: float, scale: float, x: float, y: float, yaw: float
) -> None:
    """A box in the look, laid by hand around what it holds there, is the box of the sweep."""
    look = Look(mirrored, angle, scale)
    box = torch.tensor([[x, y, -1.0, 4.0, 1.6, 1.5, yaw]], dtype=torch.float64)
    along = torch.tensor([math.cos(yaw), math.sin(yaw), 0.0], dtype=torch.float64)
    middle = box[:, :3]
    points = torch.cat([middle, middle + 1.9 * along, middle - 2.1 * along])
    points = torch.cat([points, torch.tensor([[0.1], [0.2], [0.3]], dtype=torch.float64)], 1)
    there = look.points(points)
    assert torch.equal(there[:, 3], points[:, 3])
    heading = there[1, :2] - there[0, :2]
    in_look = torch.cat([there[0, :3], box[0, 3:6] * scale, torch.atan2(*heading.flip(0))[None]])
    back = look.boxes_back(in_look[None])
    torch.testing.assert_close(back[:, :6], box[:, :6], rtol=1e-9, atol=1e-9)
    assert abs(math.remainder(float(back[0, 6]) - yaw, 2 * math.pi)) < 1e-9
    assert points_in_boxes(there[:, :3], in_look[None])[:, 0].tolist() == [True, True, False]
    assert points_in_boxes(points[:, :3], back)[:, 0].tolist() == [True, True, False]


def test_the_first_look_changes_nothing_and_each_beginning_is_spread_out() -> None:
    points = torch.randn(100, 5)
    assert looks(1) == (AS_IS,)
    assert torch.equal(AS_IS.points(points), points)
    many = looks(40)
    assert looks(7) == many[:7]
    assert len(set(many)) == 40
    assert [look.mirrored for look in many[:4]] == [False, True, False, True]
    for count in (6, 12, 40):
        angles = torch.tensor([look.angle for look in many[:count]]) / LARGEST_ANGLE
        scalings = (torch.tensor([look.scale for look in many[:count]]) - 1) / LARGEST_SCALING
        for values in (angles, scalings):
            assert values.abs().max() <= 1
            gaps = torch.cat(
                [torch.tensor([-1.0]), values.sort().values, torch.tensor([1.0])]
            ).diff()
            assert gaps.max() < 2 * 2 / count
    with pytest.raises(ValueError, match="votes must be at least 1, got 0"):
        looks(0)


# --- merging -------------------------------------------------------------------------------------


def test_boxes_are_averaged_by_their_scores() -> None:
    """By hand: weights 3/4 and 1/4, score (0.6 + 0.2) / 2."""
    other = moved(CAR, x=0.4, y=-0.2, length=0.8, yaw=0.2)
    one = merge([found(CAR, scores=[0.6]), found(other, scores=[0.2])], [AS_IS, AS_IS], GRID)
    assert len(one) == 1 and one.classes == ("Car", "Cyclist")
    torch.testing.assert_close(one.scores, torch.tensor([0.4]))
    expected = torch.tensor([moved(CAR, x=0.1, y=-0.05, length=0.2)])
    torch.testing.assert_close(one.boxes[:, :6], expected[:, :6])
    double = 0.75 * torch.tensor([math.cos(0.6), math.sin(0.6)]) + 0.25 * torch.tensor(
        [math.cos(1.0), math.sin(1.0)]
    )
    assert float(one.boxes[0, 6]) == pytest.approx(math.atan2(double[1], double[0]) / 2, abs=1e-6)


def test_who_finds_nothing_counts_as_zero_where_it_could_have() -> None:
    nothing = found(scores=[])
    (score,) = merge(
        [found(CAR, scores=[0.6]), nothing, nothing], [AS_IS] * 3, GRID
    ).scores.tolist()
    assert score == pytest.approx(0.2)
    at_the_edge = moved(CAR, x=29.9)
    smaller, larger = Look(scale=0.9), Look(scale=1.1)
    one = merge(
        [found(at_the_edge, scores=[0.6]), nothing, nothing], [AS_IS, smaller, larger], GRID
    )
    assert float(one.scores) == pytest.approx(0.3)
    beyond = moved(CAR, x=30.1)  # outside of every grid, and yet found
    one = merge([found(beyond, scores=[0.6]), nothing], [AS_IS, larger], GRID)
    assert float(one.scores) == pytest.approx(0.6)


@pytest.mark.parametrize("yaw", [0.3, -3.1, 3.1])
def test_boxes_point_where_most_of_the_score_does(yaw: float) -> None:
    car = (*CAR[:6], yaw)
    round_ = moved(car, yaw=math.pi + 0.1)
    three = [found(round_, scores=[0.7]), found(car, scores=[0.4]), found(car, scores=[0.4])]
    (merged,) = merge(three, [AS_IS] * 3, GRID).boxes[:, 6].tolist()
    assert math.remainder(merged - yaw, 2 * math.pi) == pytest.approx(0.7 * 0.1 / 1.5, abs=1e-3)
    assert -math.pi <= merged < math.pi
    (merged,) = merge(three[:2], [AS_IS] * 2, GRID).boxes[:, 6].tolist()
    assert math.remainder(merged - yaw, 2 * math.pi) == pytest.approx(
        math.pi + 0.7 * 0.1 / 1.1 - 2 * math.pi, abs=1e-3
    )


def test_what_does_not_belong_together_stays_apart() -> None:
    across, far = moved(CAR, yaw=math.pi / 2), moved(CAR, x=3.0)
    one = found(CAR, scores=[0.9])
    for other in (found(across, scores=[0.5]), found(far, scores=[0.5])):
        both = merge([one, other], [AS_IS] * 2, GRID)
        torch.testing.assert_close(both.boxes, torch.cat([one.boxes, other.boxes]))
        torch.testing.assert_close(both.scores, torch.tensor([0.45, 0.25]))
    both = merge([one, found(CAR, scores=[0.5], ids=[1])], [AS_IS] * 2, GRID)
    assert both.class_ids.tolist() == [0, 1]


def test_a_look_has_one_vote() -> None:
    """Where a look found two boxes of one object, its best counts."""
    twice = found(CAR, moved(CAR, x=0.3), scores=[0.8, 0.7])
    one = merge([twice, found(CAR, scores=[0.4])], [AS_IS] * 2, GRID)
    torch.testing.assert_close(one.scores, torch.tensor([0.6]))
    torch.testing.assert_close(one.boxes, torch.tensor([CAR]))


def test_the_order_of_looks_does_not_matter(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    results = []
    for _ in range(6):
        boxes = torch.tensor([moved(CAR, x=8.0 * row) for row in range(3)])
        boxes[:, :2] += 0.1 * torch.randn(3, 2, generator=generator)
        results.append(
            Detections(boxes, torch.rand(3, generator=generator), torch.tensor([0, 1, 0])).to(
                device
            )
        )
    views = looks(6)
    one = merge(results, views, GRID)
    other = merge(results[::-1], views[::-1], GRID)
    assert one.boxes.device.type == device.type and one.boxes.dtype == torch.float32
    assert len(one) == 3
    for name in ("boxes", "scores", "class_ids"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name))


def test_nothing_at_all() -> None:
    nothing = found(scores=[])
    merged = merge([nothing, nothing], [AS_IS] * 2, GRID)
    assert len(merged) == 0 and merged.boxes.shape == (0, 7) and merged.classes == nothing.classes
    with pytest.raises(ValueError, match="0 results do not fit 0 looks"):
        merge([], [], GRID)
    with pytest.raises(ValueError, match="1 results do not fit 2 looks"):
        merge([nothing], [AS_IS] * 2, GRID)


# --- in the network ------------------------------------------------------------------------------


@pytest.fixture
def network(tiny_config: Config) -> VoxelDetector:
    torch.manual_seed(0)
    network = build_detector(tiny_config).eval()
    network.postprocess = network.postprocess.changed(score_threshold=0.02, nms_iou=0.3)
    return network


def assert_same(one: Detections, other: Detections) -> None:
    for name in ("boxes", "scores", "class_ids"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_the_network_merges_what_it_finds_in_each_look(network: VoxelDetector) -> None:
    points = random_points(network, 3000)
    found_in = []
    network.postprocess = network.postprocess.changed(score_threshold=0.01)
    for look in looks(3):
        (one,) = network.detect(look.points(points), votes=1)
        found_in.append(
            Detections(look.boxes_back(one.boxes), one.scores, one.class_ids, one.classes)
        )
    network.postprocess = network.postprocess.changed(score_threshold=0.02)
    expected = network.postprocess.suppress(merge(found_in, looks(3), network.grid.range))
    (three,) = network.detect(points, votes=3)
    assert len(three) > 5
    assert float(three.scores.min()) >= 0.02
    assert_same(three, expected)
    network.looks = looks(3)
    assert_same(network.detect(points)[0], expected)
    (once,) = network.detect(points, votes=1)
    assert len(once) != len(three) or not torch.equal(once.boxes, three.boxes)


def test_each_sweep_of_a_batch_votes_alone(network: VoxelDetector) -> None:
    sweeps = [random_points(network, count, count) for count in (2000, 0, 900)]
    batch = torch.tensor([0] * 2000 + [2] * 900)
    together = network.detect(torch.cat(sweeps), batch, 3, votes=4)
    assert len(together) == 3 and len(together[1]) == 0
    for sweep, one in zip(sweeps, together, strict=True):
        (alone,) = network.detect(sweep, votes=4)
        torch.testing.assert_close(one.scores, alone.scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 5), (2, 5, 4)])
def test_points_of_another_shape_are_refused(
    network: VoxelDetector, shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"points must have shape \(N, 4\), got"):
        network.detect(torch.zeros(shape), votes=3)


def test_votes_are_configured(tiny_config: Config) -> None:
    assert len(build_detector(tiny_config).looks) == 1
    settings = tiny_config.postprocess.model_copy(update={"votes": 5})
    assert len(build_detector(tiny_config.model_copy(update={"postprocess": settings})).looks) == 5
