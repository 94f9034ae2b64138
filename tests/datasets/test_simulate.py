from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from voxelpool.datasets.calibration import Calibration, crop_to_image
from voxelpool.datasets.kitti_format import (
    DEFAULT_IMAGE_SIZE,
    DONT_CARE,
    KittiObjects,
    read_label,
    read_sweep,
    write_label,
)
from voxelpool.datasets.simulate import (
    Settings,
    SimulatedFrame,
    objects,
    prepare,
    read_scene,
    simulate_frame,
    write_frames,
)
from voxelpool.datasets.simulate.labels import EXACT, Annotator, draw_calibration, label
from voxelpool.datasets.simulate.layouts import make_scene
from voxelpool.datasets.simulate.meshes import Material, Mesh, box, merge
from voxelpool.datasets.simulate.scene import Scene, SceneObject, overlaps
from voxelpool.datasets.simulate.sensor import Sweep, scan
from voxelpool.errors import DataError
from voxelpool.ops import boxes_iou_3d, points_in_boxes

pytest.importorskip("open3d")

FRAMES = 16
GROUND = -1.7
CAR = np.array([4.0, 1.6, 1.5])
WIDTH, HEIGHT = DEFAULT_IMAGE_SIZE
PINHOLE = Calibration(
    np.array([[700.0, 0, 620, 0], [0, 700, 180, 0], [0, 0, 1, 0]]),
    np.eye(3),
    np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0]]),
)


@pytest.fixture(scope="module")
def frames() -> list[SimulatedFrame]:
    return [simulate_frame(0, index) for index in range(FRAMES)]


def cropped(frame: SimulatedFrame) -> np.ndarray:
    points = frame.sweep.points
    return points[crop_to_image(points, frame.calibration, DEFAULT_IMAGE_SIZE)]


def known(frame: SimulatedFrame) -> KittiObjects:
    chosen = [i for i, name in enumerate(frame.objects.type) if name != DONT_CARE]
    return frame.objects[chosen]


def lidar_boxes(calibration: Calibration, found: KittiObjects) -> np.ndarray:
    return calibration.boxes_to_lidar(found.location, found.dimensions, found.rotation_y)


