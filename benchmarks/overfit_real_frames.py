"""Can a reduced network learn eight real frames by heart? Trains it and counts the cars it finds.

Example: python benchmarks/overfit_real_frames.py path/to/kitti --run runs/overfit
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from voxelpool.config import load_config
from voxelpool.datasets.kitti import KittiDataset
from voxelpool.models import load_detector
from voxelpool.ops import boxes_iou_3d, points_in_boxes
from voxelpool.training import fit, new_run

CONFIG = Path(__file__).parents[1] / "configs" / "demo.yaml"
FRAMES = ("000010", "000032", "000038", "000068", "000114", "000142", "000192", "001481")
REDUCED = (
    "grid.range=[0,-40.96,-3,71.68,40.96,1]",
    "grid.voxel_size=[0.32,0.32,0.4]",
    "vfe.channels=[16,32]",
    "vfe.out_channels=32",
    "middle.channels=[16,16,16]",
    "rpn.layers=[2,3,3]",
    "rpn.channels=[32,64,64]",
    "head.direction=false",
    "head.min_voxels=0",
    "loss.classification=balanced",
    "loss.negative_weight=300",
    "loss.residual_weight=1",
    "loss.code_weights=[1,1,1,1,1,1,1]",
    "loss.smooth_l1_beta=0.1111",
    "data.augment=[]",
    "data.num_workers=0",
    "train.batch_size=4",
    "train.epochs=120",
    "train.val_every=120",
    "train.lr=0.004",
)
ENOUGH_POINTS = 20
MIN_IOU = 0.5
MIN_SCORE = 0.3


def main() -> None:
    """Trains, detects in the same frames, prints what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, help="a folder in KITTI's layout that has the frames")
    parser.add_argument("--run", type=Path, default=None, help="folder of the run")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        split = Path(folder) / "eight.txt"
        split.write_text("\n".join(FRAMES))
        data = (
            f"data.root={arguments.root}",
            f"data.train_split={split}",
            f"data.val_split={split}",
        )
        config = load_config(CONFIG, [*REDUCED, *data, "name=overfit"])
        run = new_run(config, arguments.run)
        fit(config, run)
        frames = KittiDataset(arguments.root, split, classes=("Car",))
    detector = load_detector(run.last)
    table = Table("frame", f"cars of {ENOUGH_POINTS} points or more", "found")
    cars = found = 0
    for frame in frames:
        points, boxes = torch.from_numpy(frame.points), torch.from_numpy(frame.boxes)
        known = boxes[points_in_boxes(points, boxes).sum(dim=0) >= ENOUGH_POINTS]
        (detections,) = detector.detect(points)
        sure = detections.boxes[detections.scores >= MIN_SCORE]
        hits = int((boxes_iou_3d(known, sure) > MIN_IOU).any(dim=1).sum())
        cars, found = cars + len(known), found + hits
        table.add_row(frame.frame_id, str(len(known)), str(hits))
    table.add_row("all", str(cars), f"{found} ({100 * found / cars:.1f} %)")
    Console().print(table)


if __name__ == "__main__":
    main()
