"""Points that stand for an object, and the points around them."""

from __future__ import annotations

import torch
from torch import Tensor

from voxelpool.ops import _check
from voxelpool.ops._library import register


def farthest_points(points: Tensor, count: int) -> Tensor:
    """Farthest-point sampling: each next point is the one farthest from all chosen before.

    The first is the one farthest from the mean, so that the order of the points matters in ties
    alone, which go to the lowest row.

    Args:
        points: (B, N, 3) floating point, computed with in float32. A row with a NaN or infinite
            coordinate is no point: it fills up objects of fewer points.
        count: how many to choose.

    Returns:
        (B, count) int64 rows; -1 where all places of an object are taken.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: another shape, or a count below 1.
    """
    _check_points("points", points)
    _check_count(count)
    return torch.ops.voxelpool.farthest_points(points.detach(), count)


def ball_query(points: Tensor, centres: Tensor, radius: float, count: int) -> Tensor:
    """The points nearest to each centre, within a radius.

    The nearest and not the first ones in order, as PointNet++ has it: the order of the points
    matters in ties alone, which go to the lowest row.

    Args:
        points: (B, N, 3) floating point, computed with in float32. A row with a NaN or infinite
            coordinate is no point.
        centres: (B, M, 3). One with a NaN has no neighbours.
        radius: the largest distance, itself included.
        count: the most points of a centre.

    Returns:
        (B, M, count) int64 rows, nearest first; -1 where there are fewer.

    Raises:
        TypeError: not floating-point tensors.
        ValueError: shapes or devices that do not fit, a count below 1 or a radius not above 0.
    """
    _check_points("points", points)
    _check_points("centres", centres)
    _check.same_device("centres", centres, "points", points)
    _check_count(count)
    if points.shape[0] != centres.shape[0]:
        raise ValueError(f"points are of {points.shape[0]} objects, centres of {centres.shape[0]}")
    if not radius > 0:
        raise ValueError(f"radius must be positive, got {radius}")
    return torch.ops.voxelpool.ball_query(points.detach(), centres.detach(), float(radius), count)


def _check_points(name: str, points: Tensor) -> None:
    _check.tensor(name, points)
    if not points.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {points.dtype}")
    if points.dim() != 3 or points.shape[2] != 3:
        raise ValueError(f"{name} must have shape (B, N, 3), got {tuple(points.shape)}")


def _check_count(count: int) -> None:
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")


def _squared(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return x * x + y * y + z * z  # written out: the same roundings on every device


def _farthest_points(points: Tensor, count: int) -> Tensor:
    batch, rows, _ = points.shape
    out = torch.full((batch, count), -1, dtype=torch.int64, device=points.device)
    if batch == 0 or rows == 0:
        return out
    exists = points.isfinite().all(2)
    wide = points.double().masked_fill(~exists[..., None], 0)
    mean = wide.sum(1, keepdim=True) / exists.sum(1).clamp(min=1).view(-1, 1, 1)
    from_mean = _squared(*(wide - mean).unbind(2)).masked_fill(~exists, -1)
    chosen = from_mean.argmax(1, keepdim=True)
    found = exists.gather(1, chosen)
    x, y, z = (axis.contiguous() for axis in wide.float().unbind(2))
    nearest = torch.where(exists, torch.inf, -1.0).to(x.dtype)
    for place in range(count):
        out[:, place : place + 1] = torch.where(found, chosen, -1)
        away = _squared(*(axis - axis.gather(1, chosen) for axis in (x, y, z)))
        nearest = torch.minimum(nearest, away)
        chosen = nearest.argmax(1, keepdim=True)
        found = nearest.gather(1, chosen) > 0
    return out


def _ball_query(points: Tensor, centres: Tensor, radius: float, count: int) -> Tensor:
    batch, rows, _ = points.shape
    kept = min(count, rows)
    out = torch.full((batch, centres.shape[1], count), -1, dtype=torch.int64, device=points.device)
    row = torch.arange(rows, device=points.device)
    none = torch.iinfo(torch.int64).max
    for element in range(batch if kept else 0):
        differences = centres[element].float()[:, None] - points[element].float()
        away = _squared(*differences.unbind(2))
        # Bits of a float that is not negative sort as it does; the row below them decides ties.
        key = (away.view(torch.int32).long() << 32) | row
        key = torch.where(away <= radius * radius, key, none)
        key = key.topk(kept, dim=1, largest=False).values
        out[element, :, :kept] = torch.where(key == none, -1, key & 0xFFFFFFFF)
    return out


register(
    "farthest_points(Tensor points, SymInt count) -> Tensor",
    native=_farthest_points,
    reference=_farthest_points,
    fake=lambda points, count: points.new_empty((points.shape[0], count), dtype=torch.int64),
)
register(
    "ball_query(Tensor points, Tensor centres, float radius, SymInt count) -> Tensor",
    native=_ball_query,
    reference=_ball_query,
    fake=lambda points, centres, radius, count: points.new_empty(
        (points.shape[0], centres.shape[1], count), dtype=torch.int64
    ),
)
