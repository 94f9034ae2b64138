"""Augmentation moves points and boxes together."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelpool.datasets.augment import (
    HDL64_SPACING,
    Augmentation,
    Compose,
    DentObjects,
    DropBeams,
    DropPoints,
    FadeTops,
    Flip,
    Jitter,
    LabelledSweep,
    ObjectNoise,
    ObjectScale,
    ReflectanceNoise,
    Rotate,
    SampleObjects,
    Scale,
    Shuffle,
    ThinObjects,
    Tilt,
    Translate,
    frame_generator,
)
from voxelpool.datasets.object_database import ObjectDatabase
from voxelpool.errors import DataError

MOVING = {
    "flip": Flip(1.0),
    "scale": Scale((0.8, 1.2)),
    "rotate": Rotate((-3.0, 3.0)),
    "object_noise": ObjectNoise(0.5, (0.3, 0.3, 0.1)),
    "translate": Translate((2.0, 1.0, 0.5)),
    "object_scale": ObjectScale((0.5, 2.0)),
    "all": Compose(
        [ObjectNoise(0.3, (1.0, 1.0, 0.2)), ObjectScale(), Flip(), Scale(), Rotate(), Translate()]
    ),
}
ALL = {
    **MOVING,
    "thin_objects": ThinObjects(0.8),
    "fade_tops": FadeTops(0.8, (10.0, 20.0)),
    "dent_objects": DentObjects(),
    "tilt": Tilt((0.1, 0.1)),
    "shuffle": Shuffle(),
    "drop_points": DropPoints((0.2, 0.8)),
    "drop_beams": DropBeams((0.2, 0.8)),
    "jitter": Jitter(0.05),
    "reflectance_noise": ReflectanceNoise(),
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


def augmented(
    step: Augmentation, points: np.ndarray, boxes: np.ndarray, seed: int | np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Points and boxes of cars after a step."""
    sweep = LabelledSweep(points, boxes, ["Car"] * len(boxes))
    changed = step(sweep, np.random.default_rng(seed))
    return changed.points, changed.boxes


