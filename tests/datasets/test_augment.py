"""Augmentation moves points and boxes together."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelpool.datasets.augment import (
    Compose,
    Flip,
    ObjectNoise,
    Rotate,
    Scale,
    frame_generator,
)

ALL = {
    "flip": Flip(1.0),
    "scale": Scale((0.8, 1.2)),
    "rotate": Rotate((-3.0, 3.0)),
    "object_noise": ObjectNoise(0.5, (0.3, 0.3, 0.1)),
    "all": Compose([ObjectNoise(0.3, (1.0, 1.0, 0.2)), Flip(), Scale(), Rotate()]),
}


def scene(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Four boxes far apart, 30 points in each, 200 in none; the owner of each point or -1."""
    rng = np.random.default_rng(seed)
    boxes = np.column_stack(
        [
            [10, 10, 30, 30],
            [-12, 12, -12, 12],
            rng.uniform(-1, 0, 4),
            rng.uniform(1, 5, (4, 3)),
            rng.uniform(-math.pi, math.pi, 4),
        ]
    ).astype(np.float32)
    owner = np.repeat([0, 1, 2, 3], 30)
    xyz = from_box(rng.uniform(-0.48, 0.48, (120, 3)) * boxes[owner, 3:6], boxes[owner])
    outside = rng.uniform([50, -30, -2], [70, 30, 1], (200, 3))
    xyz = np.concatenate([xyz, outside])
    points = np.column_stack([xyz, rng.uniform(0, 1, len(xyz))]).astype(np.float32)
    return points, boxes, np.concatenate([owner, np.full(200, -1)])


def from_box(local: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Local coordinates (N, 3) of a box each, as LiDAR coordinates, by complex numbers."""
    turned = (local[:, 0] + 1j * local[:, 1]) * np.exp(1j * boxes[:, 6].astype(float))
    return np.column_stack([turned.real, turned.imag, local[:, 2]]) + boxes[:, :3]


def to_box(xyz: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The inverse of `from_box`."""
    shifted = xyz.astype(float) - boxes[:, :3]
    turned = (shifted[:, 0] + 1j * shifted[:, 1]) * np.exp(-1j * boxes[:, 6].astype(float))
    return np.column_stack([turned.real, turned.imag, shifted[:, 2]])


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("seed", range(5))
def test_points_keep_their_place_in_the_box(name: str, seed: int) -> None:
    points, boxes, owner = scene(seed)
    moved, moved_boxes = ALL[name](points, boxes, np.random.default_rng(seed))
    inside = owner >= 0
    before = to_box(points[inside, :3], boxes[owner[inside]]) / boxes[owner[inside], 3:6]
    after = to_box(moved[inside, :3], moved_boxes[owner[inside]])
    after = after / moved_boxes[owner[inside], 3:6]
    mirrored = np.sign(after[:, 1] * before[:, 1]) if name in ("flip", "all") else 1.0
    assert np.allclose(after[:, 0], before[:, 0], atol=1e-4)
    assert np.allclose(after[:, 1], before[:, 1] * mirrored, atol=1e-4)
    assert np.allclose(after[:, 2], before[:, 2], atol=1e-4)
    assert np.array_equal(moved[:, 3:], points[:, 3:])
    assert (np.abs(moved_boxes[:, 6]) <= np.float32(math.pi)).all()
    assert (moved.dtype, moved_boxes.dtype) == (np.float32, np.float32)


@pytest.mark.parametrize("name", ALL)
def test_inputs_stay_as_they_are(name: str) -> None:
    points, boxes, _ = scene(0)
    copies = points.copy(), boxes.copy()
    ALL[name](points, boxes, np.random.default_rng(1))
    assert np.array_equal(points, copies[0]) and np.array_equal(boxes, copies[1])


@pytest.mark.parametrize("name", ALL)
def test_empty_frames_pass(name: str) -> None:
    points, boxes, _ = scene(0)
    none = np.zeros((0, 7), np.float32)
    assert ALL[name](points, none, np.random.default_rng(0))[1].shape == (0, 7)
    no_points = np.zeros((0, 4), np.float32)
    assert ALL[name](no_points, boxes, np.random.default_rng(0))[0].shape == (0, 4)


def test_flip_by_hand() -> None:
    points = np.array([[1, 2, 3, 0.5]], np.float32)
    boxes = np.array([[1, 2, 3, 4, 2, 1.5, 0.3]], np.float32)
    moved, moved_boxes = Flip(1.0)(points, boxes, np.random.default_rng(0))
    assert moved.tolist() == [[1, -2, 3, 0.5]]
    assert np.allclose(moved_boxes, [[1, -2, 3, 4, 2, 1.5, -0.3]])


def test_rotate_by_hand() -> None:
    points = np.array([[1, 0, 3, 0.5]], np.float32)
    boxes = np.array([[1, 0, 3, 4, 2, 1.5, 3.0]], np.float32)
    quarter = math.pi / 2
    moved, moved_boxes = Rotate((quarter, quarter))(points, boxes, np.random.default_rng(0))
    assert np.allclose(moved, [[0, 1, 3, 0.5]], atol=1e-6)
    assert np.allclose(moved_boxes, [[0, 1, 3, 4, 2, 1.5, 3.0 + quarter - 2 * math.pi]], atol=1e-6)


def test_flip_happens_as_often_as_asked() -> None:
    points, boxes, _ = scene(0)
    rng = np.random.default_rng(0)
    flipped = sum(Flip(0.3)(points, boxes, rng)[1][0, 1] != boxes[0, 1] for _ in range(1000))
    assert abs(flipped - 300) < 4 * math.sqrt(1000 * 0.3 * 0.7)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_noise_never_makes_boxes_collide(seed: int) -> None:
    """Six cars parked side by side, 0.3 m apart."""
    shapely = pytest.importorskip("shapely")
    count = 6
    boxes = np.zeros((count, 7), np.float32)
    boxes[:, 0] = 10
    boxes[:, 1] = np.arange(count) * 2.1
    boxes[:, 3:6] = [4, 1.8, 1.5]
    _, moved = ObjectNoise(0.5, (0.6, 0.6, 0.6))(
        np.zeros((0, 4), np.float32), boxes, np.random.default_rng(seed)
    )

    def footprint(box: np.ndarray) -> object:
        signs = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2
        local = np.column_stack([signs * box[3:5], np.zeros(4)])
        return shapely.Polygon(from_box(local, np.tile(box, (4, 1)))[:, :2])

    prints = [footprint(box) for box in moved]
    for row, one in enumerate(prints):
        for other in prints[row + 1 :]:
            assert one.intersection(other).area < 1e-4


def test_noise_moves_most_lone_objects() -> None:
    points, boxes, _ = scene(3)
    _, moved = ObjectNoise()(points, boxes, np.random.default_rng(0))
    assert (np.abs(moved[:, :3] - boxes[:, :3]).max(axis=1) > 0.01).all()


def test_the_generator_depends_on_seed_epoch_and_frame_alone() -> None:
    first = frame_generator(1, 2, "000003").random()
    assert frame_generator(1, 2, "000003").random() == first
    others = [(2, 2, "000003"), (1, 3, "000003"), (1, 2, "000004")]
    assert all(frame_generator(*key).random() != first for key in others)
