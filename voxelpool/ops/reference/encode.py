"""Encoding of voxels in pure PyTorch, by the rules of ``voxelpool.ops.encode``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from voxelpool.ops.reference.pool import check_offsets, group_of_row, segment_max, segment_mean


def encode_voxels(
    features: Tensor, offsets: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> Tensor:
    """(K, C) from the codes (M, D) of the points; the linear layers split at the concatenation."""
    check_offsets(offsets, features.shape[0])
    voxel = group_of_row(offsets, features.shape[0])
    own, pooled = features, None
    for weight, bias in zip(weights, biases, strict=True):
        if pooled is None:
            own = F.linear(own, weight, bias)
        else:
            own_columns = own.shape[1]
            of_voxel = F.linear(pooled, weight[:, own_columns:], bias)
            own = F.linear(own, weight[:, :own_columns]) + of_voxel.index_select(0, voxel)
        own = F.relu(own)
        pooled, _ = segment_max(own, offsets)
    assert pooled is not None  # there is at least one layer
    return pooled


def encode_points(
    points: Tensor,
    point_index: Tensor,
    offsets: Tensor,
    centers: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
) -> Tensor:
    """(K, C) from points (N, 3 + E), whose code is made first."""
    packed = points.index_select(0, point_index)
    voxel = group_of_row(offsets, packed.shape[0])
    xyz = packed[:, :3]
    columns = [packed, xyz - segment_mean(xyz, offsets).index_select(0, voxel)]
    if centers is not None:
        columns.append(xyz - centers.index_select(0, voxel))
    return encode_voxels(torch.cat(columns, dim=1), offsets, weights, biases)