def from_box(local: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Local coordinates (N, 3) of a box each, as LiDAR coordinates, by complex numbers."""
    turned = (local[:, 0] + 1j * local[:, 1]) * np.exp(1j * boxes[:, 6].astype(float))
    return np.column_stack([turned.real, turned.imag, local[:, 2]]) + boxes[:, :3]


def to_box(xyz: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The inverse of `from_box`."""
    shifted = xyz.astype(float) - boxes[:, :3]
    turned = (shifted[:, 0] + 1j * shifted[:, 1]) * np.exp(-1j * boxes[:, 6].astype(float))
    return np.column_stack([turned.real, turned.imag, shifted[:, 2]])


def require_apart(boxes: np.ndarray) -> None:
    """No two footprints share an area."""
    shapely = pytest.importorskip("shapely")

    def footprint(box: np.ndarray) -> object:
        signs = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2
        local = np.column_stack([signs * box[3:5], np.zeros(4)])
        return shapely.Polygon(from_box(local, np.tile(box, (4, 1)))[:, :2])

    prints = [footprint(box) for box in boxes]
    for row, one in enumerate(prints):
        for other in prints[row + 1 :]:
            assert one.intersection(other).area < 1e-4


@pytest.mark.parametrize("name", MOVING)
@pytest.mark.parametrize("seed", range(5))
def test_points_keep_their_place_in_the_box(name: str, seed: int) -> None:
    points, boxes, owner = scene(seed)
    moved, moved_boxes = augmented(MOVING[name], points, boxes, seed)
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
    augmented(ALL[name], points, boxes, 1)
    assert np.array_equal(points, copies[0]) and np.array_equal(boxes, copies[1])


@pytest.mark.parametrize("name", ALL)
def test_empty_frames_pass(name: str) -> None:
    points, boxes, _ = scene(0)
    none = np.zeros((0, 7), np.float32)
    assert augmented(ALL[name], points, none, 0)[1].shape == (0, 7)
    no_points = np.zeros((0, 4), np.float32)
    assert augmented(ALL[name], no_points, boxes, 0)[0].shape == (0, 4)


def test_flip_by_hand() -> None:
    points = np.array([[1, 2, 3, 0.5]], np.float32)
    boxes = np.array([[1, 2, 3, 4, 2, 1.5, 0.3]], np.float32)
    moved, moved_boxes = augmented(Flip(1.0), points, boxes, 0)
    assert moved.tolist() == [[1, -2, 3, 0.5]]
    assert np.allclose(moved_boxes, [[1, -2, 3, 4, 2, 1.5, -0.3]])


def test_rotate_by_hand() -> None:
    points = np.array([[1, 0, 3, 0.5]], np.float32)
    boxes = np.array([[1, 0, 3, 4, 2, 1.5, 3.0]], np.float32)
    quarter = math.pi / 2
    moved, moved_boxes = augmented(Rotate((quarter, quarter)), points, boxes, 0)
    assert np.allclose(moved, [[0, 1, 3, 0.5]], atol=1e-6)
    assert np.allclose(moved_boxes, [[0, 1, 3, 4, 2, 1.5, 3.0 + quarter - 2 * math.pi]], atol=1e-6)


def test_flip_happens_as_often_as_asked() -> None:
    points, boxes = np.zeros((0, 4), np.float32), np.array([[10, 12, 0, 4, 2, 1, 0]], np.float32)
    rng = np.random.default_rng(0)
    flipped = sum(augmented(Flip(0.3), points, boxes, rng)[1][0, 1] != 12 for _ in range(1000))
    assert abs(flipped - 300) < 4 * math.sqrt(1000 * 0.3 * 0.7)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_noise_never_makes_boxes_collide(seed: int) -> None:
    """Six cars parked side by side, 0.3 m apart."""
    count = 6
    boxes = np.zeros((count, 7), np.float32)
    boxes[:, 0] = 10
    boxes[:, 1] = np.arange(count) * 2.1
    boxes[:, 3:6] = [4, 1.8, 1.5]
    noise = ObjectNoise(0.5, (0.6, 0.6, 0.6))
    _, moved = augmented(noise, np.zeros((0, 4), np.float32), boxes, seed)
    require_apart(moved)


def test_noise_moves_most_lone_objects() -> None:
    points, boxes, _ = scene(3)
    _, moved = augmented(ObjectNoise(), points, boxes, 0)
    assert (np.abs(moved[:, :3] - boxes[:, :3]).max(axis=1) > 0.01).all()


def test_the_generator_depends_on_seed_epoch_and_frame_alone() -> None:
    first = frame_generator(1, 2, "000003").random()
    assert frame_generator(1, 2, "000003").random() == first
    others = [(2, 2, "000003"), (1, 3, "000003"), (1, 2, "000004")]
    assert all(frame_generator(*key).random() != first for key in others)


def test_object_scale_keeps_objects_on_the_ground() -> None:
    points, boxes, _ = scene(1)
    _, scaled = augmented(ObjectScale((0.5, 1.5)), points, boxes, 0)
    factors = scaled[:, 3] / boxes[:, 3]
    assert len(set(factors.round(5))) == 4 and (factors > 0.5).all() and (factors < 1.5).all()
    assert np.allclose(scaled[:, 3:6], boxes[:, 3:6] * factors[:, None], rtol=1e-5)
    assert np.allclose(scaled[:, [0, 1, 6]], boxes[:, [0, 1, 6]])
    floor = boxes[:, 2] - boxes[:, 5] / 2
    assert np.allclose(scaled[:, 2] - scaled[:, 5] / 2, floor, atol=1e-5)


def test_object_scale_makes_no_neighbours_collide() -> None:
    boxes = np.zeros((4, 7), np.float32)
    boxes[:, 1] = np.arange(4) * 2.0
    boxes[:, 3:6] = [4, 1.8, 1.5]
    for seed in range(10):
        _, scaled = augmented(ObjectScale((0.8, 1.4)), np.zeros((0, 4), np.float32), boxes, seed)
        require_apart(scaled)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 1.0])
