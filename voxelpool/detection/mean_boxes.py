"""One box of several of the same object."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from voxelpool.ops import scatter_sum
from voxelpool.structures.boxes3d import wrap_angle


def mean_boxes(boxes: Tensor, scores: Tensor, object_of: Tensor, leaders: Tensor) -> Tensor:
    """The mean box of each object: middles, sizes and axes, weighted by scores.

    Boxes point where most of the score does. On a tie, as the leader.

    Args:
        boxes: (n, 7), each object's at least one.
        scores: (n,) positive.
        object_of: (n,) int64 the object of each box.
        leaders: (m, 7) the best box of each object; angles are averaged about theirs.

    Returns:
        (m, 7), yaw in [-pi, pi).
    """

    def mean(values: Tensor) -> Tensor:
        return scatter_sum(values * weights[:, None], object_of, dim=0, dim_size=len(leaders))

    totals = scatter_sum(scores, object_of, dim_size=len(leaders))
    weights = scores / totals[object_of]
    off = boxes[:, 6] - leaders[object_of, 6]
    # Axes are angles up to half turns: their doubles are averaged, as vectors.
    cos, sin, agree = mean(torch.stack([(2 * off).cos(), (2 * off).sin(), off.cos().sign()], 1)).T
    turned_round = torch.where(agree < 0, math.pi, 0.0)
    yaws = wrap_angle(leaders[:, 6] + torch.atan2(sin, cos) / 2 + turned_round)
    return torch.cat([mean(boxes[:, :6]), yaws[:, None]], dim=1)
