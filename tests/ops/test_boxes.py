"""Box ops against shapely, closed forms and brute force, for the kernels and for the reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import shapely
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from voxelpool.ops import _native
from voxelpool.ops import boxes as ops
from voxelpool.ops.reference import boxes as reference

EXACT = {"rtol": 0.0, "atol": 1e-12}
SETTINGS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(params=["kernel", "reference"], autouse=True)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test runs on the compiled kernels, where they are built, and on the reference."""
    if request.param == "reference":
        monkeypatch.setattr(_native, "usable", lambda device: False)
    return request.param


def box(x=0.0, y=0.0, z=0.0, dx=1.0, dy=1.0, dz=1.0, yaw=0.0) -> Tensor:
    return torch.tensor([[x, y, z, dx, dy, dz, yaw]], dtype=torch.float64)


def random_boxes(n: int, seed: int, spread: float = 10.0, log_sizes=(-0.5, 1.0)) -> Tensor:
    rng = np.random.default_rng(seed)
    boxes = np.empty((n, 7))
    boxes[:, :3] = rng.uniform(-spread, spread, (n, 3)) * (1, 1, 0.1)
    boxes[:, 3:6] = 10 ** rng.uniform(*log_sizes, (n, 3))
    boxes[:, 6] = rng.uniform(-7, 7, n)
    return torch.from_numpy(boxes)


def crowd(n: int, seed: int) -> Tensor:
    """Cars and pedestrians on a street, many of them seen several times over."""
    rng = np.random.default_rng(seed)
    objects = random_boxes(max(1, n // 5), seed, spread=15.0).numpy()
    car = rng.random(len(objects)) < 0.5
    objects[:, 3:6] = np.where(car[:, None], (3.9, 1.6, 1.56), (0.8, 0.6, 1.73))
    boxes = objects[rng.integers(len(objects), size=n)]
    boxes += rng.normal(size=boxes.shape) * (0.2, 0.2, 0.1, 0.05, 0.05, 0.05, 0.1)
    return torch.from_numpy(boxes)


def polygons(boxes: Tensor) -> np.ndarray:
    result = []
    for x, y, _, dx, dy, _, yaw in boxes.double().tolist():
        c, s = math.cos(yaw), math.sin(yaw)
        corners = ((dx / 2, dy / 2), (-dx / 2, dy / 2), (-dx / 2, -dy / 2), (dx / 2, -dy / 2))
        result.append(shapely.Polygon([(x + c * u - s * v, y + s * u + c * v) for u, v in corners]))
    return np.array(result, dtype=object)


def shapely_intersection(a: Tensor, b: Tensor) -> np.ndarray:
    return shapely.area(shapely.intersection(polygons(a)[:, None], polygons(b)[None]))


def shapely_iou(a: Tensor, b: Tensor, *, volume: bool = False) -> Tensor:
    inter = shapely_intersection(a, b)
    a, b = a.double().numpy(), b.double().numpy()
    columns = slice(3, 6) if volume else slice(3, 5)
    if volume:
        top = np.minimum((a[:, 2] + a[:, 5] / 2)[:, None], b[:, 2] + b[:, 5] / 2)
        bottom = np.maximum((a[:, 2] - a[:, 5] / 2)[:, None], b[:, 2] - b[:, 5] / 2)
        inter = inter * np.clip(top - bottom, 0, None)
    union = a[:, columns].prod(1)[:, None] + b[:, columns].prod(1) - inter
    return torch.from_numpy(inter / union)


def greedy(iou: Tensor, scores: Tensor, threshold: float) -> list[int]:
    order = sorted(range(len(scores)), key=lambda i: (-float(scores[i]), i))
    kept: list[int] = []
    for i in order:
        if all(float(iou[k, i]) <= threshold for k in kept):
            kept.append(i)
    return kept


# --- overlap: closed forms -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (box(dx=2, dy=2, dz=2), 1.0),
        (box(dx=2, dy=2, dz=2, yaw=math.pi), 1.0),
        (box(dx=2, dy=2, dz=2, yaw=-math.pi / 2), 1.0),
        (box(dx=2, dy=2, dz=2, yaw=400 * math.pi), 1.0),
        (box(x=1, dx=2, dy=2, dz=2), 1 / 3),
        (box(x=1, y=1, dx=2, dy=2, dz=2), 1 / 7),
        (box(dx=1, dy=1, dz=2, yaw=0.3), 1 / 4),  # contained
        (box(dx=20, dy=10, dz=2, yaw=-1.1), 4 / 200),  # containing
        (box(dx=100, dy=1, dz=2), 2 / 102),  # a cross
        (box(dx=2, dy=2, dz=2, yaw=math.pi / 4), 1 / math.sqrt(2)),  # octagon
        (box(x=2, dx=2, dy=2, dz=2), 0.0),  # a face in common
        (box(x=2, y=2, dx=2, dy=2, dz=2), 0.0),  # a corner in common
        (box(x=1e7, y=-1e7, dx=2, dy=2, dz=2), 0.0),
        (box(dx=0, dy=2, dz=2), 0.0),
        (box(dx=0, dy=0, dz=0), 0.0),
    ],
)
def test_known_overlaps_of_a_square(other: Tensor, expected: float, device: torch.device) -> None:
    square = box(dx=2, dy=2, dz=2).to(device)
    for iou in (ops.boxes_iou_bev, ops.boxes_iou_3d):
        for a, b in ((square, other.to(device)), (other.to(device), square)):
            assert iou(a, b).item() == pytest.approx(expected, abs=1e-12)