def test_thin_objects_takes_a_share_of_each_and_nothing_else(share: float) -> None:
    points, boxes, owner = scene(3)
    points = np.concatenate([points, points[:2] + np.float32(1e-3)])
    owner = np.concatenate([owner, owner[:2]])
    points[:, 3] = np.arange(len(points))
    kept, same = augmented(ThinObjects(1.0, (share, share), min_points=7), points, boxes, 0)
    rows = kept[:, 3].astype(int)
    assert np.array_equal(kept, points[rows]) and (np.diff(rows) > 0).all()
    assert np.array_equal(same, boxes)
    left = [max(round(count * (1 - share)), 7) for count in (32, 30, 30, 30)]
    assert np.bincount(owner[rows] + 1).tolist() == [200, *left]


def test_thin_objects_hides_one_side_or_scatters() -> None:
    """Of the four objects one stands behind the sensor, where azimuth jumps from pi to -pi."""
    points, boxes, owner = scene(1)
    boxes[:, 0], boxes[:, 1] = [20, 0, -20, 0], [0, 20, 0, -20]
    local = np.random.default_rng(2).uniform(-0.48, 0.48, (120, 3)) * boxes[owner[:120], 3:6]
    points[:120, :3] = from_box(local, boxes[owner[:120]])
    points[:, 3] = np.arange(len(points))
    towards = np.exp(-1j * np.array([0, 0.5, 1, -0.5]) * math.pi)
    found = {"left": 0, "right": 0, "below": 0, "scattered": 0}
    for seed in range(150):
        kept, _ = augmented(ThinObjects(1.0, (0.5, 0.5)), points, boxes, seed)
        for row in range(4):
            own = points[owner == row]
            gone = ~np.isin(own[:, 3], kept[:, 3])
            azimuth = np.angle((own[:, 0] + 1j * own[:, 1]) * towards[row])
            slope = own[:, 2] / np.hypot(own[:, 0], own[:, 1])
            if azimuth[gone].min() > azimuth[~gone].max():
                found["left"] += 1
            elif azimuth[gone].max() < azimuth[~gone].min():
                found["right"] += 1
            elif slope[gone].max() < slope[~gone].min():
                found["below"] += 1
            else:
                found["scattered"] += 1
    for kind, share in (("left", 1 / 6), ("right", 1 / 6), ("below", 1 / 6), ("scattered", 1 / 2)):
        assert abs(found[kind] - 600 * share) < 4 * math.sqrt(600 * share * (1 - share)), found


def test_thin_objects_leaves_what_chance_spares() -> None:
    points, boxes, owner = scene(0)
    assert len(augmented(ThinObjects(0.0, (1.0, 1.0)), points, boxes, 0)[0]) == len(points)
    thinned = 0
    for seed in range(100):
        kept, _ = augmented(ThinObjects(0.3, (0.5, 0.5)), points, boxes, seed)
        thinned += (len(points) - len(kept)) // 15
        assert (len(points) - len(kept)) % 15 == 0
    assert abs(thinned - 120) < 4 * math.sqrt(400 * 0.3 * 0.7)
    few = np.concatenate([points[owner == 1][:5], points[owner == -1]])
    assert np.array_equal(augmented(ThinObjects(1.0, (0.9, 0.9)), few, boxes, 0)[0], few)


@pytest.mark.parametrize("height", [0.0, 0.3, 0.7, 1.0])
def test_fade_tops_cuts_far_objects_at_a_height(height: float) -> None:
    points, boxes, owner = scene(4)  # two boxes stand 16 m off, two 32 m
    points[:, 3] = np.arange(len(points))
    fade = FadeTops(1.0, (16.0, 30.0), (height, height), min_points=3)
    kept, same = augmented(fade, points, boxes, 0)
    rows = kept[:, 3].astype(int)
    assert np.array_equal(kept, points[rows]) and (np.diff(rows) > 0).all()
    assert np.array_equal(same, boxes)
    gone = np.setdiff1d(np.arange(len(points)), rows)
    above = (points[:, 2] - boxes[owner, 2]) / boxes[owner, 5] + 0.5 > height
    expected = above & (owner >= 2)
    for row in (2, 3):
        lowest = np.argsort(np.where(owner == row, points[:, 2], np.inf))[:3]
        expected[lowest] = False
    assert np.array_equal(gone, np.flatnonzero(expected))
    assert (height == 1.0) == (len(gone) == 0)


