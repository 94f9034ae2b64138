"""The weights that come along find cars: in simulated sweeps, and in real ones they never saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from voxelpool import Detector
from voxelpool.datasets.kitti import Frame, KittiDataset
from voxelpool.datasets.simulate import Settings, prepare, write_frames
from voxelpool.models.weights import shipped_weights
from voxelpool.ops import boxes_iou_bev, points_in_boxes


def plain_cars(frame: Frame) -> torch.Tensor:
    """Cars of 20 points or more, up to 40 m ahead and 20 m to the side."""
    points, boxes = torch.from_numpy(frame.points), torch.from_numpy(frame.boxes)
    near = (boxes[:, 0] < 40) & (boxes[:, 1].abs() < 20)
    return boxes[(points_in_boxes(points, boxes).sum(0) >= 20) & near]


def found_share(frames: list[Frame]) -> tuple[float, int, int]:
    """Share of the cars that overlap a detection by half from above; cars; detections."""
    detector = Detector.load("voxelnet_car_sim", score_threshold=0.3, device="cpu")
    cars = hits = boxes = 0
    for frame in frames:
        known, found = plain_cars(frame), detector.detect(frame.points)
        assert set(found.names) <= {"Car"}
        hits += int((boxes_iou_bev(known, found.boxes) > 0.5).any(1).sum())
        cars, boxes = cars + len(known), boxes + len(found)
    return hits / cars, cars, boxes


def test_they_are_there_and_hold_no_path_of_the_machine_that_trained_them() -> None:
    assert "voxelnet_car_sim" in shipped_weights()
    for name in shipped_weights():
        config = Detector.load(name, device="cpu").config
        assert config.name == name and config.data.root == "data/simulated"


def test_cars_of_simulated_sweeps_are_found(tmp_path: Path) -> None:
    """Sweeps of another seed than the training's."""
    root = tmp_path / "sim"
    settings = Settings(6, 6, seed=77)
    for _ in write_frames(root, settings, prepare(root, settings)):
        pass
    frames = KittiDataset(root, "val", classes=("Car",))
    share, cars, boxes = found_share([frames[row] for row in range(len(frames))])
    assert cars >= 8 and share >= 0.7
    assert boxes <= 3 * cars


def test_cars_of_real_sweeps_are_found(kitti_sample: Path) -> None:
    frames = KittiDataset(kitti_sample, "sample", classes=("Car",))
    even = [row for row, name in enumerate(frames.frame_ids) if int(name) % 2 == 0]
    share, cars, boxes = found_share([frames[row] for row in even])
    assert cars > 50 and share >= 0.7
    assert boxes <= 3 * cars


def test_an_empty_street_has_few_cars() -> None:
    """Flat ground, as the sensor sees it."""
    rng = np.random.default_rng(0)
    radius, angle = 5 + 35 * rng.random(15_000), rng.uniform(-0.7, 0.7, 15_000)
    ground = np.column_stack(
        [radius * np.cos(angle), radius * np.sin(angle), rng.normal(-1.73, 0.02, 15_000)]
    )
    points = np.column_stack([ground, np.full(15_000, 0.2)]).astype(np.float32)
    assert len(Detector.load("voxelnet_car_sim", score_threshold=0.5).detect(points)) == 0


def test_the_same_sweep_gives_the_same_boxes_by_any_number_of_threads(kitti_sample: Path) -> None:
    detector = Detector.load("voxelnet_car_sim", device="cpu")
    points = KittiDataset(kitti_sample, "sample", classes=("Car",))[8].points
    found = []
    before = torch.get_num_threads()
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        found.append(detector.detect(points))
    torch.set_num_threads(before)
    assert len(found[0]) > 0 and torch.equal(found[1].boxes, found[2].boxes)
    torch.testing.assert_close(found[0].boxes, found[1].boxes, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found[0].scores, found[1].scores, rtol=0, atol=1e-4)
