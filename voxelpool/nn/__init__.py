"""Layers of the networks: voxel feature encoding, middle layers, region proposals, pooling."""

from __future__ import annotations

from voxelpool.nn.attention import CBAM, SqueezeExcite
from voxelpool.nn.heads import ClassifierHead
from voxelpool.nn.middle import DenseMiddle, ScatterMiddle, VoxelConv3d, scatter_to_dense
from voxelpool.nn.pooling import GlobalPool, WindowPool
from voxelpool.nn.pyramid import (
    SPPF,
    ParallelSPP,
    PyramidNeck,
    SpatialPyramidPool,
    WindowPyramidPool,
)
from voxelpool.nn.rpn import RPN, HeadMaps
from voxelpool.nn.set_abstraction import PointMLP, SetAbstraction
from voxelpool.nn.sparse import SparseCells, SparseConv, SparseMiddle, SparseStage
from voxelpool.nn.synced import synchronise_norms
from voxelpool.nn.vfe import VFE, MeanVFE, PackedBatchNorm, PointLayer, VFELayer, point_features

__all__ = [
    "CBAM",
    "RPN",
    "SPPF",
    "VFE",
    "ClassifierHead",
    "DenseMiddle",
    "GlobalPool",
    "HeadMaps",
    "MeanVFE",
    "PackedBatchNorm",
    "ParallelSPP",
    "PointLayer",
    "PointMLP",
    "PyramidNeck",
    "ScatterMiddle",
    "SetAbstraction",
    "SparseCells",
    "SparseConv",
    "SparseMiddle",
    "SparseStage",
    "SpatialPyramidPool",
    "SqueezeExcite",
    "VFELayer",
    "VoxelConv3d",
    "WindowPool",
    "WindowPyramidPool",
    "point_features",
    "scatter_to_dense",
    "synchronise_norms",
]