def test_fade_tops_is_more_likely_the_farther() -> None:
    points, boxes, _ = scene(0)
    boxes[:, :2] = [[10, 0], [0, 20], [-30, 0], [0, -50]]
    points = np.zeros((400, 4), np.float32)
    owner = np.repeat(np.arange(4), 100)
    local = np.random.default_rng(1).uniform(-0.48, 0.48, (400, 3)) * boxes[owner, 3:6]
    points[:, :3] = from_box(local, boxes[owner])
    points[:, 3] = owner
    faded = np.zeros(4)
    for seed in range(300):
        kept, _ = augmented(FadeTops(0.8, (15.0, 35.0), (0.2, 0.8)), points, boxes, seed)
        left = np.bincount(kept[:, 3].astype(int), minlength=4)
        assert left.min() >= 5
        faded += left < 100
    for count, chance in zip(faded, (0.0, 0.2, 0.6, 0.8), strict=True):
        assert abs(count - 300 * chance) <= 4 * math.sqrt(300 * chance * (1 - chance))


def dented(step: DentObjects, points: np.ndarray, boxes: np.ndarray, seed: int) -> np.ndarray:
    """How much farther each point is for it; anything but its distance stays."""
    moved, same = augmented(step, points, boxes, seed)
    assert np.array_equal(same, boxes) and np.array_equal(moved[:, 3:], points[:, 3:])
    before, after = points[:, :3].astype(float), moved[:, :3].astype(float)
    distance, farther = np.linalg.norm(before, axis=1), np.linalg.norm(after, axis=1)
    assert np.allclose(after / farther[:, None], before / distance[:, None], atol=1e-5)
    return farther - distance


@pytest.mark.parametrize("seed", range(5))
def test_dent_objects_moves_points_along_their_rays_within_their_boxes(seed: int) -> None:
    points, boxes, owner = scene(seed)
    shift = dented(DentObjects(0.3, 0.5, 0.5), points, boxes, seed)
    assert (shift[owner < 0] == 0).all()
    assert (np.abs(shift[owner >= 0]) > 1e-4).mean() > 0.9
    moved, _ = augmented(DentObjects(0.3, 0.5, 0.5), points, boxes, seed)
    inside = owner >= 0
    local = to_box(moved[inside, :3], boxes[owner[inside]])
    assert (np.abs(local) <= boxes[owner[inside], 3:6] / 2 + 1e-5).all()
    assert (dented(DentObjects(0.0, 0.0, 0.0), points, boxes, seed) == 0).all()


def wall(distance: float) -> tuple[np.ndarray, np.ndarray]:
    """A box 10 m long, 8 m wide, and 41 x 21 points across its middle, 4 m by 2 m."""
    box = np.array([[distance, 0, 0, 10, 8, 6, 0]], np.float32)
    y, z = np.meshgrid(np.linspace(-2, 2, 41), np.linspace(-1, 1, 21), indexing="ij")
    points = np.column_stack([np.full(y.size, distance), y.ravel(), z.ravel(), np.zeros(y.size)])
    return points.astype(np.float32), box


def test_dent_objects_rounds_corners_by_up_to_the_share() -> None:
    y = np.linspace(-0.99, 0.99, 21)
    box = np.array([[2000, 0, 0, 4, 1.6, 1.5, 0]], np.float32)  # so far that all rays are parallel
    points = np.zeros((42, 4), np.float32)
    points[:21, :2] = np.column_stack([np.full(21, 2000 - 1.9), y * 0.8])
    points[21:, :2] = np.column_stack([2000 + y * 2, np.full(21, 0.75)])
    expected = np.concatenate([1.9 * (0.95 * y) ** 2, -2 * y * (0.9375 * y) ** 2])
    shares = []
    for seed in range(200):
        shift = dented(DentObjects(0.2, 0.0, 0.0), points, box, seed)
        shares.append(shift @ expected / (expected @ expected))
        assert np.allclose(shift, shares[-1] * expected, atol=3e-4)  # float32, 2 km off
    assert min(shares) > -1e-3 and max(shares) < 0.201
    assert abs(np.mean(shares) - 0.1) < 4 * 0.2 / math.sqrt(12 * 200)