def counts(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    inside = points_in_boxes(
        torch.from_numpy(points[:, :3].astype(np.float32)),
        torch.from_numpy(boxes.astype(np.float32)),
    )
    return inside.sum(dim=0).numpy()


def in_box_frame(xyz: np.ndarray, around: np.ndarray) -> np.ndarray:
    """Coordinates along length, width and height from the centre of a box."""
    offset = xyz - around[:3]
    cos, sin = np.cos(around[6]), np.sin(around[6])
    x = cos * offset[:, 0] + sin * offset[:, 1]
    y = cos * offset[:, 1] - sin * offset[:, 0]
    return np.column_stack([x, y, offset[:, 2]])


# Like KITTI's frames. Bands: sizes of KITTI's 7,481 training sweeps, and measurements of 20 of
# them for what only the points tell.


def test_points_per_sweep_and_in_the_image_are_kittis(frames: list[SimulatedFrame]) -> None:
    # Whole: 119,225 +- 5,219, 78,596 to 128,467. In the image: 18,968 +- 1,045, 13,545 to 20,991.
    whole = np.array([len(frame.sweep.points) for frame in frames])
    image = np.array([len(cropped(frame)) for frame in frames])
    assert whole.min() > 78_596
    assert whole.max() < 128_467
    assert abs(whole.mean() - 119_225) < 5_219
    assert image.min() > 13_545
    assert image.max() < 20_991
    assert abs(image.mean() - 18_968) < 1.5 * 1_045
    assert 0.14 < image.sum() / whole.sum() < 0.17  # about 16 %


def test_occupied_pillars_are_kittis(frames: list[SimulatedFrame]) -> None:
    # Pillars of .16 m in front of the car: 3.0 k to 8.6 k, 6.0 k on average; within 20 %.
    occupied = []
    for frame in frames:
        points = cropped(frame)
        x, y, z, _ = points.T
        grid = (x < 69.12) & (np.abs(y) < 39.68) & (z > -3) & (z < 1)
        occupied.append(len(np.unique(np.floor(points[grid, :2] / 0.16), axis=0)))
    assert min(occupied) > 3_000
    assert max(occupied) < 8_600
    assert abs(np.mean(occupied) - 6_000) < 1_200


def test_ground_range_and_reflectance_are_kittis(frames: list[SimulatedFrame]) -> None:
    # Ground: most frequent z, -1.70 +- .04, by frame -1.64 to -1.78, in another 34 frames -1.53 to
    # -1.89. Range: 1.46 to 80 m, 99 % under 57 m, median 9.6 m. Reflectance: mean .25, .21 to .30
    # by frame; 5 to 23 % zero.
    ground, middle, far, mean, zero = [], [], [], [], []
    for frame in frames:
        points = frame.sweep.points.astype(np.float64)
        number, edges = np.histogram(points[:, 2], bins=np.arange(-2.2, -1.2, 0.02))
        ground.append(edges[number.argmax()] + 0.01)
        distance = np.linalg.norm(points[:, :3], axis=1)
        assert 1.45 < distance.min() < 6
        assert 75 < distance.max() < 80
        middle.append(np.median(distance))
        far.append(np.quantile(distance, 0.99))
        mean.append(points[:, 3].mean())
        zero.append(np.mean(points[:, 3] == 0))
    assert abs(np.mean(ground) + 1.70) < 0.04
    assert -1.90 < min(ground) <= max(ground) < -1.52
    assert np.mean(np.abs(np.array(ground) + 1.71) < 0.075) > 0.6
    assert abs(np.mean(middle) - 9.6) < 1.5
    assert abs(np.mean(far) - 57) < 8
    assert 0.21 < np.mean(mean) < 0.30
    assert 0.15 < min(mean) <= max(mean) < 0.35
    assert 0.10 < np.mean(zero) < 0.18
    assert 0.04 < min(zero) <= max(zero) < 0.28


def test_consecutive_returns_from_the_ground_scatter_like_the_sensors(
    frames: list[SimulatedFrame],
) -> None:
    # Second differences on the ground near the car: .009 to .017 m.
    scatter = []
    for frame in frames:
        points = frame.sweep.points.astype(np.float64)
        distance = np.linalg.norm(points[:, :3], axis=1)
        near = (distance > 5) & (distance < 12) & (np.abs(points[:, 2] + 1.7) < 0.12)
        three = near[2:] & near[1:-1] & near[:-2]
        second = (distance[2:] - 2 * distance[1:-1] + distance[:-2])[three]
        scatter.append(1.4826 * np.median(np.abs(second)) / np.sqrt(6))
    assert 0.009 < np.mean(scatter) < 0.017


def test_cars_and_their_points_are_kittis(frames: list[SimulatedFrame]) -> None:
    # 3.87 cars a frame, at most 17; of a car's points 25, 50 and 75 % quantiles 26, 85 and 296.
    cars, points = [], []
    for frame in frames:
        found = known(frame)
        of_class = np.array([name == "Car" for name in found.type], bool)
        cars.append(of_class.sum())
        points.append(counts(cropped(frame), lidar_boxes(frame.calibration, found)[of_class]))
    hit = np.concatenate(points)
    hit = hit[hit > 0]
    assert 2.5 < np.mean(cars) < 6.5
    for share, expected in ((0.25, 26), (0.5, 85), (0.75, 296)):
        assert expected / 2 < np.quantile(hit, share) < expected * 2
    assert hit.max() > 800


def test_resolution_and_order_are_the_sensors(frames: list[SimulatedFrame]) -> None:
    for frame in frames[:3]:
        points = frame.sweep.points
        assert points.dtype == np.float32
        thousandths = points[:, :3].astype(np.float64) * 1000
        np.testing.assert_allclose(thousandths, np.round(thousandths), atol=5e-3)
        hundredths = points[:, 3].astype(np.float64) * 100
        np.testing.assert_allclose(hundredths, np.round(hundredths), atol=1e-5)
        assert points[:, 3].min() == 0
        assert points[:, 3].max() <= np.float32(0.99)

        azimuth = np.degrees(np.arctan2(points[:, 1], points[:, 0])) % 360
        first = np.flatnonzero(np.diff(azimuth, prepend=360.0) < -180)
        assert len(first) == 64
        rings = np.split(points, first[1:])
        elevation = [
            np.median(np.degrees(np.arctan2(ring[:, 2], np.hypot(ring[:, 0], ring[:, 1]))))
            for ring in rings
        ]
        assert (np.diff(elevation) < 0).all()
        assert 1.8 < elevation[0] < 3.7
        assert -25 < elevation[-1] < -23
        for part in np.split(azimuth, first[1:]):
            assert (np.diff(part) > -0.05).all()  # as far as 1 mm lets see
            assert abs(np.median(np.diff(part)) - 0.165) < 0.02


# The labels


def test_boxes_in_the_image_are_the_projected_corners(frames: list[SimulatedFrame]) -> None:
    compared = 0
    for frame in frames:
        found, calibration = known(frame), frame.calibration
        assert (found.bbox >= 0).all()
        assert (found.bbox[:, [0, 2]] <= WIDTH - 1).all()
        assert (found.bbox[:, [1, 3]] <= HEIGHT - 1).all()
        assert (found.bbox[:, 2:] > found.bbox[:, :2]).all()
        for (h, w, l), place, turn, bbox, cut in zip(  # noqa: E741
            found.dimensions,
            found.location,
            found.rotation_y,
            found.bbox,
            found.truncated,
            strict=True,
        ):
            # The devkit's: x along the length, y down from the bottom face, z along the width.
            x = np.array([1, 1, -1, -1, 1, 1, -1, -1]) * l / 2
            y = np.array([0, 0, 0, 0, -1, -1, -1, -1]) * h
            z = np.array([1, -1, -1, 1, 1, -1, -1, 1]) * w / 2
            cos, sin = np.cos(turn), np.sin(turn)
            corners = place + np.column_stack([cos * x + sin * z, y, cos * z - sin * x])
            pixels = np.column_stack([corners, np.ones(8)]) @ calibration.P2.T
            if pixels[:, 2].min() < 0.5:
                continue
            uv = pixels[:, :2] / pixels[:, 2:]
            low, high = uv.min(axis=0), uv.max(axis=0)
            clipped = np.clip([*low, *high], 0, [WIDTH - 1, HEIGHT - 1] * 2)
            np.testing.assert_allclose(bbox, clipped, atol=1e-4)
            share = np.prod(clipped[2:] - clipped[:2]) / np.prod(high - low)
            assert cut == pytest.approx(1 - share, abs=0.006)
            compared += 1
    assert compared > 40


def test_alpha_is_the_angle_towards_the_camera(frames: list[SimulatedFrame]) -> None:
    for frame in frames:
        found = known(frame)
        seen_from = np.arctan2(found.location[:, 0], found.location[:, 2])
        difference = found.alpha - (found.rotation_y - seen_from)
        np.testing.assert_allclose(np.cos(difference), 1, atol=1e-9)
        assert (np.abs(found.alpha) <= np.pi).all()


def test_no_two_objects_meet(frames: list[SimulatedFrame]) -> None:
    for frame in frames:
        boxes = torch.from_numpy(frame.scene.boxes).float()
        assert torch.count_nonzero(boxes_iou_3d(boxes, boxes).fill_diagonal_(0)) == 0


def test_boxes_hold_their_points_tightly(frames: list[SimulatedFrame]) -> None:
    held, checked = [], 0
    for frame in frames:
        for number, thing in enumerate(frame.scene.objects):
            own = frame.sweep.points[frame.sweep.owner == number, :3].astype(np.float64)
            place, half = in_box_frame(own, thing.box), thing.box[3:6] / 2
            if len(own):
                # Range noise has a deviation of 9 mm.
                assert (np.abs(place) < half + 0.06).all()
                held.append(np.mean((np.abs(place) <= half + 1e-3).all(axis=1)))
            if frame.sweep.share[number] < 0.98 or len(own) < 400:
                continue
            # The face turned most towards the sensor is reached.
            sensor = in_box_frame(np.zeros((1, 3)), thing.box)[0, :2]
            axis = int(np.argmax(np.abs(sensor) / half[:2]))
            reach = (place[:, axis] * np.sign(sensor[axis])).max()
            assert half[axis] - reach < 0.1
            checked += 1
    assert np.mean(held) > 0.9
    assert checked > 8


def test_near_objects_in_full_view_hold_points(frames: list[SimulatedFrame]) -> None:
    number = 0
    for frame in frames:
        found = known(frame)
        boxes = lidar_boxes(frame.calibration, found)
        near = (np.hypot(boxes[:, 0], boxes[:, 1]) < 40) & (found.occluded == 0)
        near &= found.truncated < 0.5
        held = counts(cropped(frame), boxes)[near]
        assert (held > 0).all()
        number += len(held)
    assert number > 20


def test_every_frame_has_an_object_and_none_is_behind(frames: list[SimulatedFrame]) -> None:
    for frame in frames:
        found = known(frame)
        assert len(found)
        assert (found.location[:, 2] > -5).all()
        regions = [i for i, name in enumerate(frame.objects.type) if name == DONT_CARE]
        assert (frame.objects.dimensions[regions] == -1).all()
        assert (frame.objects.location[regions] == -1000).all()
        assert (frame.objects.alpha[regions] == -10).all()


def test_labels_survive_the_file(frames: list[SimulatedFrame], tmp_path: Path) -> None:
    for frame in frames:
        write_label(tmp_path / "a.txt", frame.objects, decimals=2)
        back = read_label(tmp_path / "a.txt")
        assert back.type == frame.objects.type
        np.testing.assert_allclose(back.bbox, frame.objects.bbox, atol=0.0051)
        columns = [line.split() for line in (tmp_path / "a.txt").read_text().splitlines()]
        assert all(len(line) == 15 and line[1] != "-0.00" for line in columns)


# Scenes made by hand


def flat(*more: Mesh) -> Mesh:
    return merge([box((170, 170, 0.1), Material.ASPHALT, z=GROUND - 0.1), *more])


def thing(
    x: float, y: float, yaw: float = 0.0, *, name: str = "Car", size: np.ndarray = CAR
) -> SceneObject:
    z = GROUND + size[2] / 2
    mesh = objects.build(np.random.default_rng(5), name, size).moved(x, y, z, yaw)
    return SceneObject(name, np.array([x, y, z, *size, yaw]), mesh, 0.5)


def look(statics: Mesh, *things: SceneObject) -> tuple[Scene, Sweep]:
    scene = Scene(statics, np.ones(len(statics.triangles)), list(things))
    return scene, scan(np.random.default_rng(1), scene)


def seen(statics: Mesh, car: SceneObject, *, faint: bool, turns: int = 1) -> list[np.ndarray]:
    """Points (N, 4) of a car, as each of some turns of the sensor sees it."""
    scene = Scene(statics, np.ones(len(statics.triangles)), [car])
    sweeps = [scan(np.random.default_rng(seed), scene, faint) for seed in range(turns)]
    return [sweep.points[sweep.owner == 0] for sweep in sweeps]


def labels_of(
    scene: Scene, sweep: Sweep, seed: int = 0, annotator: Annotator = EXACT
) -> KittiObjects:
    return label(np.random.default_rng(seed), scene, sweep, PINHOLE, DEFAULT_IMAGE_SIZE, annotator)


@pytest.mark.parametrize(
    ("x", "y", "yaw"),
    [(0, 8, 0), (0, 8, -np.pi), (0, -8, 0), (-8, 0, np.pi / 2), (-8, 0, -np.pi / 2), (5, 5, 2.2)],
)
def test_a_car_faces_where_its_yaw_says(x: float, y: float, yaw: float) -> None:
    _, sweep = look(flat(), thing(x, y, yaw))
    own = sweep.points[sweep.owner == 0, :3].astype(np.float64)
    place = in_box_frame(own, thing(x, y, yaw).box)
    assert len(place) > 300
    assert (np.abs(place) < CAR / 2 + 0.06).all()
    # The bonnet is lower than the tail.
    front, rear = place[place[:, 0] > 1.5, 2], place[place[:, 0] < -1.5, 2]
    assert front.max() < rear.max() - 0.05
    assert sweep.share[0] == 1


@pytest.mark.parametrize("name", objects.SIZES)
def test_every_shape_fills_its_box_exactly(name: str) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        size = objects.draw_size(rng, name)
        vertices = objects.build(rng, name, size).vertices
        np.testing.assert_allclose(vertices.max(axis=0), size / 2, atol=1e-9)
        np.testing.assert_allclose(vertices.min(axis=0), -size / 2, atol=1e-9)


def test_sizes_have_kittis_mean_and_spread() -> None:
    # Length, width, height of KITTI's labels: means and standard deviations in metres.
    expected = {
        "Car": ((3.884, 1.629, 1.526), (0.426, 0.102, 0.137)),
        "Pedestrian": ((0.842, 0.660, 1.761), (0.235, 0.143, 0.113)),
        "Cyclist": ((1.764, 0.597, 1.737), (0.177, 0.124, 0.095)),
    }
    rng = np.random.default_rng(0)
    for name, (mean, std) in expected.items():
        sizes = np.array([objects.draw_size(rng, name) for _ in range(2000)])
        np.testing.assert_allclose(sizes.mean(axis=0), mean, rtol=0.03)
        np.testing.assert_allclose(sizes.std(axis=0), std, rtol=0.15)


def test_the_car_behind_another_is_occluded() -> None:
    front, rear = thing(10, 0), thing(17, 0)
    scene, sweep = look(flat(), rear, front)
    _, alone = look(flat(), rear)
    found = labels_of(scene, sweep)
    assert found.type == ["Car", "Car"]
    assert found.occluded[1] == 0
    assert found.occluded[0] > 0
    assert sweep.share[1] == 1
    assert sweep.share[0] < 0.6
    assert alone.share[0] == 1
    assert sweep.aimed[0] == alone.aimed[0]
    assert np.sum(sweep.owner == 0) < 0.6 * np.sum(alone.owner == 0)


def test_density_falls_with_the_square_of_the_distance() -> None:
    _, near = look(flat(), thing(12, 0))
    _, far = look(flat(), thing(24, 0))
    assert 3 < near.aimed[0] / far.aimed[0] < 5.5


@pytest.mark.parametrize("side", [-1, 1])
def test_a_car_across_the_border_of_the_image_is_truncated(side: int) -> None:
    # Its centre is at the border: column 0 or 1241.
    y = 20 * (620 - (WIDTH - 1 if side < 0 else 0)) / 700
    found = labels_of(*look(flat(), thing(20, y)))
    assert found.type == ["Car"]
    assert 0.35 < found.truncated[0] < 0.65
    assert found.bbox[0, 2] == WIDTH - 1 if side < 0 else found.bbox[0, 0] == 0


def test_what_the_camera_does_not_see_is_no_object() -> None:
    scene, sweep = look(flat(), thing(-10, 0), thing(5, 20))
    assert (sweep.share == 1).all()
    assert len(labels_of(scene, sweep)) == 0


def test_far_and_small_is_dont_care() -> None:
    found = labels_of(*look(flat(), thing(78.5, 0)))
    assert found.type == [DONT_CARE]
    assert found.occluded[0] == -1
    assert found.truncated[0] == -1
    assert found.bbox[0, 3] - found.bbox[0, 1] == pytest.approx(
        700 * (1.7 / 76.5 - 0.2 / 80.5), abs=1
    )


def test_a_hidden_car_has_no_points_and_is_labelled_now_and_then() -> None:
    wall = box((0.3, 12, 3.0), Material.FACADE, x=10, z=GROUND)
    scene, sweep = look(flat(wall), thing(20, 0))
    assert sweep.share[0] == 0
    assert not (sweep.owner == 0).any()
    found = [labels_of(scene, sweep, seed) for seed in range(200)]
    assert 20 < sum(len(each) for each in found) < 100
    assert all(each.type in ([], ["Car"]) for each in found)
    assert {int(o) for each in found for o in each.occluded} == {3}


@pytest.mark.parametrize(("distance", "seen"), [(76.0, True), (81.0, False)])
def test_nothing_returns_from_beyond_the_range(distance: float, seen: bool) -> None:
    wall = box((0.3, 30, 6.0), Material.FACADE, x=distance, z=GROUND)
    _, sweep = look(flat(wall))
    beyond = sweep.points[sweep.points[:, 0] > distance - 0.5]
    assert bool((beyond[:, 2] > GROUND + 0.3).any()) is seen
    assert np.linalg.norm(sweep.points[:, :3], axis=1).max() < 80
    assert len(sweep.share) == len(sweep.aimed) == 0


def test_an_empty_scene_has_no_labels() -> None:
    assert len(labels_of(*look(flat()))) == 0


def test_rectangles_overlap_as_sampling_says() -> None:
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.linspace(-0.5, 0.5, 25)] * 2), axis=-1).reshape(-1, 2)
    for _ in range(100):
        a, b = rng.uniform((-2, -2, 1, 1, -3), (2, 2, 4, 3, 3), (2, 5))
        cos, sin = np.cos(a[4]), np.sin(a[4])
        inside = grid * a[2:4] @ np.array([[cos, sin], [-sin, cos]]) + a[:2]
        place = in_box_frame(
            np.column_stack([inside, 0 * inside[:, 0]]), np.array([*b[:2], 0, 0, 0, 0, b[4]])
        )
        sampled = bool((np.abs(place[:, :2]) < b[2:4] / 2).all(axis=1).any())
        # A sliver of an overlap can slip between samples, never the reverse.
        if sampled:
            assert overlaps(a, b[None])[0]
        if not (np.abs(place[:, :2]) < b[2:4] / 2 + 0.2).all(axis=1).any():
            assert not overlaps(a, b[None])[0]


