"""Voxelization, pooling and box geometry on CPU and CUDA, deterministic and compilable.

The names of torch-scatter are here with its arguments and results, so that
``import voxelpool.ops as torch_scatter`` moves a user over.
"""

from voxelpool.ops.boxes import boxes_iou_3d, boxes_iou_bev, nms_rotated, points_in_boxes
from voxelpool.ops.composite import (
    scatter_log_softmax,
    scatter_logsumexp,
    scatter_softmax,
    scatter_std,
)
from voxelpool.ops.conv import conv_table, gather_conv, gather_conv_affine
from voxelpool.ops.encode import encode_points, encode_voxels
from voxelpool.ops.median import segment_median
from voxelpool.ops.neighbours import ball_query, farthest_points
from voxelpool.ops.occupancy import occupancy_grid
from voxelpool.ops.pool import segment_max, segment_mean, segment_min, segment_sum
from voxelpool.ops.scatter import (
    scatter,
    scatter_add,
    scatter_max,
    scatter_mean,
    scatter_min,
    scatter_mul,
    scatter_sum,
)
from voxelpool.ops.segment import (
    gather_coo,
    gather_csr,
    segment_add_coo,
    segment_add_csr,
    segment_coo,
    segment_csr,
    segment_max_coo,
    segment_max_csr,
    segment_mean_coo,
    segment_mean_csr,
    segment_min_coo,
    segment_min_csr,
    segment_sum_coo,
    segment_sum_csr,
)
from voxelpool.ops.sparse import sparse_reach, sparse_table
from voxelpool.ops.voxel_pool import points_to_voxels, voxel_pool
from voxelpool.ops.voxelize import voxelize, voxelize_static

__all__ = [
    "ball_query",
    "boxes_iou_3d",
    "boxes_iou_bev",
    "conv_table",
    "encode_points",
    "encode_voxels",
    "farthest_points",
    "gather_conv",
    "gather_conv_affine",
    "gather_coo",
    "gather_csr",
    "nms_rotated",
    "occupancy_grid",
    "points_in_boxes",
    "points_to_voxels",
    "scatter",
    "scatter_add",
    "scatter_log_softmax",
    "scatter_logsumexp",
    "scatter_max",
    "scatter_mean",
    "scatter_min",
    "scatter_mul",
    "scatter_softmax",
    "scatter_std",
    "scatter_sum",
    "segment_add_coo",
    "segment_add_csr",
    "segment_coo",
    "segment_csr",
    "segment_max",
    "segment_max_coo",
    "segment_max_csr",
    "segment_mean",
    "segment_mean_coo",
    "segment_mean_csr",
    "segment_median",
    "segment_min",
    "segment_min_coo",
    "segment_min_csr",
    "segment_sum",
    "segment_sum_coo",
    "segment_sum_csr",
    "sparse_reach",
    "sparse_table",
    "voxel_pool",
    "voxelize",
    "voxelize_static",
]