def test_octagon_of_two_squares_has_its_known_area() -> None:
    # Side 1 against the same turned by 45 degrees: a regular octagon of area 2 (sqrt 2 - 1).
    area = 2 * (math.sqrt(2) - 1)
    iou = ops.boxes_iou_bev(box(), box(yaw=math.pi / 4)).item()
    assert iou == pytest.approx(area / (2 - area), abs=1e-14)


def test_3d_overlap_takes_heights_into_account() -> None:
    a = box(z=1.0, dx=2, dy=2, dz=2)
    assert ops.boxes_iou_3d(a, box(z=2.0, dx=2, dy=2, dz=2)).item() == pytest.approx(1 / 3)
    assert ops.boxes_iou_3d(a, box(z=3.0, dx=2, dy=2, dz=2)).item() == 0.0
    assert ops.boxes_iou_3d(a, box(z=9.0, dx=2, dy=2, dz=2)).item() == 0.0
    assert ops.boxes_iou_3d(a, box(z=1.0, dx=2, dy=2, dz=0)).item() == 0.0
    assert ops.boxes_iou_bev(a, box(z=9.0, dx=2, dy=2, dz=0)).item() == 1.0


def test_tilted_boxes_that_touch_do_not_overlap(device: torch.device) -> None:
    for yaw in np.linspace(-3, 3, 25):
        a = box(3, -2, 0, 4, 1.5, 1, yaw)
        along = box(3 + 4 * math.cos(yaw), -2 + 4 * math.sin(yaw), 0, 4, 1.5, 1, yaw)
        assert ops.boxes_iou_bev(a.to(device), along.to(device)).item() < 1e-14


# --- overlap: against shapely --------------------------------------------------------------------


@pytest.mark.parametrize("volume", [False, True])
@pytest.mark.parametrize(
    ("spread", "log_sizes"), [(10.0, (-0.5, 1.0)), (3.0, (-3.0, 2.0)), (0.01, (-3.0, -2.0))]
)
def test_overlap_agrees_with_shapely(
    spread: float, log_sizes: tuple[float, float], volume: bool, device: torch.device
) -> None:
    a = random_boxes(120, 1, spread, log_sizes)
    b = torch.cat([random_boxes(150, 2, spread, log_sizes), a[:40]])
    b[150:160, 6] += 1e-9  # nearly parallel edges
    iou = ops.boxes_iou_3d if volume else ops.boxes_iou_bev
    got = iou(a.to(device), b.to(device)).cpu()
    # Shapely's own noise on nearly parallel edges is larger than ours.
    torch.testing.assert_close(got, shapely_iou(a, b, volume=volume), rtol=0, atol=1e-8)
    torch.testing.assert_close(got[:, :150], shapely_iou(a, b[:150], volume=volume), **EXACT)
    assert (got > 0).sum() > 100


