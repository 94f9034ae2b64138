"""Pooled features of voxels straight from points."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from voxelpool.ops import _check
from voxelpool.ops.pool import segment_max, segment_mean, segment_min, segment_sum
from voxelpool.ops.voxelize import voxelize
from voxelpool.structures import VoxelGrid

_REDUCTIONS = {
    "max": lambda src, offsets: segment_max(src, offsets)[0],
    "min": lambda src, offsets: segment_min(src, offsets)[0],
    "mean": segment_mean,
    "sum": segment_sum,
}


def voxel_pool(
    points: Tensor,
    features: Tensor | None,
    grid: VoxelGrid,
    reduce: Literal["max", "min", "mean", "sum"] = "max",
    *,
    batch: Tensor | None = None,
    batch_size: int | None = None,
    max_points: int | None = None,
    max_voxels: int | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Groups points by voxel and pools their features; differentiable in ``features``.

    Args:
        points: (N, 3 or more) float32, metres; x, y, z first.
        features: (N, C), of a dtype that :func:`segment_max` takes; None: the columns of
            ``points``.
        grid: the range and the size of the voxels.
        reduce: what becomes of the features of a voxel.
        batch: as of :func:`voxelize`, like all that follow.
        batch_size: the number of frames.
        max_points: the most points pooled in a voxel, or None.
        max_voxels: the most voxels kept in a frame, or None.
        seed: of the random samples.

    Returns:
        ``coords`` (K, 4) int32, (batch, z, y, x) of each voxel in ascending order, and ``pooled``
        (K, C) in the dtype of ``features``.

    Raises:
        TypeError: an argument is no tensor or has another dtype.
        ValueError: a shape, device, limit or entry of ``batch`` does not fit, or ``reduce`` is
            none of the above.
    """
    if reduce not in _REDUCTIONS:
        raise ValueError(f"reduce must be one of {', '.join(_REDUCTIONS)}, got {reduce!r}")
    if features is None:
        features = _check.tensor("points", points)
    _check.tensor("features", features)
    _check.same_device("features", features, "points", _check.tensor("points", points))
    if features.dim() != 2 or features.shape[0] != points.shape[0]:
        raise ValueError(
            f"features must have shape (N, C) with a row for each of {points.shape[0]} points, "
            f"got {tuple(features.shape)}"
        )
    voxels = voxelize(
        points,
        grid,
        batch=batch,
        batch_size=batch_size,
        max_points=max_points,
        max_voxels=max_voxels,
        seed=seed,
    )
    packed = features.index_select(0, voxels.point_index)
    return voxels.coords, _REDUCTIONS[reduce](packed, voxels.offsets)


def points_to_voxels(points: Tensor, grid: VoxelGrid, **options: Any) -> tuple[Tensor, Tensor]:
    """The mean of all columns of the points in each voxel: the encoder of SECOND (Yan, 2018).

    Args:
        points: (N, D) float32, D at least 3, metres; x, y, z first.
        grid: the range and the size of the voxels.
        options: ``batch``, ``batch_size``, ``max_points``, ``max_voxels`` and ``seed`` of
            :func:`voxelize`.

    Returns:
        ``coords`` (K, 4) int32, (batch, z, y, x) of each voxel in ascending order, and the means
        (K, D).

    Raises:
        TypeError: as :func:`voxelize`.
        ValueError: as :func:`voxelize`.
    """
    return voxel_pool(points, None, grid, "mean", **options)