def test_dents_grow_with_the_root_of_their_width() -> None:
    points, box = wall(30.0)
    steps, squares = (1, 2, 5, 10, 20), []  # 0.1 to 2 m
    for seed in range(300):
        depth = dented(DentObjects(0.0, 0.3, 0.0), points, box, seed).reshape(41, 21)
        squares.append([((depth[step:] - depth[:-step]) ** 2).mean() for step in steps])
    spread = np.sqrt(np.mean(squares, axis=0))
    # A third of the square of what is given, on average of what is uniform from nothing to it.
    expected = 0.3 / math.sqrt(3) * np.sqrt(np.array(steps) / 10)
    assert np.allclose(spread, expected, rtol=0.15)


@pytest.mark.parametrize("distance", [20.0, 40.0])
def test_dent_objects_scatters_with_the_square_of_the_distance(distance: float) -> None:
    points, box = wall(distance)
    stds = []
    for seed in range(300):
        shift = dented(DentObjects(0.0, 0.0, 0.1), points, box, seed)
        stds.append(shift.std())
        assert abs(shift.mean()) < 5 * stds[-1] / math.sqrt(len(shift)) + 1e-4
    most = 0.1 * (distance / 40) ** 2
    assert max(stds) < 1.1 * most
    assert abs(np.mean(stds) - most / 2) < 4 * most / math.sqrt(12 * 300)


def test_tilt_raises_all_to_one_plane_through_the_sensor() -> None:
    points, boxes, _ = scene(0)
    slopes = []
    for seed in range(400):
        tilted, raised = augmented(Tilt((0.02, 0.01)), points, boxes, seed)
        lift = tilted[:, 2] - points[:, 2]
        slope, *_ = np.linalg.lstsq(points[:, :2].astype(float), lift, rcond=None)
        assert np.allclose(points[:, :2] @ slope, lift, atol=1e-4)
        assert np.allclose(raised[:, 2] - boxes[:, 2], boxes[:, :2] @ slope, atol=1e-4)
        assert np.array_equal(tilted[:, [0, 1, 3]], points[:, [0, 1, 3]])
        assert np.array_equal(np.delete(raised, 2, 1), np.delete(boxes, 2, 1))
        slopes.append(np.arctan(slope))
    assert np.allclose(np.std(slopes, 0), [0.02, 0.01], rtol=0.15)
    assert (np.abs(np.mean(slopes, 0)) < [0.004, 0.002]).all()


def test_tilt_shifts_points_within_boxes_by_the_angle_alone() -> None:
    points, boxes, owner = scene(0)
    tilted, raised = augmented(Tilt((0.05, 0.05)), points, boxes, 7)
    inside = owner >= 0
    before = to_box(points[inside, :3], boxes[owner[inside]])
    after = to_box(tilted[inside, :3], raised[owner[inside]])
    assert np.allclose(after[:, :2], before[:, :2], atol=1e-4)
    slope = np.tan(np.random.default_rng(7).normal(0.0, 0.05, 2))
    from_middle = points[inside, :2] - boxes[owner[inside], :2]
    assert np.allclose(after[:, 2] - before[:, 2], from_middle @ slope, atol=1e-4)