def test_overlap_far_from_the_origin() -> None:
    a, b = random_boxes(50, 3, 4.0), random_boxes(50, 4, 4.0)
    shift = torch.tensor([2.0**20, -(2.0**21), 2.0**10, 0, 0, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(
        ops.boxes_iou_3d(a + shift, b + shift), ops.boxes_iou_3d(a, b), rtol=0, atol=1e-7
    )
    huge = box(x=1e300, y=-1e300, dx=2, dy=2, dz=2)
    assert ops.boxes_iou_bev(huge, huge).item() == 1.0
    assert ops.boxes_iou_bev(huge, -huge.abs() * torch.tensor([1, 1, 1, 0, 0, 0, 0.0])).item() == 0


def test_extreme_sizes_give_no_nan() -> None:
    sizes = [1e-320, 1e-200, 1e-100, 1.0, 1e100, 1e200, 1e308]
    boxes = torch.cat([box(x=0.1, dx=u, dy=v, dz=1, yaw=0.2) for u in sizes for v in sizes])
    for iou in (ops.boxes_iou_bev(boxes, boxes), ops.boxes_iou_3d(boxes, boxes)):
        assert ((iou >= 0) & (iou <= 1)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_low_precision_boxes_stand_for_the_numbers_they_hold(
    dtype: torch.dtype, device: torch.device
) -> None:
    a, b = random_boxes(30, 5).to(dtype), random_boxes(40, 6).to(dtype)
    got = ops.boxes_iou_bev(a.to(device), b.to(device))
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(got.cpu().double(), shapely_iou(a, b), rtol=0, atol=1e-7)
    assert ops.boxes_iou_3d(a, b.double()).dtype == torch.float64


# --- overlap: properties -------------------------------------------------------------------------

coordinate = st.floats(-5, 5)
size = st.floats(-3, 2).map(lambda exponent: 10.0**exponent)
one_box = st.tuples(coordinate, coordinate, coordinate, size, size, size, st.floats(-10, 10))


def tensor_of(*boxes: tuple[float, ...]) -> Tensor:
    return torch.tensor(boxes, dtype=torch.float64)


@SETTINGS
@given(one_box, one_box)
def test_overlap_is_symmetric_and_bounded(a: tuple[float, ...], b: tuple[float, ...]) -> None:
    for iou in (ops.boxes_iou_bev, ops.boxes_iou_3d):
        pair = iou(tensor_of(a, b), tensor_of(a, b))
        assert ((pair >= 0) & (pair <= 1)).all()
        torch.testing.assert_close(pair, pair.T, **EXACT)
        torch.testing.assert_close(pair.diag(), torch.ones(2, dtype=torch.float64), **EXACT)


@SETTINGS
@given(one_box, one_box, st.floats(-10, 10), coordinate, coordinate)
def test_overlap_moves_with_the_scene(
    a: tuple[float, ...], b: tuple[float, ...], turn: float, x: float, y: float
) -> None:
    boxes = tensor_of(a, b)
    moved = boxes.clone()
    c, s = math.cos(turn), math.sin(turn)
    moved[:, 0] = c * boxes[:, 0] - s * boxes[:, 1] + x
    moved[:, 1] = s * boxes[:, 0] + c * boxes[:, 1] + y
    moved[:, 6] += turn
    before, after = ops.boxes_iou_bev(boxes, boxes), ops.boxes_iou_bev(moved, moved)
    # Moving a box 100 m long and 1 mm wide rounds its place and heading.
    torch.testing.assert_close(after, before, rtol=0, atol=1e-8)


@SETTINGS
@given(one_box, one_box)
def test_overlap_of_any_pair_agrees_with_shapely(
    a: tuple[float, ...], b: tuple[float, ...]
) -> None:
    got = ops.boxes_iou_bev(tensor_of(a), tensor_of(b))
    torch.testing.assert_close(got, shapely_iou(tensor_of(a), tensor_of(b)), rtol=0, atol=1e-9)


# --- suppression ---------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 300])
def test_suppression_agrees_with_brute_force(
    n: int, threshold: float, device: torch.device
) -> None:
    boxes = crowd(n, n)
    scores = torch.randint(0, 50, (n,), generator=torch.Generator().manual_seed(n)) / 50.0
    kept = ops.nms_rotated(boxes.to(device), scores.to(device), threshold)
    assert kept.dtype == torch.int64 and kept.device.type == device.type
    assert kept.tolist() == greedy(shapely_iou(boxes, boxes), scores, threshold)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.8, 0.97])
def test_suppression_of_many_agrees_with_the_full_matrix(
    threshold: float, device: torch.device, backend: str
) -> None:
    n = 1000 if backend == "kernel" else 150  # the kernels work in blocks of 1024 or 4096
    mixed = random_boxes(n, 1, 60.0, (-3.0, 2.0))
    boxes = torch.cat([crowd(3 * n, 0), mixed, crowd(n, 2)])
    boxes[-n:, :7] = boxes[:n] + 0.01 * (boxes[-n:] - boxes[:n])  # hard to tell from others
    boxes[n : 2 * n, 3] *= 5.0  # long and thin
    boxes[::97, 3] = 0.0
    boxes[5::301, 0] = 1e9
    scores = torch.rand(len(boxes), generator=torch.Generator().manual_seed(3))
    iou = ops.boxes_iou_bev(boxes.to(device), boxes.to(device)).cpu().numpy()
    dead, kept = np.zeros(len(boxes), bool), []
    for i in torch.argsort(scores, descending=True, stable=True).tolist():
        if not dead[i]:
            kept.append(i)
            dead |= iou[i] > threshold
    assert ops.nms_rotated(boxes.to(device), scores.to(device), threshold).tolist() == kept


def test_at_a_threshold_of_one_all_are_kept(device: torch.device) -> None:
    boxes = torch.cat([crowd(50, 1)] * 3).to(device)
    assert len(ops.nms_rotated(boxes, torch.rand(150, device=device), 1.0)) == 150


pair_threshold = st.floats(0.05, 0.999)


@SETTINGS
@given(one_box, one_box, pair_threshold, st.floats(0, 0.2))
def test_a_pair_is_suppressed_by_its_overlap(
    a: tuple[float, ...], b: tuple[float, ...], threshold: float, near: float
) -> None:
    boxes = tensor_of(a, tuple(u + near * (v - u) for u, v in zip(a, b, strict=True)))
    overlap = float(ops.boxes_iou_bev(boxes[:1], boxes[1:]))
    scores = torch.tensor([1.0, 0.5])
    assert len(ops.nms_rotated(boxes, scores, threshold)) == (1 if overlap > threshold else 2)
    if 0.0 < overlap < 1.0:  # a threshold as close as it gets
        assert len(ops.nms_rotated(boxes, scores, overlap)) == 2
        assert len(ops.nms_rotated(boxes, scores, math.nextafter(overlap, 0.0))) == 1


def test_overlap_at_the_threshold_is_kept(device: torch.device) -> None:
    boxes = torch.cat([box(dx=2), box(dx=1, x=0.5)]).to(device)  # IoU exactly 1/2
    scores = torch.tensor([0.9, 0.8], device=device)
    assert ops.nms_rotated(boxes, scores, 0.5).tolist() == [0, 1]
    assert ops.nms_rotated(boxes, scores, 0.5 - 1e-12).tolist() == [0]


def test_equal_scores_go_by_index(device: torch.device) -> None:
    boxes = box().repeat(200, 1).to(device)
    scores = torch.zeros(200, device=device)
    scores[::2] = -0.0
    assert ops.nms_rotated(boxes, scores, 0.5).tolist() == [0]
    boxes[:, 0] = torch.arange(200) * 10
    assert ops.nms_rotated(boxes, scores, 0.5).tolist() == list(range(200))


def test_infinite_scores_are_scores(device: torch.device) -> None:
    boxes = torch.cat([box(), box(), box(x=5)]).to(device)
    scores = torch.tensor([-math.inf, 0.0, math.inf], device=device)
    assert ops.nms_rotated(boxes, scores, 0.5).tolist() == [2, 1]


def test_a_suppressed_box_suppresses_nothing(device: torch.device) -> None:
    boxes = torch.cat([box(x=0.6 * i, dx=2) for i in range(5)]).to(device)  # IoU of neighbours 0.54
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5], device=device)
    assert ops.nms_rotated(boxes, scores, 0.5).tolist() == [0, 2, 4]


