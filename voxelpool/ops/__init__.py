"""Voxelization, pooling and box geometry on CPU and CUDA, deterministic and compilable."""

from voxelpool.ops.pool import segment_max, segment_mean, segment_min, segment_sum
from voxelpool.ops.voxelize import voxelize

__all__ = [
    "segment_max",
    "segment_mean",
    "segment_min",
    "segment_sum",
    "voxelize",
]