def test_calibration_is_turned_and_consistent(tmp_path: Path) -> None:
    calibration = draw_calibration(np.random.default_rng(0))
    for rotation in (calibration.R0, calibration.Tr_velo_to_cam[:, :3]):
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(rotation) == pytest.approx(1)
    assert not np.allclose(calibration.R0, np.eye(3), atol=1e-3)
    xyz = np.random.default_rng(1).uniform(-30, 30, (20, 3))
    np.testing.assert_allclose(
        calibration.camera_to_lidar(calibration.lidar_to_camera(xyz)), xyz, atol=1e-9
    )
    calibration.save(tmp_path / "a.txt")
    back = Calibration.load(tmp_path / "a.txt")
    np.testing.assert_allclose(back.P2, calibration.P2, rtol=1e-9)
    np.testing.assert_allclose(back.Tr_velo_to_cam, calibration.Tr_velo_to_cam, atol=1e-9)


# The data set


def content(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_a_frame_depends_on_seed_and_index_only() -> None:
    first, again = simulate_frame(3, 1), simulate_frame(3, 1)
    assert first.sweep.points.tobytes() == again.sweep.points.tobytes()
    assert first.objects.bbox.tobytes() == again.objects.bbox.tobytes()
    for seed, index in ((4, 1), (3, 2)):
        other = simulate_frame(seed, index).sweep.points
        assert first.sweep.points.tobytes() != other.tobytes()


def test_labels_may_stand_above_the_ground_and_be_larger(tmp_path: Path) -> None:
    """As asked in the LiDAR's frame, the bottoms where they are lifted; what is seen stays."""
    settings = Settings(1, seed=3, label_lift=0.05, label_scale=(0.9, 1.0, 1.2))
    plain, lifted = simulate_frame(3, 1), simulate_frame(3, 1, settings.annotator)
    assert plain.sweep.points.tobytes() == lifted.sweep.points.tobytes()
    boxes = [
        frame.calibration.boxes_to_lidar(
            frame.objects.location[known],
            frame.objects.dimensions[known],
            frame.objects.rotation_y[known],
        )
        for frame in (plain, lifted)
        for known in [[name != "DontCare" for name in frame.objects.type]]
    ]
    assert len(boxes[0]) > 0
    np.testing.assert_allclose(boxes[1][:, 3:6], boxes[0][:, 3:6] * [0.9, 1.0, 1.2], atol=1e-6)
    np.testing.assert_allclose(boxes[1][:, [0, 1, 6]], boxes[0][:, [0, 1, 6]], atol=1e-6)
    bottoms = [part[:, 2] - part[:, 5] / 2 for part in boxes]
    np.testing.assert_allclose(bottoms[1] - bottoms[0], 0.05, atol=1e-6)
    prepare(tmp_path / "a", settings)
    assert prepare(tmp_path / "a", settings, resume=True) == [0]
    file = tmp_path / "a" / "simulate.json"
    file.write_text('{"frames": 1, "val_frames": 0, "seed": 3, "version": 4}')
    with pytest.raises(DataError, match=r"started with label_lift=0\.0, not 0\.05"):
        prepare(tmp_path / "a", settings, resume=True)
    assert prepare(tmp_path / "a", Settings(1, seed=3), resume=True) == [0]
    with pytest.raises(DataError, match=r"label_scale=\(1\.0, 1\.0, 1\.0\), not \(0\.9, "):
        prepare(tmp_path / "a", replace(settings, label_lift=0.0), resume=True)


@pytest.mark.parametrize(
    ("x", "y", "yaw", "expected"),
    [
        (20.0, 0.0, 0.0, (19.6, 0.0)),
        (20.0, 0.0, math.pi, (19.6, 0.0)),
        (0.0, -20.0, math.pi / 2, (0.0, -19.6)),
        (20.0, 0.0, math.pi / 2, (20.0, 0.0)),  # seen from its side
        (20.0, 0.0, math.pi / 4, (19.8, -0.2)),  # half of it: the cosine twice
        (0.0, 0.0, 0.0, (0.0, 0.0)),
    ],
)
def test_labels_may_stand_nearer_to_the_sensor(
    x: float, y: float, yaw: float, expected: tuple[float, float]
) -> None:
    """By a tenth of 4 m, along the length."""
    (box,) = Annotator(shift=0.1).boxes(np.array([[x, y, -1.0, 4.0, 1.6, 1.5, yaw]]))
    np.testing.assert_allclose(box, [*expected, -1.0, 4.0, 1.6, 1.5, yaw], atol=1e-9)


def test_the_shift_of_labels_is_a_setting(tmp_path: Path) -> None:
    settings = Settings(1, seed=3, label_shift=0.03)
    prepare(tmp_path, settings)
    list(write_frames(tmp_path, settings, [0]))
    frame = simulate_frame(3, 0, Annotator(shift=0.03))
    written = read_label(tmp_path / "training" / "label_2" / "000000.txt")
    np.testing.assert_allclose(written.location, frame.objects.location, atol=0.006)
    assert not np.allclose(written.location, simulate_frame(3, 0).objects.location, atol=0.03)
    with pytest.raises(DataError, match=r"started with label_shift=0\.03, not 0\.0"):
        prepare(tmp_path, Settings(1, seed=3), resume=True)


def test_hidden_objects_are_regions_where_asked(tmp_path: Path) -> None:
    """The car behind another by how many of its rays reach it; nothing else depends on it."""
    scene, sweep = look(flat(), thing(17, 0), thing(10, 0))
    share = sweep.share[0]
    assert 0 < share < 0.6
    for visible, labelled in ((0.0, True), (share, True), (share + 0.01, False), (1.0, False)):
        found = labels_of(scene, sweep, annotator=Annotator(visible=visible))
        if labelled:
            assert found.type == ["Car", "Car"]
        else:
            assert found.type == ["Car", "DontCare"]
            np.testing.assert_allclose(found.bbox, labels_of(scene, sweep).bbox[[1, 0]])
            assert found.location[0, 2] == pytest.approx(10)
    settings = Settings(1, seed=3, label_visible=0.5)
    prepare(tmp_path, settings)
    list(write_frames(tmp_path, settings, [0]))
    plain, choosy = simulate_frame(3, 0), simulate_frame(3, 0, Annotator(visible=0.5))
    assert plain.sweep.points.tobytes() == choosy.sweep.points.tobytes()
    written = read_label(tmp_path / "training" / "label_2" / "000000.txt")
    assert written.type == choosy.objects.type != plain.objects.type
    with pytest.raises(DataError, match=r"started with label_visible=0\.5, not 0\.0"):
        prepare(tmp_path, Settings(1, seed=3), resume=True)


def test_streets_are_oblique_where_asked(tmp_path: Path) -> None:
    """Cars 15 to 75 degrees off the sensor's axes; without it streets meet at right angles."""

    def share_oblique(oblique: float) -> float:
        scenes = [make_scene(np.random.default_rng([9, index]), oblique) for index in range(40)]
        for scene in scenes:
            iou = boxes_iou_3d(*[torch.from_numpy(scene.boxes)] * 2).fill_diagonal_(0)
            assert not iou.any()
        yaw = np.concatenate(
            [[thing.box[6] for thing in scene.objects if thing.name == "Car"] for scene in scenes]
        )
        off_axis = np.abs((np.degrees(yaw) + 45) % 90 - 45)
        return float((off_axis > 15).mean())

    assert share_oblique(0.0) < 0.1 < 0.25 < share_oblique(0.5) < share_oblique(1.0)
    settings = Settings(1, seed=3, oblique=1.0)
    prepare(tmp_path, settings)
    list(write_frames(tmp_path, settings, [0]))
    frame = simulate_frame(3, 0, oblique=1.0)
    assert frame.sweep.points.tobytes() != simulate_frame(3, 0).sweep.points.tobytes()
    np.testing.assert_array_equal(read_scene(tmp_path, "000000").boxes, frame.scene.boxes)
    with pytest.raises(DataError, match=r"started with oblique=1\.0, not 0\.0"):
        prepare(tmp_path, replace(settings, oblique=0.0), resume=True)


def test_faint_vehicles_alone_are_seen_otherwise() -> None:
    """Which rays hit what, and what comes back of all else, does not depend on it."""
    scene = Scene(flat(), np.ones(len(flat().triangles)), [thing(9, 3), thing(30, -4)])
    plain, faint = (scan(np.random.default_rng(1), scene, on) for on in (False, True))
    np.testing.assert_array_equal(plain.aimed, faint.aimed)
    np.testing.assert_array_equal(plain.share, faint.share)
    np.testing.assert_array_equal(plain.points[plain.owner < 0], faint.points[faint.owner < 0])
    assert len(plain.points) != len(faint.points)
    walker = thing(9, 3, name="Pedestrian", size=np.array([0.8, 0.6, 1.7]))
    walkers = Scene(flat(), np.ones(len(flat().triangles)), [walker])
    plain, faint = (scan(np.random.default_rng(1), walkers, on) for on in (False, True))
    np.testing.assert_array_equal(plain.points, faint.points)


def test_far_cars_lose_more_and_some_nearly_all() -> None:
    """Of a car's end, as docs/sim_to_real.md has it of KITTI's: none near, and of 0 to 19 of 20."""

    def kept(x: float) -> np.ndarray:
        plain, faint = (
            [
                float(((part[:, 2] > GROUND + 0.35) & (part[:, 2] < GROUND + 0.8)).sum())
                for part in seen(flat(), thing(x, 0.0), faint=on, turns=30)
            ]
            for on in (False, True)
        )
        return np.array(faint) / np.array(plain)

    near, far = kept(9.0), kept(40.0)
    assert near.min() > 0.9
    assert 0.55 < far.mean() < 0.85
    assert far.min() < 0.4 < 0.9 < far.max()


def test_far_roofs_are_not_seen_and_dark_paint_is_zero() -> None:
    def zeros_and_roof(faint: bool) -> tuple[float, int]:
        points = np.concatenate(seen(flat(), thing(40.0, 0.0), faint=faint, turns=10))
        return float((points[:, 3] == 0).mean()), int((points[:, 2] > GROUND + 1.46).sum())

    (plain_zeros, plain_roof), (faint_zeros, faint_roof) = map(zeros_and_roof, (False, True))
    assert plain_zeros < 0.5 < 0.6 < faint_zeros
    assert plain_roof > 0
    assert faint_roof < 0.5 * plain_roof


@pytest.mark.parametrize("yaw", [0.0, 0.7, np.pi / 2])
def test_what_comes_back_from_behind_windows_lies_in_the_car(yaw: float) -> None:
    """The cabin holds points where without it there are none; nothing leaves the box."""
    car = thing(9.0, 0.0, yaw)

    def depths(faint: bool) -> np.ndarray:
        points = np.concatenate(seen(flat(), car, faint=faint, turns=4))[:, :3].astype(np.float64)
        place = in_box_frame(points, car.box)
        assert (np.abs(place) < CAR / 2 + 0.06).all()
        return place

    def in_the_cabin(place: np.ndarray) -> int:
        inner = (np.abs(place[:, 0]) < 1.0) & (np.abs(place[:, 1]) < 0.4)
        height = place[:, 2] + CAR[2] / 2
        return int((inner & (height > 0.98) & (height < 1.3)).sum())

    plain, faint = in_the_cabin(depths(False)), in_the_cabin(depths(True))
    assert faint > 2 * plain + 10


def test_faint_vehicles_are_a_setting(tmp_path: Path) -> None:
    settings = Settings(1, seed=3, faint=True)
    prepare(tmp_path, settings)
    list(write_frames(tmp_path, settings, [0]))
    points = read_sweep(tmp_path / "training" / "velodyne" / "000000.bin")
    assert points.tobytes() == simulate_frame(3, 0, faint=True).sweep.points.tobytes()
    assert points.tobytes() != simulate_frame(3, 0).sweep.points.tobytes()
    with pytest.raises(DataError, match=r"started with faint=True, not False"):
        prepare(tmp_path, Settings(1, seed=3), resume=True)


def test_the_order_of_writing_does_not_matter(tmp_path: Path) -> None:
    settings = Settings(3, 1, 7)
    for name, order in (("a", [0, 1, 2]), ("b", [2, 0, 1])):
        prepare(tmp_path / name, settings)
        assert list(write_frames(tmp_path / name, settings, order)) == order
    assert content(tmp_path / "a") == content(tmp_path / "b")
    points = read_sweep(tmp_path / "a" / "training" / "velodyne" / "000002.bin")
    assert points.tobytes() == simulate_frame(7, 2).sweep.points.tobytes()


def test_prepare_lists_what_is_missing(tmp_path: Path) -> None:
    settings = Settings(3, 1)
    assert prepare(tmp_path / "a", settings) == [0, 1, 2]
    sets = {path.stem: path.read_text().split() for path in (tmp_path / "a").glob("*/*.txt")}
    assert sets == {
        "train": ["000000", "000001"],
        "val": ["000002"],
        "trainval": ["000000", "000001", "000002"],
    }
    list(write_frames(tmp_path / "a", settings, [1]))
    assert prepare(tmp_path / "a", settings, resume=True) == [0, 2]
    (tmp_path / "a" / "training" / "calib" / "000001.txt").unlink()
    assert prepare(tmp_path / "a", settings, resume=True) == [0, 1, 2]


@pytest.mark.parametrize(
    ("key", "change"),
    [("frames", {"frames": 4}), ("seed", {"seed": 1}), ("val_frames", {"val_frames": 2})],
)
def test_other_settings_are_not_continued(tmp_path: Path, key: str, change: dict[str, int]) -> None:
    settings = Settings(3, 1)
    prepare(tmp_path / "a", settings)
    with pytest.raises(DataError, match=rf"simulate\.json: .* started with {key}="):
        prepare(tmp_path / "a", replace(settings, **change), resume=True)
    with pytest.raises(FileExistsError):
        prepare(tmp_path / "a", settings)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_settings_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "simulate.json").write_text(text)
    with pytest.raises(DataError, match=r"simulate\.json"):
        prepare(tmp_path, Settings(1), resume=True)


