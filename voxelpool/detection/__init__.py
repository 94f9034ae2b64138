"""Between the network's maps and boxes: anchors, box coding, targets, losses, post-processing."""

from __future__ import annotations

from voxelpool.detection.anchors import (
    AnchorGenerator,
    AnchorSpec,
    Predictions,
    VoxelsUnderAnchors,
    flatten_maps,
)
from voxelpool.detection.box_coder import decode, direction_of, encode, face
from voxelpool.detection.losses import DetectionLoss
from voxelpool.detection.postprocess import Detections, Postprocessor
from voxelpool.detection.targets import AnchorTargets, TargetAssigner, iou_nearest, iou_standup
from voxelpool.detection.votes import Look, looks, merge

__all__ = [
    "AnchorGenerator",
    "AnchorSpec",
    "AnchorTargets",
    "DetectionLoss",
    "Detections",
    "Look",
    "Postprocessor",
    "Predictions",
    "TargetAssigner",
    "VoxelsUnderAnchors",
    "decode",
    "direction_of",
    "encode",
    "face",
    "flatten_maps",
    "iou_nearest",
    "iou_standup",
    "looks",
    "merge",
]
