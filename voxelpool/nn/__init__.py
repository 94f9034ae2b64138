"""Layers of the detectors: voxel feature encoding, middle layers, region proposal network."""

from __future__ import annotations

from voxelpool.nn.middle import DenseMiddle, VoxelConv3d, scatter_to_dense
from voxelpool.nn.rpn import RPN
from voxelpool.nn.vfe import VFE, PackedBatchNorm, PointLayer, VFELayer, point_features

__all__ = [
    "RPN",
    "VFE",
    "DenseMiddle",
    "PackedBatchNorm",
    "PointLayer",
    "VFELayer",
    "VoxelConv3d",
    "point_features",
    "scatter_to_dense",
]
