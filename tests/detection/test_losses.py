from __future__ import annotations

import math

import pytest
import torch

from voxelpool.detection import AnchorTargets, DetectionLoss, Predictions


def make_targets(labels, residuals=None, device="cpu"):
    labels = torch.tensor(labels, device=device)
    if residuals is None:
        residuals = torch.zeros(*labels.shape, 7, device=device)
    return AnchorTargets(
        labels,
        residuals,
        torch.zeros(labels.shape, device=device),
        torch.full_like(labels, -1),
        torch.zeros(labels.shape[1]).long(),
    )


def test_hand_computed(device):
    """Two frames; scores are logits of 0.8, 0.5 (positive), 0.25, 0.1, 0.5 (negative)."""
    logit = [math.log(p / (1 - p)) for p in (0.8, 0.5, 0.25, 0.1, 0.5, 0.9)]
    scores = torch.tensor([logit[:3], [logit[5], logit[3], logit[4]]], device=device)
    labels = [[1, 1, 0], [-1, 0, 0]]
    targets = make_targets(labels, device=device)
    residuals = torch.zeros(2, 3, 7, device=device)
    residuals[0, 0, 0] = 0.1  # below beta: 0.5 * 0.1^2 / 0.2 = 0.025
    residuals[0, 0, 6] = -2.0  # above: 2 - 0.1 = 1.9
    targets.residuals[0, 1, 3] = 1.0  # 1 - 0.1 = 0.9
    residuals[0, 2] = residuals[1] = 7.0  # not positive: no part
    parts = DetectionLoss(smooth_l1_beta=0.2)(Predictions(scores, residuals), targets)
    positive = 1.5 * -(math.log(0.8) + math.log(0.5)) / 2
    negative = -(math.log(0.75) + math.log(0.9) + math.log(0.5)) / 3
    residual = (0.025 + 1.9 + 0.9) / 2
    assert parts["score_positive"].item() == pytest.approx(positive, rel=1e-6)
    assert parts["score_negative"].item() == pytest.approx(negative, rel=1e-6)
    assert parts["residual"].item() == pytest.approx(residual, rel=1e-6)
    assert parts["loss"].item() == pytest.approx(positive + negative + residual, rel=1e-6)
    assert parts["num_positive"].item() == 2
    assert not parts["residual"].requires_grad


def test_weights():
    scores, residuals = torch.zeros(1, 2), torch.ones(1, 2, 7)
    targets = make_targets([[1, 0]])
    parts = DetectionLoss(
        positive_weight=2, negative_weight=3, residual_weight=4, smooth_l1_beta=1
    )(Predictions(scores, residuals), targets)
    assert parts["score_positive"].item() == pytest.approx(2 * math.log(2))
    assert parts["score_negative"].item() == pytest.approx(3 * math.log(2))
    assert parts["residual"].item() == pytest.approx(4 * 7 * 0.5)


def test_code_weights_multiply_differences():
    residuals = torch.tensor([[[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]]])
    weights = (1.0, 0.0, 4.0, 1.0, 2.0, 0.5, 1.0)
    loss = DetectionLoss(smooth_l1_beta=1.0, code_weights=weights)
    part = loss(Predictions(torch.zeros(1, 1), residuals), make_targets([[1]]))["residual"]
    # 0.5 d^2 below 1, d - 0.5 above: 0.1, 0, 1.2, 0.4, 1.0, 0.3, 0.7.
    expected = 0.5 * (0.01 + 0.16 + 0.09 + 0.49) + 0.7 + 0.5
    assert part.item() == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="7 numbers, got 3"):
        DetectionLoss(code_weights=(1, 1, 1))