# --- membership ----------------------------------------------------------------------------------


def test_faces_belong_to_the_box(device: torch.device) -> None:
    a = box(1, 2, 3, 4, 2, 1).to(device, torch.float32)
    inside = [(1, 2, 3), (3, 2, 3), (-1, 2, 3), (1, 3, 3), (1, 1, 3), (1, 2, 3.5), (3, 3, 2.5)]
    outside = [(3.0001, 2, 3), (1, 3.0001, 3), (1, 2, 3.5001), (1, 2, 2.4999), (0, 0, 0)]
    points = torch.tensor(inside + outside, dtype=torch.float32, device=device)
    expected = [[True]] * len(inside) + [[False]] * len(outside)
    assert ops.points_in_boxes(points, a).tolist() == expected


def test_membership_agrees_with_shapely(device: torch.device) -> None:
    rng = np.random.default_rng(7)
    points = rng.uniform(-8, 8, (400, 4)) * (1, 1, 0.3, 1)
    boxes = random_boxes(50, 8, 6.0)
    flat = shapely.contains_xy(polygons(boxes)[None], points[:, None, 0], points[:, None, 1])
    height = np.abs(points[:, None, 2] - boxes[:, 2].numpy()) <= boxes[:, 5].numpy() / 2
    got = ops.points_in_boxes(torch.from_numpy(points).to(device), boxes.to(device))
    assert got.dtype == torch.bool
    np.testing.assert_array_equal(got.cpu().numpy(), flat & height)
    assert got.any()


