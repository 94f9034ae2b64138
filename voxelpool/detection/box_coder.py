"""Residuals between boxes and anchors (VoxelNet, section 2.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_LOG_SIZE = 4.0
"""Bound of the decoded log size ratio: boxes are e^-4 to e^4 (55) times their anchor's size."""

MIN_SIZE = 1e-3
"""Lengths below this (metres) are coded as this, so that a flat box has a finite residual."""


def encode(boxes: Tensor, anchors: Tensor, *, angle_start: float | None = -math.pi / 2) -> Tensor:
    """Residuals that turn anchors into boxes.

    The offsets of the centre in x and y are divided by the diagonal of the anchor's base, the
    one in z by the anchor's height; sizes are log ratios; the angle is the plain difference of
    the yaws (no sine), an angle being known up to whole turns only.

    The paper does not say which of the turns it takes. By default the difference is brought into
    [-pi/2, 3 pi/2), where the jump lies across the anchor, at orientations which the other anchor
    of the pair is matched to. With both yaws in [-pi, pi) and None, the jump of the anchor at
    yaw 0 lies opposite it: on every car that comes towards the sensor.

    Args:
        boxes: (..., 7).
        anchors: (..., 7), broadcastable against the boxes.
        angle_start: start of the full turn that the angle residual lies in, radians; None leaves
            the difference as it is.

    Returns:
        (..., 7).
    """
    size = boxes[..., 3:6].clamp_min(MIN_SIZE)
    anchor_size = anchors[..., 3:6]
    diagonal = torch.linalg.vector_norm(anchors[..., 3:5], dim=-1, keepdim=True)
    angle = boxes[..., 6:7] - anchors[..., 6:7]
    if angle_start is not None:
        angle = _wrap(angle, angle_start)
    return torch.cat(
        [
            (boxes[..., :2] - anchors[..., :2]) / diagonal,
            (boxes[..., 2:3] - anchors[..., 2:3]) / anchors[..., 5:6],
            torch.log(size / anchor_size),
            angle,
        ],
        dim=-1,
    )


def decode(residuals: Tensor, anchors: Tensor) -> Tensor:
    """Boxes from residuals: the inverse of `encode`, with yaw in [-pi, pi).

    Log sizes are clamped to +-`MAX_LOG_SIZE`, so that an untrained or half-precision network
    cannot overflow the exponential.

    Args:
        residuals: (..., 7).
        anchors: (..., 7), broadcastable against the residuals.

    Returns:
        (..., 7) boxes: x, y, z, length, width, height, yaw.
    """
    diagonal = torch.linalg.vector_norm(anchors[..., 3:5], dim=-1, keepdim=True)
    size = torch.exp(residuals[..., 3:6].clamp(-MAX_LOG_SIZE, MAX_LOG_SIZE)) * anchors[..., 3:6]
    return torch.cat(
        [
            residuals[..., :2] * diagonal + anchors[..., :2],
            residuals[..., 2:3] * anchors[..., 5:6] + anchors[..., 2:3],
            size,
            _wrap(residuals[..., 6:7] + anchors[..., 6:7], -math.pi),
        ],
        dim=-1,
    )


def direction_of(yaw: Tensor, offset: float) -> Tensor:
    """Which way round boxes are: 0 for yaws in [offset, offset + pi), 1 for the rest; int64.

    Args:
        yaw: radians.
        offset: radians.
    """
    return (_wrap(yaw, offset) >= offset + math.pi).long()


def face(yaw: Tensor, directions: Tensor, offset: float) -> Tensor:
    """Yaws brought into their directions by half turns, in [-pi, pi): see `direction_of`.

    Args:
        yaw: radians.
        directions: of the same shape, integer, 0 or 1.
        offset: radians.
    """
    half = yaw - math.pi * torch.floor((yaw - offset) / math.pi)
    return _wrap(half + math.pi * directions.to(yaw.dtype), -math.pi)


def _wrap(angle: Tensor, start: float) -> Tensor:
    """Angles brought into [start, start + 2 pi); those inside already are left bit for bit."""
    turn = 2 * math.pi
    wrapped = angle - turn * torch.floor((angle - start) / turn)
    # A tiny negative (angle - start) may round up to the end of the turn itself.
    wrapped = torch.where(wrapped >= start + turn, torch.full_like(wrapped, start), wrapped)
    return torch.where((angle >= start) & (angle < start + turn), angle, wrapped)