def test_sine_is_blind_to_half_turns_alone():
    residuals = torch.zeros(1, 1, 7)
    targets = make_targets([[1]])
    loss = DetectionLoss(smooth_l1_beta=0.1, angle="sine")
    for error in (0.0, 0.05, 0.7, -2.0, math.pi, math.pi + 0.3, -math.pi):
        residuals[0, 0, 6] = error
        sine = abs(math.sin(error))
        expected = 5 * sine**2 if sine < 0.1 else sine - 0.05
        part = loss(Predictions(torch.zeros(1, 1), residuals), targets)["residual"]
        assert part.item() == pytest.approx(expected, abs=1e-6)
    residuals[0, 0] = 2.0
    part = loss(Predictions(torch.zeros(1, 1), residuals), targets)["residual"]
    assert part.item() == pytest.approx(6 * 1.95 + math.sin(2) - 0.05, rel=1e-6)


def test_gradients():
    """Of the cross entropies p - 1 and p over their counts; none for an ignored anchor."""
    scores = torch.tensor([[0.3, -0.2, 1.0, 2.0]], requires_grad=True)
    residuals = torch.full((1, 4, 7), 5.0, requires_grad=True)
    DetectionLoss()(Predictions(scores, residuals), make_targets([[1, 0, 0, -1]]))[
        "loss"
    ].backward()
    p = scores.detach().sigmoid()[0]
    expected = torch.stack([1.5 * (p[0] - 1), p[1] / 2, p[2] / 2, torch.tensor(0.0)])
    torch.testing.assert_close(scores.grad[0], expected)
    torch.testing.assert_close(residuals.grad[0, 0], torch.ones(7))
    assert (residuals.grad[0, 1:] == 0).all()


def test_without_positives(device):
    scores = torch.zeros(2, 3, device=device, requires_grad=True)
    residuals = torch.ones(2, 3, 7, device=device, requires_grad=True)
    parts = DetectionLoss()(
        Predictions(scores, residuals), make_targets([[0, 0, -1], [0, 0, 0]], device=device)
    )
    assert parts["score_positive"] == 0 and parts["residual"] == 0
    assert parts["loss"].item() == pytest.approx(math.log(2))
    parts["loss"].backward()
    assert (scores.grad != 0).sum() == 5
    assert (residuals.grad == 0).all()


@pytest.mark.parametrize("label", [-1, 1])
def test_without_negatives(label):
    scores = torch.zeros(1, 3, requires_grad=True)
    targets = make_targets([[label] * 3])
    parts = DetectionLoss()(Predictions(scores, torch.zeros(1, 3, 7)), targets)
    assert parts["score_negative"] == 0
    parts["loss"].backward()
    assert scores.grad.isfinite().all()


def test_stable_for_large_logits():
    scores = torch.tensor([[-1e4, 1e4, 1e4, -1e4]], requires_grad=True)
    parts = DetectionLoss()(Predictions(scores, torch.zeros(1, 4, 7)), make_targets([[1, 1, 0, 0]]))
    assert parts["loss"].item() == pytest.approx(1.5 * 5e3 + 5e3)
    parts["loss"].backward()
    assert scores.grad.isfinite().all()


def test_overflow_at_an_anchor_without_box_has_no_part():
    residuals = torch.zeros(1, 2, 7)
    residuals[0, 1] = torch.tensor([torch.inf, -torch.inf, torch.nan, 0, 0, 0, 0])
    residuals.requires_grad_()
    parts = DetectionLoss()(Predictions(torch.zeros(1, 2), residuals), make_targets([[1, 0]]))
    parts["loss"].backward()
    assert parts["loss"].isfinite() and residuals.grad.isfinite().all()


def test_half_precision_is_computed_in_float32(device):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(1, 70_400, generator=generator).bfloat16().to(device)
    residuals = torch.randn(1, 70_400, 7, generator=generator).bfloat16().to(device)
    labels = torch.randint(-1, 2, (1, 70_400), generator=generator).tolist()
    targets = make_targets(labels, device=device)
    half = DetectionLoss()(Predictions(scores, residuals), targets)
    full = DetectionLoss()(Predictions(scores.float(), residuals.float()), targets)
    assert half["loss"].dtype == torch.float32
    for key in half:
        assert torch.equal(half[key], full[key])


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"scores \(1, 3\) .* do not fit"):
        DetectionLoss()(
            Predictions(torch.zeros(1, 3), torch.zeros(1, 3, 7)), make_targets([[1, 0]])
        )
    with pytest.raises(ValueError, match="smooth_l1_beta must be positive, got 0"):
        DetectionLoss(smooth_l1_beta=0)
    with pytest.raises(ValueError, match="angle must be difference or sine, got 'cosine'"):
        DetectionLoss(angle="cosine")


