"""The losses of VoxelNet (section 2.2, equation 2) and SECOND (section 3.4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from voxelpool.detection.anchors import Predictions
from voxelpool.detection.box_coder import direction_of
from voxelpool.detection.targets import NEGATIVE, POSITIVE, AnchorTargets


def _at_least_one(counts: Tensor) -> Tensor:
    return counts.clamp_min(1)


class DetectionLoss(nn.Module):
    """What is wrong with the scores, residuals and directions of a batch's anchors.

    VoxelNet's, with balanced classification:
    ``alpha * mean BCE(positive) + beta * mean BCE(negative) + sum SmoothL1(residual) / Npos``.

    SECOND's, with focal classification (Lin et al. 2017), where p is the score of the truth:
    ``(sum a_t (1 - p)^gamma BCE + sum SmoothL1(residual) + sum CE(direction)) / Npos``, each sum
    with its weight and a_t alpha for positives and 1 - alpha for negatives.

    Npos and Nneg count the anchors of the whole batch, so that every anchor of a batch weighs the
    same; the papers write the loss for one sample. Ignored anchors have no part. Without a
    positive, Npos counts as 1. Where an anchor scores all classes, its score of the class that it
    stands for is positive if it is, and all its others are negatives.

    Scores are logits; the cross entropies are computed from them directly and in float32, also
    under autocast.

    Args:
        classification: balanced or focal.
        positive_weight: balanced: alpha, 1.5 in the paper.
        negative_weight: balanced: beta, 1 in the paper.
        focal_weight: of the sum.
        focal_alpha: weight of the positives against that of the negatives.
        focal_gamma: power of the score's error.
        residual_weight: of the residuals' term; 1 in VoxelNet, 2 in SECOND.
        code_weights: what the differences of x, y, z, length, width, height and yaw are multiplied
            by before SmoothL1; the papers have none.
        smooth_l1_beta: where SmoothL1 turns from quadratic to linear. VoxelNet does not say;
            1/9 (sigma = 3) is what most that follow it use. Must be positive.
        angle: ``difference`` is VoxelNet's, SmoothL1 of the angle's error. ``sine`` is SECOND's,
            SmoothL1 of the sine of the error: easier to learn, as a car seen from the front and
            one seen from behind want the same angle, and blind to half turns for that reason.
        direction_weight: of the directions' cross entropy, where they are predicted.
        direction_offset: see `box_coder.direction_of`.

    Raises:
        ValueError: if ``smooth_l1_beta`` is not positive, or ``angle`` or ``classification`` is
            unknown.
    """

    code_weights: Tensor

    def __init__(
        self,
        *,
        classification: Literal["balanced", "focal"] = "balanced",
        positive_weight: float = 1.5,
        negative_weight: float = 1.0,
        focal_weight: float = 1.0,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        residual_weight: float = 1.0,
        code_weights: Sequence[float] = (1.0,) * 7,
        smooth_l1_beta: float = 1 / 9,
        angle: Literal["difference", "sine"] = "difference",
        direction_weight: float = 0.2,
        direction_offset: float = math.pi / 4,
    ) -> None:
        super().__init__()
        if not smooth_l1_beta > 0:
            raise ValueError(f"smooth_l1_beta must be positive, got {smooth_l1_beta}")
        if len(code_weights) != 7:
            raise ValueError(f"code_weights must be 7 numbers, got {len(code_weights)}")
        if angle not in ("difference", "sine"):
            raise ValueError(f"angle must be difference or sine, got {angle!r}")
        if classification not in ("balanced", "focal"):
            raise ValueError(f"classification must be balanced or focal, got {classification!r}")
        self.classification = classification
        self.angle = angle
        self.positive_weight = positive_weight
        self.negative_weight = negative_weight
        self.focal_weight = focal_weight
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.residual_weight = residual_weight
        self.register_buffer("code_weights", torch.tensor(code_weights), persistent=False)
        self.smooth_l1_beta = smooth_l1_beta
        self.direction_weight = direction_weight
        self.direction_offset = direction_offset

    def forward(
        self,
        predictions: Predictions,
        targets: AnchorTargets,
        *,
        divisors: Callable[[Tensor], Tensor] = _at_least_one,
    ) -> dict[str, Tensor]:
        """Compute the loss of a batch.

        Args:
            predictions: scores (B, N) or (B, N, K), residuals (B, N, 7), directions.
            targets: of the same frames and anchors.
            divisors: from the counts of positive and of negative anchors, (2,) int64, what the sums
                are divided by, where the batch is part of a larger one, say.

        Returns:
            Scalars: ``loss`` with its graph, and its weighted parts without one, which add up to
            it: ``score_positive``, ``score_negative``, ``residual`` and, if directions are
            predicted, ``direction``; and the count ``num_positive``.

        Raises:
            ValueError: if the shapes do not fit the targets.
        """
        scores, residuals, directions = predictions
        labels = targets.labels
        if scores.shape[:2] != labels.shape or residuals.shape != targets.residuals.shape:
            raise ValueError(
                f"scores {tuple(scores.shape)} and residuals {tuple(residuals.shape)} do not fit "
                f"targets of {tuple(labels.shape)} anchors"
            )
        positive = labels == POSITIVE
        score_masks = self._score_masks(scores, targets)
        counts = torch.stack([positive.sum(), score_masks[1].sum()])
        per_positive, per_negative = divisors(counts)
        score_positive, score_negative = self._scores(
            scores.float(), score_masks, (per_positive, per_negative)
        )
        # Masked before the loss, so that an overflow at an anchor without a box has no gradient.
        difference = residuals.float() - targets.residuals.float()
        difference = difference.masked_fill(~positive[..., None], 0)
        if self.angle == "sine":
            difference = torch.cat([difference[..., :6], difference[..., 6:].sin()], dim=-1)
        difference = difference * self.code_weights
        residual = F.smooth_l1_loss(
            difference,
            difference.new_zeros(()).expand_as(difference),
            reduction="sum",
            beta=self.smooth_l1_beta,
        )
        parts = {
            "score_positive": score_positive,
            "score_negative": score_negative,
            "residual": self.residual_weight * residual / per_positive,
        }
        if directions is not None:
            wanted = direction_of(targets.yaws.float(), self.direction_offset)
            entropy = F.cross_entropy(
                directions.float().flatten(0, 1), wanted.flatten(), reduction="none"
            )
            direction = entropy.masked_fill(~positive.flatten(), 0).sum() / per_positive
            parts["direction"] = self.direction_weight * direction
        return {
            "loss": torch.stack(list(parts.values())).sum(),
            **{name: part.detach() for name, part in parts.items()},
            "num_positive": counts[0],
        }

    @staticmethod
    def _score_masks(scores: Tensor, targets: AnchorTargets) -> tuple[Tensor, Tensor]:
        """Which scores are of positives and which of negatives."""
        positive, negative = targets.labels == POSITIVE, targets.labels == NEGATIVE
        if scores.dim() == 3:
            own = F.one_hot(targets.class_ids, scores.shape[2]).bool()
            negative = negative[..., None] | (positive[..., None] & ~own)
            positive = positive[..., None] & own
        return positive, negative

    def _scores(
        self, scores: Tensor, masks: tuple[Tensor, Tensor], divisors: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The weighted terms of the positives' and of the negatives' scores."""
        positive, negative = masks
        per_positive, per_negative = divisors
        of_positive, of_negative = F.softplus(-scores), F.softplus(scores)
        if self.classification == "balanced":
            weights = self.positive_weight, self.negative_weight
        else:
            per_negative = per_positive
            weights = (
                self.focal_weight * self.focal_alpha,
                self.focal_weight * (1 - self.focal_alpha),
            )
            of_positive = of_positive * torch.sigmoid(-scores) ** self.focal_gamma
            of_negative = of_negative * torch.sigmoid(scores) ** self.focal_gamma
        return (
            weights[0] * of_positive.masked_fill(~positive, 0).sum() / per_positive,
            weights[1] * of_negative.masked_fill(~negative, 0).sum() / per_negative,
        )