def test_shuffle_keeps_every_point() -> None:
    points, boxes, _ = scene(0)
    shuffled, _ = augmented(Shuffle(), points, boxes, 0)
    assert not np.array_equal(shuffled, points)
    assert sorted(map(tuple, shuffled)) == sorted(map(tuple, points))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_drop_points_leaves_out_a_share(share: float) -> None:
    points = np.random.default_rng(0).normal(size=(20_000, 4)).astype(np.float32)
    kept, _ = augmented(DropPoints((share, share)), points, np.zeros((0, 7), np.float32), 1)
    assert abs(len(kept) - (1 - share) * 20_000) <= 4 * math.sqrt(20_000 * share * (1 - share))
    assert set(map(tuple, kept)) <= set(map(tuple, points))


def test_drop_beams_leaves_out_whole_beams() -> None:
    """64 beams that lie in the middle between the edges of an unshifted division."""
    elevation = HDL64_SPACING * (np.arange(64) - 60 + 0.5)
    azimuth = np.linspace(-1, 1, 50)
    beam = np.repeat(np.arange(64), 50)
    distance = np.tile(np.linspace(5, 60, 50), 64)
    xyz = np.stack(
        [
            distance * np.cos(elevation[beam]) * np.cos(np.tile(azimuth, 64)),
            distance * np.cos(elevation[beam]) * np.sin(np.tile(azimuth, 64)),
            distance * np.sin(elevation[beam]),
        ],
        axis=1,
    )
    points = np.column_stack([xyz, beam]).astype(np.float32)
    boxes = np.zeros((0, 7), np.float32)
    lost = []
    for seed in range(20):
        kept, _ = augmented(DropBeams((0.5, 0.5)), points, boxes, seed)
        counts = np.bincount(kept[:, 3].astype(int), minlength=64)
        assert set(counts) <= {0, 50}
        lost.append((counts == 0).sum())
    assert abs(np.mean(lost) - 32) < 4 * math.sqrt(64 * 0.25 / 20)
    assert len(augmented(DropBeams((0.0, 0.0)), points, boxes, 0)[0]) == len(points)
    assert len(augmented(DropBeams((1.0, 1.0)), points, boxes, 0)[0]) == 0


def test_drop_beams_takes_points_straight_above_and_below() -> None:
    points = np.array([[0, 0, 5, 0], [0, 0, -5, 0], [0, 0, 0, 0]], np.float32)
    for seed in range(5):
        augmented(DropBeams((0.5, 0.5)), points, np.zeros((0, 7), np.float32), seed)


def test_jitter_is_as_wide_as_asked() -> None:
    points = np.zeros((20_000, 4), np.float32)
    moved, _ = augmented(Jitter(0.05), points, np.zeros((0, 7), np.float32), 0)
    assert np.allclose(moved[:, :3].std(0), 0.05, rtol=0.03) and (moved[:, 3] == 0).all()


def test_reflectance_noise() -> None:
    points, boxes, _ = scene(0)
    noisy, _ = augmented(ReflectanceNoise((1.0, 1.0), 0.1), points, boxes, 0)
    assert np.array_equal(noisy[:, :3], points[:, :3])
    assert ((noisy[:, 3] >= 0) & (noisy[:, 3] <= 1)).all()
    assert 0.05 < (noisy[:, 3] - points[:, 3]).std() < 0.1
    scaled, _ = augmented(ReflectanceNoise((0.5, 0.5), 0.0), points, boxes, 0)
    assert np.allclose(scaled[:, 3], points[:, 3] / 2)
    removed, _ = augmented(ReflectanceNoise(remove_probability=1.0), points, boxes, 0)
    assert (removed[:, 3] == 0).all()


def database_of(boxes: np.ndarray, names: list[str], counts: list[int]) -> ObjectDatabase:
    """Objects whose points lie inside them and hold their row as reflectance."""
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(len(boxes)), counts)
    xyz = from_box(rng.uniform(-0.49, 0.49, (len(owner), 3)) * boxes[owner, 3:6], boxes[owner])
    return ObjectDatabase(
        points=np.column_stack([xyz, owner]).astype(np.float32),
        offsets=np.cumsum([0, *counts], dtype=np.int64),
        boxes=boxes.astype(np.float32),
        names=np.array(names),
        difficulty=np.zeros(len(boxes), np.int64),
        frame_ids=np.array(["000000"] * len(boxes)),
    )