def test_a_box_without_extent_holds_its_centre_alone(device: torch.device) -> None:
    points = torch.tensor([[1.0, 1, 1], [1, 1, 1.001], [1.001, 1, 1]], device=device)
    flat = box(1, 1, 1, 0, 0, 0, 0.7).to(device)
    assert ops.points_in_boxes(points, flat).flatten().tolist() == [True, False, False]


def test_points_that_are_no_numbers_lie_nowhere(device: torch.device) -> None:
    points = torch.zeros(6, 3, device=device)
    for row, value in enumerate((math.nan, math.inf)):
        for column in range(3):
            points[row * 3 + column, column] = value
    assert not ops.points_in_boxes(points, box(dx=1e30, dy=1e30, dz=1e30).to(device)).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_membership_of_low_precision_points(dtype: torch.dtype, device: torch.device) -> None:
    points = (torch.rand(200, 5, generator=torch.Generator().manual_seed(0)) * 8 - 4).to(dtype)
    boxes = random_boxes(20, 9, 3.0)
    got = ops.points_in_boxes(points.to(device), boxes.to(device))
    assert torch.equal(got.cpu(), reference.points_in_boxes(points.double(), boxes))


# --- the same answer everywhere ------------------------------------------------------------------


def test_results_match_the_reference_bit_for_bit(device: torch.device, backend: str) -> None:
    if backend == "reference":
        pytest.skip("the reference is what the kernels are compared with")
    a = torch.cat([crowd(300, 0), random_boxes(200, 1, 30.0, (-3.0, 2.0))])
    a[::50, 6] *= 1e6
    b = torch.cat([a[:100], crowd(200, 2)])
    points = torch.rand(3000, 3, generator=torch.Generator().manual_seed(0)) * 30 - 15
    for dtype in (torch.float32, torch.float64):
        da, db = a.to(dtype), b.to(dtype)
        for volume, iou in ((False, ops.boxes_iou_bev), (True, ops.boxes_iou_3d)):
            got = iou(da.to(device), db.to(device)).cpu()
            assert torch.equal(got, reference.boxes_iou(da, db, volume, dtype))
        got = ops.points_in_boxes(points.to(device, dtype), db.to(device)).cpu()
        assert torch.equal(got, reference.points_in_boxes(points.to(dtype), db))


