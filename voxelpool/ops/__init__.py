"""Voxelization, pooling and box geometry on CPU and CUDA, deterministic and compilable."""

from voxelpool.ops.boxes import boxes_iou_3d, boxes_iou_bev, nms_rotated, points_in_boxes
from voxelpool.ops.encode import encode_points, encode_voxels
from voxelpool.ops.pool import segment_max, segment_mean, segment_min, segment_sum
from voxelpool.ops.voxelize import voxelize

__all__ = [
    "boxes_iou_3d",
    "boxes_iou_bev",
    "encode_points",
    "encode_voxels",
    "nms_rotated",
    "points_in_boxes",
    "segment_max",
    "segment_mean",
    "segment_min",
    "segment_sum",
    "voxelize",
]
