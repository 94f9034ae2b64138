"""Which anchors learn which boxes (VoxelNet, section 3.1; facts on the IoU below)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from voxelpool.detection.anchors import AnchorGenerator
from voxelpool.detection.box_coder import encode
from voxelpool.ops import boxes_iou_bev

IouKind = Literal["nearest", "rotated", "standup"]

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1

TIE = 1e-4
"""IoUs that differ by this share of the best are equal.

Anchors wholly inside a box, or around it, all have the same IoU with it; rounding (in float32
some 1e-5 at 70 m) must not choose among them.
"""


@dataclass(frozen=True)
class AnchorTargets:
    """What each of the N anchors of B frames should say.

    Attributes:
        labels: (B, N) int64, 1 positive, 0 negative, -1 ignored.
        residuals: (B, N, 7), the residual of the matched box; 0 where not positive.
        yaws: (B, N), of the matched box, radians; 0 where not positive.
        matched: (B, N) int64, row of the matched box in its frame's boxes; -1 where not positive.
        class_ids: (N,) int64, the class that each anchor stands for.
    """

    labels: Tensor
    residuals: Tensor
    yaws: Tensor
    matched: Tensor
    class_ids: Tensor

    @property
    def num_positive(self) -> Tensor:
        """Positive anchors in all frames, a scalar int64 tensor."""
        return (self.labels == POSITIVE).sum()


def iou_nearest(a: Tensor, b: Tensor) -> Tensor:
    """BEV IoU after turning each box to its nearest axis.

    Args:
        a: (N, 7) boxes.
        b: (M, 7) boxes.

    Returns:
        (N, M). A box turned by exactly 45 degrees keeps its length along x.
    """
    return _iou_aligned(_nearest(a), _nearest(b))


def iou_standup(a: Tensor, b: Tensor) -> Tensor:
    """BEV IoU of the axis-aligned rectangles around the rotated boxes; (N, 7), (M, 7) -> (N, M)."""
    return _iou_aligned(_standup(a), _standup(b))


class TargetAssigner:
    """Matches anchors with the boxes of their own class by BEV IoU.

    An anchor is positive when its IoU with a box is above the matched threshold of its class, or
    is the best that any anchor of the class has with that box, ties included (see `TIE`). A box
    that no anchor overlaps has no best. An anchor is negative when its IoU with every box of its
    class is below the unmatched threshold, and ignored in between.

    A positive anchor learns the box it overlaps most; an anchor that is the best for a box learns
    that box even if it overlaps another more, so that no box is left without its best anchor.
    Where an anchor is the best for two boxes, it learns the one with the higher IoU; between
    equals, the first box.

    The paper speaks of IoU in bird's-eye view only. ``nearest`` (SECOND and its successors)
    turns both boxes to the nearest axis; ``rotated`` is exact, and leaves few positives for boxes
    at an angle to the anchors; ``standup`` takes the rectangle around the rotated box.

    Args:
        generator: the anchors.
        iou: nearest, rotated or standup.
        angle_start: see `box_coder.encode`.

    Raises:
        ValueError: if ``iou`` is none of the three.
    """

    def __init__(
        self,
        generator: AnchorGenerator,
        *,
        iou: IouKind = "nearest",
        angle_start: float | None = -math.pi / 2,
    ) -> None:
        if iou not in ("nearest", "rotated", "standup"):
            raise ValueError(f"iou must be nearest, rotated or standup, got {iou!r}")
        self.specs = generator.specs
        self.location_class_ids = generator.class_ids()
        self.iou: IouKind = iou
        self.angle_start = angle_start

    @torch.no_grad()
    def __call__(
        self, anchors: Tensor, boxes: Sequence[Tensor], class_ids: Sequence[Tensor]
    ) -> AnchorTargets:
        """Assign the boxes of a batch.

        Args:
            anchors: (H, W, A, 7) or (N, 7), as the generator makes them.
            boxes: for each frame (n, 7), on the anchors' device; n = 0 is ordinary.
            class_ids: for each frame (n,) integer, the spec that each box belongs to; boxes with
                an id that no spec has (-1, say) are left out.

        Returns:
            The targets of all frames.

        Raises:
            ValueError: if shapes do not fit, naming the frame.
        """
        per_location = self.location_class_ids.shape[0]
        anchors = anchors.reshape(-1, 7)
        if anchors.shape[0] % per_location:
            raise ValueError(
                f"{anchors.shape[0]} anchors given, no multiple of the {per_location} at a cell"
            )
        if len(boxes) != len(class_ids):
            raise ValueError(
                f"boxes of {len(boxes)} frames but class ids of {len(class_ids)} frames given"
            )
        count, frames = anchors.shape[0], len(boxes)
        labels = torch.zeros(frames, count, dtype=torch.int64, device=anchors.device)
        matched = torch.full_like(labels, -1)
        residuals = anchors.new_zeros(frames, count, 7)
        yaws = anchors.new_zeros(frames, count)
        by_class = anchors.view(-1, per_location, 7)
        for class_id, spec in enumerate(self.specs):
            columns = (self.location_class_ids == class_id).nonzero().squeeze(1)
            first, last = int(columns[0]), int(columns[-1]) + 1
            own = by_class[:, first:last].reshape(-1, 7)
            for frame, (frame_boxes, frame_ids) in enumerate(zip(boxes, class_ids, strict=True)):
                if frame_boxes.shape != (frame_ids.shape[0], 7):
                    raise ValueError(
                        f"frame {frame}: boxes must be (n, 7) and class ids (n,), got "
                        f"{tuple(frame_boxes.shape)} and {tuple(frame_ids.shape)}"
                    )
                rows = (frame_ids == class_id).nonzero().squeeze(1).to(anchors.device)
                if rows.numel() == 0 or own.shape[0] == 0:
                    continue
                iou = self._iou(own, frame_boxes.index_select(0, rows).to(anchors))
                own_labels, own_match = _match(
                    iou, spec.matched_threshold, spec.unmatched_threshold
                )
                own_match = torch.where(own_match >= 0, rows[own_match.clamp_min(0)], -1)
                labels[frame].view(-1, per_location)[:, first:last] = own_labels.view(
                    -1, last - first
                )
                matched[frame].view(-1, per_location)[:, first:last] = own_match.view(
                    -1, last - first
                )
        for frame, frame_boxes in enumerate(boxes):
            positive = (labels[frame] == POSITIVE).nonzero().squeeze(1)
            target = frame_boxes.to(anchors).index_select(0, matched[frame, positive])
            residuals[frame, positive] = encode(
                target, anchors[positive], angle_start=self.angle_start
            )
            yaws[frame, positive] = target[:, 6]
        return AnchorTargets(
            labels,
            residuals,
            yaws,
            matched,
            self.location_class_ids.to(anchors.device).repeat(count // per_location),
        )

    def _iou(self, anchors: Tensor, boxes: Tensor) -> Tensor:
        if self.iou == "nearest":
            return iou_nearest(anchors, boxes)
        if self.iou == "standup":
            return iou_standup(anchors, boxes)
        # Clipping polygons is dear: only pairs whose outer circles meet can overlap.
        iou = anchors.new_zeros(anchors.shape[0], boxes.shape[0])
        radius = torch.linalg.vector_norm(anchors[:, 3:5], dim=1) / 2
        for column in range(boxes.shape[0]):
            box = boxes[column : column + 1]
            reach = radius + torch.linalg.vector_norm(box[0, 3:5]) / 2
            distance = torch.linalg.vector_norm(anchors[:, :2] - box[:, :2], dim=1)
            near = (distance <= reach).nonzero().squeeze(1)
            iou[near, column] = boxes_iou_bev(anchors[near], box)[:, 0]
        return iou


def _match(iou: Tensor, matched: float, unmatched: float) -> tuple[Tensor, Tensor]:
    """Labels and matched columns of an (N, n) IoU table, n >= 1; see `TargetAssigner`."""
    best_iou, best_box = iou.max(dim=1)
    labels = torch.full_like(best_box, IGNORED)
    labels[best_iou < unmatched] = NEGATIVE
    labels[best_iou > matched] = POSITIVE
    match = torch.where(labels == POSITIVE, best_box, -1)

    best_of_box = iou.max(dim=0).values
    is_best = (iou >= best_of_box * (1 - TIE)) & (best_of_box > 0)
    rows = is_best.any(dim=1).nonzero().squeeze(1)
    forced = torch.where(is_best[rows], iou[rows], -1.0)
    labels[rows] = POSITIVE
    match[rows] = forced.argmax(dim=1)
    return labels, match


def _nearest(boxes: Tensor) -> Tensor:
    """(N, 4): centre and extents along x and y of the boxes turned to their nearest axis."""
    yaw = boxes[:, 6]
    folded = yaw - torch.round(yaw / math.pi) * math.pi
    across = (folded.abs() > math.pi / 4)[:, None]
    extent = torch.where(across, boxes[:, [4, 3]], boxes[:, [3, 4]])
    return torch.cat([boxes[:, :2], extent], dim=1)


def _standup(boxes: Tensor) -> Tensor:
    """(N, 4): centre and extents along x and y of the rectangles around the boxes."""
    cos, sin = boxes[:, 6].cos().abs(), boxes[:, 6].sin().abs()
    along, across = boxes[:, 3], boxes[:, 4]
    extent = torch.stack([along * cos + across * sin, along * sin + across * cos], dim=1)
    return torch.cat([boxes[:, :2], extent], dim=1)


def _iou_aligned(a: Tensor, b: Tensor) -> Tensor:
    """IoU of axis-aligned rectangles (N, 4), (M, 4) as x, y, extent x, extent y -> (N, M)."""
    sides = []
    for axis in range(2):
        low_a, low_b = a[:, axis] - a[:, axis + 2] / 2, b[:, axis] - b[:, axis + 2] / 2
        high_a, high_b = a[:, axis] + a[:, axis + 2] / 2, b[:, axis] + b[:, axis + 2] / 2
        sides.append(
            (
                torch.minimum(high_a[:, None], high_b) - torch.maximum(low_a[:, None], low_b)
            ).clamp_min(0)
        )
    intersection = sides[0] * sides[1]
    union = (a[:, 2] * a[:, 3])[:, None] + b[:, 2] * b[:, 3] - intersection
    return intersection / union.clamp_min(torch.finfo(union.dtype).tiny)
