"""From scores and residuals to the boxes of a frame.

Several anchors see the same object. Of their boxes the best is kept or, with ``merge_iou``, the
mean of those that lie closest to it, as by Gidaris and Komodakis (arXiv:1505.01749).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from voxelpool.detection.anchors import Predictions
from voxelpool.detection.box_coder import decode, face
from voxelpool.detection.mean_boxes import mean_boxes
from voxelpool.ops import boxes_iou_bev, nms_rotated


@dataclass(frozen=True)
class Detections:
    """The boxes found in one frame, by descending score.

    Attributes:
        boxes: (n, 7) x, y, z, length, width, height, yaw in the LiDAR frame.
        scores: (n,) in [0, 1].
        class_ids: (n,) int64, rows of ``classes``.
        classes: the names of all classes that there are; empty where nobody said.
    """

    boxes: Tensor
    scores: Tensor
    class_ids: Tensor
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.boxes.shape[0]

    def __getitem__(self, rows: Tensor | slice) -> Detections:
        """Some of them: ``found[found.scores > 0.5]``, ``found[:10]``."""
        return replace(
            self,
            boxes=self.boxes[rows],
            scores=self.scores[rows],
            class_ids=self.class_ids[rows],
        )

    @property
    def names(self) -> list[str]:
        """The class of each box by its name.

        Raises:
            ValueError: the classes have no names.
        """
        if not self.classes:
            raise ValueError("these detections do not know the names of their classes")
        return [self.classes[row] for row in self.class_ids.tolist()]

    def to(self, device: torch.device | str) -> Detections:
        """The same result on another device."""
        return replace(
            self,
            boxes=self.boxes.to(device),
            scores=self.scores.to(device),
            class_ids=self.class_ids.to(device),
        )

    def numpy(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
        """Boxes, scores and class ids as arrays."""
        return self.boxes.cpu().numpy(), self.scores.cpu().numpy(), self.class_ids.cpu().numpy()


class Postprocessor:
    """Score filter, decoding, range filter, rotated NMS, averaging.

    Where an anchor scores all classes, it may become a box of several of them, unless the NMS is
    agnostic: then it is of the class that it scores best, the first of equals.

    Equal scores are ordered by anchor, so that a result depends on nothing but its input. Boxes
    or scores that are not finite are dropped.

    Args:
        score_threshold: anchors with a score (after the sigmoid) below this are dropped.
        nms_iou: of two boxes with a BEV IoU above this, the one with the lower score is dropped.
        merge_iou: a box that is kept becomes the mean of those of its class that overlap it by more
            from above, weighted by scores; it keeps its score. 1 merges nothing.
        nms: ``class``: if they are of one class; ``agnostic``: of any.
        nms_pre: best anchors that enter the NMS.
        nms_pre_of: so many of each ``class``, or of the ``frame``, by an anchor's best score.
        max_detections: best boxes of a frame that are kept.
        direction_offset: see `box_coder.face`.
        center_range: x0, y0, z0, x1, y1, z1 that box centres must lie in, or None.
        classes: their names, for the results.

    Raises:
        ValueError: if a threshold or count is out of its range or a name is unknown.
    """

    def __init__(
        self,
        *,
        score_threshold: float = 0.1,
        nms_iou: float = 0.01,
        merge_iou: float = 1.0,
        nms: Literal["class", "agnostic"] = "class",
        nms_pre: int = 1000,
        nms_pre_of: Literal["class", "frame"] = "class",
        max_detections: int = 100,
        direction_offset: float = math.pi / 4,
        center_range: Sequence[float] | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        for name, value in (
            ("score_threshold", score_threshold),
            ("nms_iou", nms_iou),
            ("merge_iou", merge_iou),
        ):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {value}")
        for name, count in (("nms_pre", nms_pre), ("max_detections", max_detections)):
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if center_range is not None and len(center_range) != 6:
            raise ValueError(f"center_range must be x0, y0, z0, x1, y1, z1, got {center_range}")
        self.score_threshold = score_threshold
        if nms not in ("class", "agnostic") or nms_pre_of not in ("class", "frame"):
            raise ValueError(
                "nms must be class or agnostic and nms_pre_of class or frame, got "
                f"{nms!r} and {nms_pre_of!r}"
            )
        self.nms_iou = nms_iou
        self.merge_iou = merge_iou
        self.nms = nms
        self.nms_pre_of = nms_pre_of
        self.direction_offset = direction_offset
        self.nms_pre = nms_pre
        self.max_detections = max_detections
        self.center_range = None if center_range is None else tuple(center_range)
        self.classes = tuple(classes)

    def changed(self, **settings: Any) -> Postprocessor:
        """The same but for these arguments.

        Raises:
            ValueError: as the class.
        """
        return Postprocessor(**vars(self) | settings)

    @torch.no_grad()
    def __call__(
        self, predictions: Predictions, anchors: Tensor, class_ids: Tensor
    ) -> list[Detections]:
        """Find the boxes of a batch.

        Args:
            predictions: scores (B, N) or (B, N, K), residuals (B, N, 7), directions.
            anchors: (H, W, A, 7) or (N, 7).
            class_ids: (A,) the class of each anchor of a cell, or (N,); says nothing where an
                anchor scores all classes.

        Returns:
            One result for each frame, in float32.

        Raises:
            ValueError: if the shapes do not fit.
        """
        scores, residuals, directions = predictions
        anchors = anchors.reshape(-1, 7)
        count = anchors.shape[0]
        if (
            scores.ndim not in (2, 3)
            or scores.shape[1] != count
            or residuals.shape != (*scores.shape[:2], 7)
        ):
            raise ValueError(
                f"scores {tuple(scores.shape)} and residuals {tuple(residuals.shape)} do not fit "
                f"{count} anchors"
            )
        if class_ids.shape[0] == 0 or count % class_ids.shape[0]:
            raise ValueError(f"{class_ids.shape[0]} class ids do not fit {count} anchors")
        class_ids = class_ids.repeat(count // class_ids.shape[0])
        return [
            self._frame(
                scores[frame].float().sigmoid(),
                residuals[frame],
                None if directions is None else directions[frame],
                anchors,
                class_ids,
            )
            for frame in range(scores.shape[0])
        ]

    def _frame(
        self,
        scores: Tensor,
        residuals: Tensor,
        directions: Tensor | None,
        anchors: Tensor,
        class_ids: Tensor,
    ) -> Detections:
        best = scores if scores.dim() == 1 else scores.amax(dim=1)
        rows = (best >= self.score_threshold).nonzero().squeeze(1)
        if self.nms_pre_of == "frame":
            rows = rows[_best_first(best[rows], self.nms_pre)]
        rows, classes, candidate_scores = self._candidates(scores, rows, class_ids)
        entering = [
            group[_best_first(candidate_scores[group], self.nms_pre)]
            for group in self._groups(classes)
        ]
        if entering:
            chosen = torch.cat(entering)
            rows, classes, candidate_scores = (
                rows[chosen],
                classes[chosen],
                candidate_scores[chosen],
            )
        found = decode(residuals[rows].float(), anchors[rows].float())
        if directions is not None:
            way = directions[rows].float().argmax(dim=1)
            found[:, 6] = face(found[:, 6], way, self.direction_offset)
        inside = found.isfinite().all(dim=1)
        if self.center_range is not None:
            limits = found.new_tensor(self.center_range)
            inside &= ((found[:, :3] >= limits[:3]) & (found[:, :3] <= limits[3:])).all(dim=1)
        return self.suppress(
            Detections(found[inside], candidate_scores[inside], classes[inside], self.classes)
        )

    def suppress(self, found: Detections) -> Detections:
        """Drops boxes with a low score and those that overlap a better one; the best are kept.

        With ``merge_iou`` each of them becomes the mean of the boxes around it.

        Args:
            found: boxes of one frame, in any order.

        Returns:
            By descending score.
        """
        found = found[found.scores >= self.score_threshold]
        kept = [
            group[nms_rotated(found.boxes[group], found.scores[group], self.nms_iou)]
            for group in self._groups(found.class_ids)
        ]
        if not kept:
            return found
        rows = torch.cat(kept)
        rows = rows[_best_first(found.scores[rows], self.max_detections)]
        return found[rows] if self.merge_iou == 1 else self._merged(found, rows)

    def _merged(self, found: Detections, rows: Tensor) -> Detections:
        """The boxes of some rows, each the mean of those that overlap it."""
        best = found[rows]
        same = boxes_iou_bev(best.boxes, found.boxes) > self.merge_iou
        same &= best.class_ids[:, None] == found.class_ids
        same[torch.arange(len(rows), device=rows.device), rows] = True
        objects, members = same.nonzero().unbind(1)
        scores = found.scores[members].double().clamp_min(torch.finfo(torch.float64).tiny)
        means = mean_boxes(found.boxes[members].double(), scores, objects, best.boxes.double())
        return replace(best, boxes=means.to(best.boxes))

    def _groups(self, class_ids: Tensor) -> list[Tensor]:
        """Rows of the boxes that may drop each other, a tensor for each group that there is."""
        if self.nms == "agnostic":
            class_ids = torch.zeros_like(class_ids)
        return [(class_ids == one).nonzero().squeeze(1) for one in torch.unique(class_ids).tolist()]

    def _candidates(
        self, scores: Tensor, rows: Tensor, class_ids: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Row, class and score (C,) of every box that the anchors ``rows`` may become."""
        if scores.dim() == 1:
            return rows, class_ids[rows], scores[rows]
        if self.nms == "agnostic":
            best, classes = scores[rows].max(dim=1)
            return rows, classes, best
        place, classes = (scores[rows] >= self.score_threshold).nonzero().unbind(1)
        return rows[place], classes, scores[rows[place], classes]


def _best_first(scores: Tensor, most: int) -> Tensor:
    """Rows of the best scores, at most so many, equals in their order."""
    return scores.argsort(descending=True, stable=True)[:most]
