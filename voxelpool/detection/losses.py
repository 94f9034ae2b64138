"""The loss of VoxelNet (section 2.2, equation 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from voxelpool.detection.targets import NEGATIVE, POSITIVE, AnchorTargets


class DetectionLoss(nn.Module):
    """``alpha * mean BCE(positive) + beta * mean BCE(negative) + sum SmoothL1(residual) / Npos``.

    Npos and Nneg count the anchors of the whole batch, so that every anchor of a batch weighs the
    same; the paper writes the loss for one sample. Ignored anchors have no part. Without a
    positive, the terms that are divided by Npos are zero.

    Scores are logits; the cross entropies are computed from them directly and in float32, also
    under autocast.

    Args:
        positive_weight: alpha, 1.5 in the paper.
        negative_weight: beta, 1 in the paper.
        residual_weight: weight of the last term, 1 in the paper.
        code_weights: what the differences of x, y, z, length, width, height and yaw are multiplied
            by before SmoothL1; the paper has none.
        smooth_l1_beta: where SmoothL1 turns from quadratic to linear. The paper does not say;
            1/9 (sigma = 3) is what most that follow it use. Must be positive.
        angle: ``difference`` is the paper's, SmoothL1 of the angle's error. ``sine`` is SECOND's,
            SmoothL1 of the sine of the error: easier to learn, as a car seen from the front and
            one seen from behind want the same angle, and blind to half turns for that reason.

    Raises:
        ValueError: if ``smooth_l1_beta`` is not positive or ``angle`` is neither of the two.
    """

    code_weights: Tensor

    def __init__(
        self,
        *,
        positive_weight: float = 1.5,
        negative_weight: float = 1.0,
        residual_weight: float = 1.0,
        code_weights: Sequence[float] = (1.0,) * 7,
        smooth_l1_beta: float = 1 / 9,
        angle: Literal["difference", "sine"] = "difference",
    ) -> None:
        super().__init__()
        if not smooth_l1_beta > 0:
            raise ValueError(f"smooth_l1_beta must be positive, got {smooth_l1_beta}")
        if len(code_weights) != 7:
            raise ValueError(f"code_weights must be 7 numbers, got {len(code_weights)}")
        if angle not in ("difference", "sine"):
            raise ValueError(f"angle must be difference or sine, got {angle!r}")
        self.angle = angle
        self.positive_weight = positive_weight
        self.negative_weight = negative_weight
        self.residual_weight = residual_weight
        self.register_buffer("code_weights", torch.tensor(code_weights), persistent=False)
        self.smooth_l1_beta = smooth_l1_beta

    def forward(
        self, scores: Tensor, residuals: Tensor, targets: AnchorTargets
    ) -> dict[str, Tensor]:
        """Compute the loss of a batch.

        Args:
            scores: (B, N) logits; see `anchors.flatten_maps`.
            residuals: (B, N, 7).
            targets: of the same frames and anchors.

        Returns:
            Scalars: ``loss`` with its graph, and its weighted parts without one, which add up to
            it: ``score_positive``, ``score_negative``, ``residual``; and the count
            ``num_positive``.

        Raises:
            ValueError: if the shapes do not fit the targets.
        """
        if scores.shape != targets.labels.shape or residuals.shape != targets.residuals.shape:
            raise ValueError(
                f"scores {tuple(scores.shape)} and residuals {tuple(residuals.shape)} do not fit "
                f"targets of {tuple(targets.labels.shape)} anchors"
            )
        scores, residuals = scores.float(), residuals.float()
        positive, negative = targets.labels == POSITIVE, targets.labels == NEGATIVE
        num_positive = positive.sum()
        per_positive = num_positive.clamp_min(1)
        per_negative = negative.sum().clamp_min(1)

        score_positive = F.softplus(-scores).masked_fill(~positive, 0).sum() / per_positive
        score_negative = F.softplus(scores).masked_fill(~negative, 0).sum() / per_negative
        # Masked before the loss, so that an overflow at an anchor without a box has no gradient.
        difference = (residuals - targets.residuals.float()).masked_fill(~positive[..., None], 0)
        if self.angle == "sine":
            difference = torch.cat([difference[..., :6], difference[..., 6:].sin()], dim=-1)
        difference = difference * self.code_weights
        residual = (
            F.smooth_l1_loss(
                difference, difference.new_zeros(()).expand_as(difference), reduction="sum",
                beta=self.smooth_l1_beta,
            )
            / per_positive
        )  # fmt: skip

        score_positive = self.positive_weight * score_positive
        score_negative = self.negative_weight * score_negative
        residual = self.residual_weight * residual
        return {
            "loss": score_positive + score_negative + residual,
            "score_positive": score_positive.detach(),
            "score_negative": score_negative.detach(),
            "residual": residual.detach(),
            "num_positive": num_positive,
        }