@pytest.mark.parametrize("seed", range(8))
def test_sampled_objects_stand_apart_and_bring_their_points(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = 60
    boxes = np.column_stack(
        [
            rng.uniform(5, 45, count),
            rng.uniform(-20, 20, count),
            rng.uniform(-1, 0, count),
            np.tile([4.0, 1.7, 1.5], (count, 1)),
            rng.uniform(-math.pi, math.pi, count),
        ]
    )
    database = database_of(boxes, ["Car"] * 50 + ["Cyclist"] * 10, list(range(10, 70)))
    points, there, _ = scene(seed)
    ground = np.column_stack(
        [rng.uniform([5, -20, -1], [45, 20, 0], (20_000, 3)), np.full(20_000, 0.5)]
    )
    points = np.concatenate([points, ground]).astype(np.float32)
    step = SampleObjects(database, {"Car": 15, "Cyclist": 3}, min_points=20)
    sweep = step(LabelledSweep(points, there, ["Car"] * 3 + ["Van"]), np.random.default_rng(seed))

    require_apart(sweep.boxes)
    assert np.array_equal(sweep.boxes[:4], there)
    assert list(sweep.names[:4]) == ["Car"] * 3 + ["Van"]
    assert 3 < list(sweep.names).count("Car") <= 15
    assert list(sweep.names).count("Cyclist") <= 3
    kept = 0
    for box, name in zip(sweep.boxes[4:], sweep.names[4:], strict=True):
        row = int(np.flatnonzero((database.boxes == box).all(1))[0])
        assert database.names[row] == name and database.counts[row] >= 20
        inside = (np.abs(to_box(sweep.points[:, :3], box[None])) < box[3:6] / 2 * 0.999).all(1)
        assert np.array_equal(sweep.points[inside], database.points_of(row))
        kept += len(database.points_of(row))
    scene_points = sweep.points[: len(sweep.points) - kept]
    assert set(map(tuple, scene_points)) <= set(map(tuple, points))


def test_sampling_fills_up_and_no_further() -> None:
    boxes = np.zeros((30, 7))
    boxes[:, 1] = 10.0 * np.arange(30)
    boxes[:, 3:6] = 1.0
    step = SampleObjects(database_of(boxes, ["Car"] * 30, [9] * 30), {"Car": 12})
    empty = LabelledSweep(np.zeros((0, 4), np.float32), np.zeros((0, 7), np.float32), [])
    sweep = step(empty, np.random.default_rng(0))
    assert len(sweep.boxes) == 12 and len(sweep.points) == 12 * 9
    again = step(sweep, np.random.default_rng(1))
    assert np.array_equal(again.boxes, sweep.boxes)
    few = SampleObjects(database_of(boxes[:2], ["Car"] * 2, [9, 4]), {"Car": 12, "Cyclist": 5})
    assert len(few(empty, np.random.default_rng(0)).boxes) == 1


def test_harder_objects_are_not_sampled() -> None:
    boxes = np.zeros((3, 7))
    boxes[:, 1] = [0, 10, 20]
    boxes[:, 3:6] = 1.0
    database = database_of(boxes, ["Car"] * 3, [9] * 3)
    database.difficulty[:] = [0, 2, 3]
    empty = LabelledSweep(np.zeros((0, 4), np.float32), np.zeros((0, 7), np.float32), [])
    for most, ys in ((0, [0]), (2, [0, 10]), (3, [0, 10, 20])):
        step = SampleObjects(database, {"Car": 9}, max_difficulty=most)
        assert sorted(step(empty, np.random.default_rng(0)).boxes[:, 1]) == ys


def test_sampling_refuses_points_with_other_features() -> None:
    boxes = np.array([[0, 0, 0, 1, 1, 1, 0.0]])
    step = SampleObjects(database_of(boxes, ["Car"], [9]), {"Car": 9})
    five = LabelledSweep(np.zeros((0, 5), np.float32), np.zeros((0, 7), np.float32), [])
    with pytest.raises(DataError, match="4 columns, the sweep of 5"):
        step(five, np.random.default_rng(0))
