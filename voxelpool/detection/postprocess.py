"""From scores and residuals to the boxes of a frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from voxelpool.detection.box_coder import decode
from voxelpool.ops import nms_rotated


@dataclass(frozen=True)
class Detections:
    """The boxes found in one frame, by descending score.

    Attributes:
        boxes: (n, 7) x, y, z, length, width, height, yaw in the LiDAR frame.
        scores: (n,) in [0, 1].
        class_ids: (n,) int64.
    """

    boxes: Tensor
    scores: Tensor
    class_ids: Tensor

    def __len__(self) -> int:
        return self.boxes.shape[0]

    def to(self, device: torch.device | str) -> Detections:
        """The same result on another device."""
        return Detections(self.boxes.to(device), self.scores.to(device), self.class_ids.to(device))


class Postprocessor:
    """Score filter, decoding, range filter, rotated NMS for each class.

    Equal scores are ordered by anchor, so that a result depends on nothing but its input. Boxes
    or scores that are not finite are dropped.

    Args:
        score_threshold: anchors with a score (after the sigmoid) below this are dropped.
        nms_iou: of two boxes of a class with a BEV IoU above this, the one with the lower
            score is dropped.
        nms_pre: best anchors of each class that enter the NMS.
        max_detections: best boxes of a frame that are kept.
        center_range: x0, y0, z0, x1, y1, z1 that box centres must lie in, or None.

    Raises:
        ValueError: if a threshold or count is out of its range.
    """

    def __init__(
        self,
        *,
        score_threshold: float = 0.1,
        nms_iou: float = 0.01,
        nms_pre: int = 1000,
        max_detections: int = 100,
        center_range: Sequence[float] | None = None,
    ) -> None:
        for name, value in (("score_threshold", score_threshold), ("nms_iou", nms_iou)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {value}")
        for name, count in (("nms_pre", nms_pre), ("max_detections", max_detections)):
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if center_range is not None and len(center_range) != 6:
            raise ValueError(f"center_range must be x0, y0, z0, x1, y1, z1, got {center_range}")
        self.score_threshold = score_threshold
        self.nms_iou = nms_iou
        self.nms_pre = nms_pre
        self.max_detections = max_detections
        self.center_range = None if center_range is None else tuple(center_range)

    @torch.no_grad()
    def __call__(
        self, scores: Tensor, residuals: Tensor, anchors: Tensor, class_ids: Tensor
    ) -> list[Detections]:
        """Find the boxes of a batch.

        Args:
            scores: (B, N) logits; see `anchors.flatten_maps`.
            residuals: (B, N, 7).
            anchors: (H, W, A, 7) or (N, 7).
            class_ids: (A,) the class of each anchor of a cell, or (N,).

        Returns:
            One result for each frame, in float32.

        Raises:
            ValueError: if the shapes do not fit.
        """
        anchors = anchors.reshape(-1, 7)
        count = anchors.shape[0]
        if scores.ndim != 2 or scores.shape[1] != count or residuals.shape != (*scores.shape, 7):
            raise ValueError(
                f"scores {tuple(scores.shape)} and residuals {tuple(residuals.shape)} do not fit "
                f"{count} anchors"
            )
        if class_ids.shape[0] == 0 or count % class_ids.shape[0]:
            raise ValueError(f"{class_ids.shape[0]} class ids do not fit {count} anchors")
        class_ids = class_ids.repeat(count // class_ids.shape[0])
        return [
            self._frame(frame_scores.float().sigmoid(), frame_residuals, anchors, class_ids)
            for frame_scores, frame_residuals in zip(scores, residuals, strict=True)
        ]

    def _frame(
        self, scores: Tensor, residuals: Tensor, anchors: Tensor, class_ids: Tensor
    ) -> Detections:
        candidates = (scores >= self.score_threshold).nonzero().squeeze(1)
        candidate_classes = class_ids[candidates]
        boxes, kept_scores, kept_classes = [], [], []
        for class_id in torch.unique(candidate_classes).tolist():
            rows = candidates[candidate_classes == class_id]
            order = scores[rows].argsort(descending=True, stable=True)[: self.nms_pre]
            rows = rows[order]
            found = decode(residuals[rows].float(), anchors[rows].float())
            inside = found.isfinite().all(dim=1)
            if self.center_range is not None:
                limits = found.new_tensor(self.center_range)
                inside &= ((found[:, :3] >= limits[:3]) & (found[:, :3] <= limits[3:])).all(dim=1)
            found, found_scores = found[inside], scores[rows][inside]
            keep = nms_rotated(found, found_scores, self.nms_iou)
            boxes.append(found[keep])
            kept_scores.append(found_scores[keep])
            kept_classes.append(torch.full_like(keep, class_id))
        if not boxes:
            return Detections(
                anchors.new_zeros(0, 7, dtype=torch.float32),
                scores.new_zeros(0),
                class_ids.new_zeros(0, dtype=torch.int64),
            )
        all_scores = torch.cat(kept_scores)
        order = all_scores.argsort(descending=True, stable=True)[: self.max_detections]
        return Detections(
            torch.cat(boxes)[order], all_scores[order], torch.cat(kept_classes)[order]
        )