def focal(p, truth, alpha=0.25, gamma=2.0):
    """Lin et al. 2017, equation 5, of one probability."""
    right = p if truth else 1 - p
    return -(alpha if truth else 1 - alpha) * (1 - right) ** gamma * math.log(right)


def test_focal_loss_of_several_classes_by_hand():
    """Two anchors of classes 1 and 0: positive and negative; a third is ignored."""
    chances = torch.tensor([[[0.3, 0.6], [0.2, 0.1], [0.9, 0.9]]], dtype=torch.float64)
    targets = make_targets([[1, 0, -1]])
    targets.class_ids[:] = torch.tensor([1, 0, 0])
    parts = DetectionLoss(classification="focal", focal_weight=3.0)(
        Predictions(chances.logit(), torch.zeros(1, 3, 7)), targets
    )
    assert parts["score_positive"] == pytest.approx(3 * focal(0.6, True), rel=1e-5)
    negatives = focal(0.3, False) + focal(0.2, False) + focal(0.1, False)
    assert parts["score_negative"] == pytest.approx(3 * negatives, rel=1e-5)


def test_focal_loss_is_divided_by_the_positives():
    scores = torch.zeros(1, 5)
    parts = DetectionLoss(classification="focal")(
        Predictions(scores, torch.zeros(1, 5, 7)), make_targets([[1, 1, 0, 0, 0]])
    )
    assert parts["score_positive"] == pytest.approx(focal(0.5, True), rel=1e-5)
    assert parts["score_negative"] == pytest.approx(3 / 2 * focal(0.5, False), rel=1e-5)


def test_focal_loss_without_gamma_is_weighted_cross_entropy():
    torch.manual_seed(0)
    scores, labels = torch.randn(2, 40, dtype=torch.float64), torch.randint(0, 2, (2, 40))
    labels[0, 0] = 1
    parts = DetectionLoss(classification="focal", focal_gamma=0.0, focal_alpha=0.4)(
        Predictions(scores, torch.zeros(2, 40, 7)), make_targets(labels.tolist())
    )
    weights = torch.where(labels == 1, 0.4, 0.6)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        scores, labels.double(), weights, reduction="sum"
    )
    assert parts["loss"] == pytest.approx(float(expected / labels.sum()), rel=1e-5)


def test_directions_learn_from_positives_alone():
    torch.manual_seed(0)
    logits = torch.randn(1, 4, 2, requires_grad=True)
    targets = make_targets([[1, 0, 1, -1]])
    targets.yaws[:] = torch.tensor([[0.9, 0.0, 0.5, 0.0]])  # pi/4 lies between
    predictions = Predictions(torch.zeros(1, 4), torch.zeros(1, 4, 7), logits)
    parts = DetectionLoss(angle="sine", direction_weight=0.2)(predictions, targets)
    chances = logits[0].detach().log_softmax(1)
    assert parts["direction"] == pytest.approx(
        float(-0.2 * (chances[0, 0] + chances[2, 1]) / 2), rel=1e-5
    )
    parts["loss"].backward()
    assert (logits.grad[0].abs().sum(1) > 0).tolist() == [True, False, True, False]
    total = sum(parts[name] for name in ("score_positive", "score_negative", "residual"))
    assert parts["loss"].item() == pytest.approx(float(total + parts["direction"]), rel=1e-6)


def test_an_unknown_classification_is_refused():
    with pytest.raises(ValueError, match="balanced or focal, got 'hinge'"):
        DetectionLoss(classification="hinge")