def test_number_of_threads_does_not_matter(backend: str) -> None:
    boxes = crowd(2500 if backend == "kernel" else 300, 4)
    points = torch.rand(5000, 3) * 30 - 15
    scores = torch.rand(len(boxes), generator=torch.Generator().manual_seed(5))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            results.append(
                (
                    ops.boxes_iou_3d(boxes[:400], boxes[:600]),
                    ops.nms_rotated(boxes, scores, 0.4),
                    ops.points_in_boxes(points, boxes[:40]),
                )
            )
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def test_layout_in_memory_does_not_matter(device: torch.device) -> None:
    boxes = crowd(40, 6).to(device)
    scores = torch.rand(80, generator=torch.Generator().manual_seed(5)).to(device)[::2]
    points = torch.rand(50, 4, device=device) * 20 - 10
    wide = torch.cat([boxes, boxes], dim=1)[:, :7]
    columns = boxes.T.contiguous().T
    for other in (wide, columns, torch.stack([boxes, boxes], dim=1)[:, 1]):
        assert not other.is_contiguous()
        assert torch.equal(ops.boxes_iou_bev(other, other), ops.boxes_iou_bev(boxes, boxes))
        kept = ops.nms_rotated(other, scores, 0.3)
        assert torch.equal(kept, ops.nms_rotated(boxes, scores.contiguous(), 0.3))
        for cloud in (points.T.contiguous().T, torch.cat([points, points], dim=1), points[:, :3]):
            got = ops.points_in_boxes(cloud, other)
            assert torch.equal(got, ops.points_in_boxes(points, boxes))
    one = box().to(device).expand(5, 7)
    assert (ops.boxes_iou_bev(one, one) == 1).all()
    assert ops.points_in_boxes(points[:1].expand(4, 4), one).shape == (4, 5)


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 3), (3, 0)])
def test_empty_inputs(n: int, m: int, device: torch.device) -> None:
    a, b = crowd(3, 0)[:n].to(device), crowd(3, 1)[:m].to(device)
    assert ops.boxes_iou_bev(a, b).shape == (n, m)
    assert ops.boxes_iou_3d(a, b).shape == (n, m)
    assert ops.points_in_boxes(a[:, :3], b).shape == (n, m)
    assert ops.nms_rotated(a[:0], a[:0, 0], 0.5).shape == (0,)


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("column", range(7))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_box_with_a_number_that_is_none_is_named(
    column: int, value: float, dtype: torch.dtype
) -> None:
    good, bad = crowd(4, 0).to(dtype), crowd(4, 0).to(dtype)
    bad[2, column] = value
    for call in (
        lambda: ops.boxes_iou_bev(bad, good),
        lambda: ops.boxes_iou_3d(bad, good),
        lambda: ops.points_in_boxes(torch.zeros(1, 3), bad),
        lambda: ops.nms_rotated(bad, torch.zeros(4), 0.5),
    ):
        with pytest.raises(ValueError, match="row 2 is"):
            call()
    with pytest.raises(ValueError, match="b: row 2 is"):
        ops.boxes_iou_bev(good, bad)


def test_a_negative_size_is_an_error() -> None:
    for column in (3, 4, 5):
        bad = crowd(3, 0)
        bad[1, column] = -1e-9
        with pytest.raises(ValueError, match="sizes of 0 or more"):
            ops.boxes_iou_bev(bad, bad)


