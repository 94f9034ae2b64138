"""Voxelization, pooling and box geometry on CPU and CUDA, deterministic and compilable."""

from voxelpool.ops.boxes import boxes_iou_3d, boxes_iou_bev, nms_rotated, points_in_boxes
from voxelpool.ops.conv import conv_table, gather_conv, gather_conv_affine
from voxelpool.ops.encode import encode_points, encode_voxels
from voxelpool.ops.pool import segment_max, segment_mean, segment_min, segment_sum
from voxelpool.ops.voxel_pool import points_to_voxels, voxel_pool
from voxelpool.ops.voxelize import voxelize, voxelize_static

__all__ = [
    "boxes_iou_3d",
    "boxes_iou_bev",
    "conv_table",
    "encode_points",
    "encode_voxels",
    "gather_conv",
    "gather_conv_affine",
    "nms_rotated",
    "points_in_boxes",
    "points_to_voxels",
    "segment_max",
    "segment_mean",
    "segment_min",
    "segment_sum",
    "voxel_pool",
    "voxelize",
    "voxelize_static",
]
