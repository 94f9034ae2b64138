"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from voxelpool.config import ClassifierConfig, Config, parse_config
from voxelpool.datasets.calibration import Calibration
from voxelpool.datasets.kitti import (
    DEFAULT_IMAGE_SIZE,
    KittiObjects,
    write_label,
    write_sweep,
)


@pytest.fixture(
    params=[
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.cuda,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
            ],
        ),
    ]
)
def device(request: pytest.FixtureRequest) -> torch.device:
    """The devices that kernels must agree on."""
    return torch.device(request.param)


def _folder_from_environment(variable: str, what: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set: it names {what}")
    folder = Path(value)
    if not folder.is_dir():
        pytest.fail(f"{variable} is set to {folder}, which is no folder")
    return folder


@pytest.fixture(scope="session")
def kitti_sample() -> Path:
    """A folder with real frames in KITTI's layout."""
    return _folder_from_environment("KITTI_SAMPLE_DIR", "a folder of real frames")


@pytest.fixture(scope="session")
def kitti_eval_cases() -> Path:
    """A folder of label/result sets with the figures of the devkit's evaluator."""
    return _folder_from_environment("KITTI_EVAL_CASES", "a folder of evaluation cases")


@pytest.fixture(scope="session")
def reference_pointpillars() -> Path:
    """A PointPillars checkpoint of another package, with its outputs on real frames."""
    return _folder_from_environment(
        "REFERENCE_POINTPILLARS", "a folder with another package's checkpoint and its outputs"
    )


@pytest.fixture(scope="session")
def modelnet10() -> Path:
    """The folder of ModelNet10's archive of occupancy grids."""
    return _folder_from_environment("MODELNET10", "a folder with modelnet10.npz")


@pytest.fixture
def tiny_kitti(tmp_path: Path) -> Path:
    """A data set in KITTI's layout: six frames of ground, each with two boxes full of points."""
    root = tmp_path / "tiny_kitti"
    for name in ("velodyne", "label_2", "calib"):
        (root / "training" / name).mkdir(parents=True)
    (root / "ImageSets").mkdir()
    calibration = Calibration(
        P2=np.array([[720.0, 0, 620, 0], [0, 720, 187, 0], [0, 0, 1, 0]]),
        R0=np.eye(3),
        Tr_velo_to_cam=np.array([[0.0, -1, 0, 0], [0, 0, -1, -0.08], [1, 0, 0, -0.27]]),
    )
    rng = np.random.default_rng(0)
    ids = [f"{row:06d}" for row in range(6)]
    for frame_id in ids:
        ground = np.column_stack(
            [rng.uniform(4, 30, 600), rng.uniform(-10, 10, 600), rng.normal(-1.7, 0.02, 600)]
        )
        boxes = np.array(
            [
                [
                    rng.uniform(8, 12),
                    rng.uniform(-4, 0),
                    -0.9,
                    3.9,
                    1.6,
                    1.5,
                    rng.uniform(-0.2, 0.2),
                ],
                [rng.uniform(16, 22), rng.uniform(1, 5), -0.9, 4.1, 1.7, 1.5, 1.5],
            ]
        )
        inside = [
            box[:3]
            + np.column_stack(
                [
                    (rng.uniform(-0.49, 0.49, (150, 2)) * box[3:5])
                    @ [[np.cos(box[6]), np.sin(box[6])], [-np.sin(box[6]), np.cos(box[6])]],
                    rng.uniform(-0.49, 0.49, 150) * box[5],
                ]
            )
            for box in boxes
        ]
        xyz = np.concatenate([ground, *inside])
        points = np.column_stack([xyz, rng.uniform(0, 0.99, len(xyz))]).astype(np.float32)
        location, dimensions, rotation_y = calibration.boxes_to_camera(boxes)
        objects = KittiObjects(
            type=["Car", "Car"],
            truncated=np.zeros(2),
            occluded=np.zeros(2, np.int64),
            alpha=rotation_y - np.arctan2(location[:, 0], location[:, 2]),
            bbox=calibration.boxes_to_image(boxes, DEFAULT_IMAGE_SIZE),
            dimensions=dimensions,
            location=location,
            rotation_y=rotation_y,
            score=None,
        )
        write_sweep(root / "training" / "velodyne" / f"{frame_id}.bin", points)
        write_label(root / "training" / "label_2" / f"{frame_id}.txt", objects, decimals=2)
        calibration.save(root / "training" / "calib" / f"{frame_id}.txt")
    (root / "ImageSets" / "train.txt").write_text("\n".join(ids[:4]) + "\n")
    (root / "ImageSets" / "val.txt").write_text("\n".join(ids[4:]) + "\n")
    return root


@pytest.fixture
def tiny_config(tiny_kitti: Path) -> Config:
    """A detector small enough to train in a test, on `tiny_kitti`."""
    return parse_config(
        f"""
        name: tiny
        grid: {{range: [0, -12.8, -3, 25.6, 12.8, 1], voxel_size: [0.4, 0.4, 0.8]}}
        data:
          root: {tiny_kitti}
          num_workers: 0
          augment: [{{name: flip}}, {{name: rotate, range: [-0.1, 0.1]}}]
        anchors:
          - {{class_name: Car, size: [3.9, 1.6, 1.56], z_center: -1.0,
             matched_threshold: 0.6, unmatched_threshold: 0.45}}
        vfe: {{channels: [8], out_channels: 8, max_points: 5}}
        middle: {{channels: [4, 4, 4]}}
        rpn: {{layers: [1, 1, 1], channels: [8, 8, 8], upsample_channels: [8, 8, 8]}}
        train: {{epochs: 4, batch_size: 2, lr: 0.01, val_every: 2,
                schedule: {{name: one_cycle}}}}
        """
    )


@pytest.fixture
def tiny_archive(tmp_path: Path) -> Path:
    """A folder with an archive of ten kinds of shape: posts and plates of several sizes."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 60), ("test", 20)):
        grids = np.zeros((count, 8, 8, 8), np.int32)
        labels = np.arange(count) % 10
        for grid, label in zip(grids, labels, strict=True):
            x, y, z = rng.integers(2, 6, 3)
            size = 3 + label // 2
            if label % 2:
                grid[x, y, :size] = 1
            else:
                grid[:size, :size, z] = 1
        arrays |= {f"X_{split}": grids, f"y_{split}": labels}
    folder = tmp_path / "tiny_archive"
    folder.mkdir()
    np.savez_compressed(folder / "modelnet10.npz", **arrays)
    return folder


@pytest.fixture
def tiny_classifier(tiny_archive: Path) -> ClassifierConfig:
    """A classifier small enough to train in a test, on `tiny_archive`."""
    config = parse_config(
        f"""
        name: tiny_classifier
        model: small_cnn
        objects:
          source: modelnet_archive
          root: {tiny_archive}
          augment: {{rotations: 4, mirror: 0.2, jitter: 1}}
          votes: 4
        classifier: {{grid_size: 10, width: 4}}
        train: {{epochs: 2, batch_size: 8, optimizer: adamw, lr: 0.01, val_every: 1,
                schedule: {{name: one_cycle}}}}
        """
    )
    assert isinstance(config, ClassifierConfig)
    return config