def test_a_foreign_folder_is_not_continued(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"no simulate\.json"):
        prepare(tmp_path, Settings(1), resume=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Settings(0), "frames must be at least 1"),
        (lambda: Settings(2, 3), "val_frames must be between 0 and frames=2"),
        (lambda: Settings(2, -1), "val_frames"),
        (lambda: Settings(2, seed=-1), "seed must not be negative"),
        (lambda: Settings(2, label_lift=math.nan), "label_lift must be between -1 and 1"),
        (lambda: Settings(2, label_scale=(1, 1, 3)), "label_scale must be three factors"),
        (lambda: Settings(2, label_scale=(1, math.nan, 1)), "label_scale must be three factors"),
        (lambda: Settings(2, label_shift=math.nan), "label_shift must be between -0.5 and 0.5"),
        (lambda: Settings(2, label_visible=math.nan), "label_visible must be between 0 and 1"),
        (lambda: Settings(2, oblique=1.5), "oblique must be between 0 and 1"),
        (
            lambda: list(write_frames(Path(), Settings(1), [0], workers=0)),
            "workers must be at least 1",
        ),
    ],
)
def test_impossible_settings_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make()


def test_numpy_looks_at_materials_without_python_code() -> None:
    """While it runs code of theirs, as of an enumeration's members, it swallows Ctrl-C."""
    called = []
    sys.setprofile(lambda frame, event, _: called.append((event, frame.f_code.co_name)))
    try:
        np.ravel(Material.LEAF)
    finally:
        sys.setprofile(None)
    assert ("call", "ravel") in called
    assert ("call", "__getattr__") not in called
