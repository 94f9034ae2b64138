"""Several looks at a sweep, and the boxes that they agree on.

A network that was trained on sweeps mirrored, turned and scaled finds the same objects in each of
them, up to errors of its own: where voxels end, how an axis lies to the anchors. Averaged over
several looks those errors shrink. Boxes are averaged as by Solovyev, Wang and Gabruseva, "Weighted
boxes fusion" (arXiv:1910.13302), with yaw and several classes beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from voxelpool.detection.mean_boxes import mean_boxes
from voxelpool.detection.postprocess import Detections
from voxelpool.ops import boxes_iou_bev, scatter_sum
from voxelpool.structures.boxes3d import wrap_angle

LARGEST_ANGLE = 0.4
"""Looks are turned by up to this to either side, radians."""

LARGEST_SCALING = 0.04
"""Looks are larger or smaller by up to this share."""

SAME_IOU = 0.5
"""Boxes of two looks that overlap by more, from above, are of one object."""

# Of the golden ratio and the root of 2: multiples less whole numbers, each beginning spread out.
_STEPS = ((math.sqrt(5) - 1) / 2, math.sqrt(2) - 1)


@dataclass(frozen=True)
class Look:
    """A sweep as it might have been: mirrored, then turned about the sensor, then scaled.

    Attributes:
        mirrored: left and right are swapped.
        angle: radians, counter-clockwise from above.
        scale: a factor of all lengths.
    """

    mirrored: bool = False
    angle: float = 0.0
    scale: float = 1.0

    def points(self, points: Tensor) -> Tensor:
        """How points (N, 3 or more), x, y and z first, stand in this look."""
        return torch.cat(
            [self._there(points[:, :2]), points[:, 2:3] * self.scale, points[:, 3:]], 1
        )

    def boxes_back(self, boxes: Tensor) -> Tensor:
        """Boxes (n, 7) that were found in this look, where they stand in the sweep itself."""
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        x, y = boxes[:, 0] / self.scale, boxes[:, 1] / self.scale
        side = -1.0 if self.mirrored else 1.0
        return torch.stack(
            [
                cos * x + sin * y,
                side * (cos * y - sin * x),
                *(boxes[:, 2:6] / self.scale).unbind(1),
                wrap_angle(side * (boxes[:, 6] - self.angle)),
            ],
            dim=1,
        )

    def sees(self, boxes: Tensor, grid_range: Sequence[float]) -> Tensor:
        """(n,) bool: the boxes whose middle lies in the network's grid in this look, from above."""
        x, y = self._there(boxes[:, :2]).unbind(1)
        x0, y0, _, x1, y1, _ = grid_range
        return (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)

    def _there(self, xy: Tensor) -> Tensor:
        cos, sin = self.scale * math.cos(self.angle), self.scale * math.sin(self.angle)
        x, y = xy.unbind(1)
        if self.mirrored:
            y = -y
        return torch.stack([cos * x - sin * y, sin * x + cos * y], dim=1)


def looks(votes: int) -> tuple[Look, ...]:
    """So many looks: the sweep as it is, then others, every second mirrored, each beginning spread.

    Raises:
        ValueError: ``votes`` is less than 1.
    """
    if votes < 1:
        raise ValueError(f"votes must be at least 1, got {votes}")
    made = []
    for row in range(votes):
        turn, scaling = (2 * ((0.5 + row * step) % 1) - 1 for step in _STEPS)
        made.append(Look(row % 2 == 1, LARGEST_ANGLE * turn, 1 + LARGEST_SCALING * scaling))
    return tuple(made)


def merge(
    found: Sequence[Detections], seen_by: Sequence[Look], grid_range: Sequence[float]
) -> Detections:
    """The objects that looks at one sweep agree on; they may still overlap each other.

    The best box of all begins an object, to which each look adds its best box that is of the same
    class and overlaps the first by more than `SAME_IOU`; then so with the boxes that are left.
    Middles, sizes and axes are averaged, weighted by scores, and boxes point where most of the
    score does. The score is the sum of the looks' scores over the number of looks that have the
    place in their grid: one that found nothing there counts as zero.

    Args:
        found: for each look what was found in it, in the frame of the sweep itself.
        seen_by: the looks.
        grid_range: x0, y0, z0, x1, y1, z1 of the network's grid.

    Returns:
        By descending score.

    Raises:
        ValueError: there are no looks, or not as many as results.
    """
    if not found or len(found) != len(seen_by):
        raise ValueError(f"{len(found)} results do not fit {len(seen_by)} looks")
    first = found[0]
    boxes = torch.cat([one.boxes for one in found]).double().cpu()
    scores = torch.cat([one.scores for one in found]).double().cpu()
    class_ids = torch.cat([one.class_ids for one in found]).cpu()
    look_of = torch.arange(len(found)).repeat_interleave(torch.tensor([len(one) for one in found]))
    order = scores.argsort(descending=True, stable=True)
    boxes, scores, class_ids, look_of = (
        values[order] for values in (boxes, scores, class_ids, look_of)
    )
    object_of, leaders = _objects(boxes, class_ids)
    count = len(leaders)
    _, members = np.unique((object_of * len(found) + look_of).numpy(), return_index=True)
    rows = torch.from_numpy(members)
    means = mean_boxes(boxes[rows], scores[rows], object_of[rows], boxes[leaders])
    seeing = torch.stack([look.sees(means, grid_range) for look in seen_by]).sum(0)
    seeing = seeing.maximum(object_of[rows].bincount(minlength=count))
    shares = scatter_sum(scores[rows], object_of[rows], dim_size=count) / seeing
    order = shares.argsort(descending=True, stable=True)
    return Detections(
        means[order].to(first.boxes),
        shares[order].to(first.scores),
        class_ids[leaders][order].to(first.class_ids),
        first.classes,
    )


def _objects(boxes: Tensor, class_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Of boxes by descending score: which object each is of, and the best box of each object."""
    same = (boxes_iou_bev(boxes, boxes) > SAME_IOU) & (class_ids[:, None] == class_ids)
    object_of = torch.full((len(boxes),), -1)
    leaders: list[int] = []
    for row in range(len(boxes)):
        if object_of[row] < 0:
            same[row, row] = True
            object_of[same[row] & (object_of < 0)] = len(leaders)
            leaders.append(row)
    return object_of, torch.tensor(leaders, dtype=torch.int64)