def test_where_values_go_unchecked_bad_boxes_overlap_nothing() -> None:
    boxes = box().repeat(9, 1)
    for column in range(7):
        boxes[column, column] = math.nan
    boxes[7, 3] = -1.0
    for volume in (False, True):
        iou = reference.boxes_iou(boxes, boxes, volume, torch.float64)
        assert iou.sum() == 1 and iou[8, 8] == 1
    assert reference.points_in_boxes(torch.zeros(1, 3), boxes).tolist() == [[False] * 8 + [True]]


def test_arguments_that_do_not_fit_are_named() -> None:
    good, scores = crowd(4, 0), torch.zeros(4)
    with pytest.raises(ValueError, match=r"a must have shape \(N, 7\).*got \(4, 6\)"):
        ops.boxes_iou_bev(good[:, :6], good)
    with pytest.raises(ValueError, match=r"b must have shape \(N, 7\).*got \(7,\)"):
        ops.boxes_iou_3d(good, good[0])
    with pytest.raises(TypeError, match=r"a must be floating point, got torch\.int64"):
        ops.boxes_iou_bev(good.long(), good)
    with pytest.raises(TypeError, match=r"boxes must be a torch\.Tensor, got ndarray"):
        ops.nms_rotated(good.numpy(), scores, 0.5)
    with pytest.raises(ValueError, match=r"scores must have shape \(4,\), one a box, got \(3,\)"):
        ops.nms_rotated(good, scores[:3], 0.5)
    with pytest.raises(ValueError, match=r"points must have shape \(N, >=3\), got \(4, 2\)"):
        ops.points_in_boxes(good[:, :2], good)
    with pytest.raises(ValueError, match="scores: row 3 is NaN"):
        ops.nms_rotated(good, torch.tensor([0.0, 1.0, 2.0, math.nan]), 0.5)
    for threshold in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"iou_threshold must lie in \[0, 1\]"):
            ops.nms_rotated(good, scores, threshold)
    with pytest.raises(ValueError, match="move them to one device"):
        ops.boxes_iou_bev(good, good.to("meta"))


# --- torch: gradients, compilation, export -------------------------------------------------------


def test_no_gradient_flows() -> None:
    boxes = crowd(5, 0).requires_grad_()
    scores = torch.rand(5, requires_grad=True)
    assert not ops.boxes_iou_bev(boxes, boxes).requires_grad
    assert not ops.boxes_iou_3d(boxes, boxes).requires_grad
    assert not ops.nms_rotated(boxes, scores, 0.5).requires_grad
    assert not ops.points_in_boxes(boxes, boxes).requires_grad


def test_ops_pass_opcheck(device: torch.device) -> None:
    boxes = crowd(6, 0).to(device, torch.float32)
    library = torch.ops.voxelpool
    torch.library.opcheck(library.boxes_iou_bev.default, (boxes, boxes[:2]))
    torch.library.opcheck(library.boxes_iou_3d.default, (boxes.half(), boxes[:0].half()))
    torch.library.opcheck(library.points_in_boxes.default, (boxes[:, :4], boxes))
    torch.library.opcheck(library.nms_rotated.default, (boxes, boxes[:, 0].contiguous(), 0.3))


def test_ops_compile_into_one_graph(device: torch.device) -> None:
    def step(boxes: Tensor, scores: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kept = ops.nms_rotated(boxes, scores, 0.3)
        chosen = boxes[kept] + 0.1
        overlap = ops.boxes_iou_bev(chosen, boxes) + ops.boxes_iou_3d(chosen, boxes)
        return kept, overlap * 2, ops.points_in_boxes(points, chosen)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (7, 30):
        arguments = (crowd(n, n).to(device), torch.rand(n, device=device), torch.rand(9, 3))
        arguments = (*arguments[:2], arguments[2].to(device))
        for got, expected in zip(compiled(*arguments), step(*arguments), strict=True):
            assert torch.equal(got, expected)
