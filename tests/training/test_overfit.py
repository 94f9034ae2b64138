"""A reduced network learns a handful of real frames by heart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from voxelpool.config import load_config
from voxelpool.datasets.kitti import KittiDataset
from voxelpool.models import load_detector
from voxelpool.ops import boxes_iou_3d, points_in_boxes
from voxelpool.training import fit, new_run

CONFIG = Path(__file__).parents[2] / "configs" / "demo.yaml"
FRAMES = ("000010", "000032", "000038", "000068", "000114", "000142", "000192", "001481")
REDUCED = (
    "grid.range=[0,-40.96,-3,71.68,40.96,1]",
    "grid.voxel_size=[0.32,0.32,0.8]",
    "data.augment=[]",
    "data.num_workers=0",
    "train.batch_size=4",
    "train.epochs=120",
    "train.val_every=120",
)


@pytest.mark.slow
def test_eight_real_frames(kitti_sample: Path, tmp_path: Path) -> None:
    """At least 90% of their cars with 20 points or more are found at a 3D IoU of 0.5."""
    torch.set_num_threads(2)
    split = tmp_path / "eight.txt"
    split.write_text("\n".join(FRAMES))
    data = (f"data.root={kitti_sample}", f"data.train_split={split}", f"data.val_split={split}")
    config = load_config(CONFIG, [*REDUCED, *data])
    run = new_run(config, tmp_path / "run")
    fit(config, run, progress=False)
    detector = load_detector(run.last)
    cars = found = 0
    for frame in KittiDataset(kitti_sample, split, classes=("Car",)):
        points, boxes = torch.from_numpy(frame.points), torch.from_numpy(frame.boxes)
        known = boxes[points_in_boxes(points, boxes).sum(dim=0) >= 20]
        (detections,) = detector.detect(points)
        sure = detections.boxes[detections.scores >= 0.3]
        cars += len(known)
        found += int((boxes_iou_3d(known, sure) > 0.5).any(dim=1).sum())
    assert cars == 53
    assert found / cars >= 0.9, f"{found} of {cars} cars found"
