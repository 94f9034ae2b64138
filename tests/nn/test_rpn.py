from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from voxelpool.nn import RPN, VFE, DenseMiddle

SMALL = {"channels": (4, 6, 8), "upsample_channels": (5, 6, 7), "layers": (1, 2, 0)}


@pytest.mark.parametrize(
    ("strides", "size", "out"),
    [((2, 2, 2), (400, 352), (200, 176)), ((1, 2, 2), (200, 240), (200, 240))],
)
def test_paper_size(strides, size, out):
    with torch.device("meta"):
        rpn = RPN(strides=strides, input_size=size)
        score, residual, _ = rpn(torch.empty(2, 128, *size))
        maps, x = [], torch.empty(1, 128, *size)
        for block, upsample in zip(rpn.blocks, rpn.upsamples, strict=True):
            x = block(x)
            maps.append(upsample(x).shape)
    assert score.shape == (2, 2, *out)
    assert residual.shape == (2, 14, *out)
    assert maps == [(1, 256, *out)] * 3
    assert rpn.output_size(*size) == out
    assert rpn.total_stride == math.prod(strides)


def test_paper_layers():
    """Every convolution of figure 4, with padding 1 in the first transposed one."""
    with torch.device("meta"):
        rpn = RPN()
    convs = [
        [
            (m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0], m.padding[0])
            for m in block
            if isinstance(m, nn.Conv2d)
        ]
        for block in rpn.blocks
    ]
    assert convs == [
        [(128, 128, 3, 2, 1)] + 3 * [(128, 128, 3, 1, 1)],
        [(128, 128, 3, 2, 1)] + 5 * [(128, 128, 3, 1, 1)],
        [(128, 256, 3, 2, 1)] + 5 * [(256, 256, 3, 1, 1)],
    ]
    ups = [(u[0].in_channels, u[0].kernel_size[0], u[0].stride[0], u[0].padding[0])
           for u in rpn.upsamples]  # fmt: skip
    assert ups == [(128, 3, 1, 1), (128, 2, 2, 0), (256, 4, 4, 0)]
    for sequence in [*rpn.blocks, *rpn.upsamples]:
        kinds = [type(m) for m in sequence]
        assert all(k in (nn.Conv2d, nn.ConvTranspose2d) for k in kinds[::3])
        assert set(kinds[1::3]) == {nn.BatchNorm2d} and set(kinds[2::3]) == {nn.ReLU}
        assert len(kinds) % 3 == 0


def test_paper_weight_counts():
    with torch.device("meta"):
        rpn, middle, vfe = RPN(), DenseMiddle(), VFE()

    def weights(module):
        kinds = (nn.Linear, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)
        return sum(m.weight.numel() for m in module.modules() if isinstance(m, kinds))

    convs = 9 * (4 * 128 * 128 + 6 * 128 * 128 + 128 * 256 + 5 * 256 * 256)
    deconvs = 256 * (128 * 9 + 128 * 4 + 256 * 16)
    heads = 768 * (2 + 14)
    assert weights(rpn.blocks) == convs and round(convs, -4) == 4_720_000
    assert weights(rpn.upsamples) == deconvs and round(deconvs, -4) == 1_470_000
    assert weights(rpn) - weights(rpn.blocks) - weights(rpn.upsamples) == heads
    assert round(heads, -3) == 12_000
    total = weights(vfe) + weights(middle) + weights(rpn)
    assert round(total, -4) == 6_670_000


def test_forward_is_the_formula(device):
    """Against functional calls from the same weights, in evaluation."""
    torch.manual_seed(0)
    rpn = RPN(3, anchors_per_location=2, **SMALL).to(device).double().eval()
    x = torch.randn(2, 3, 16, 8, device=device, dtype=torch.float64)

    def run(sequence, x, transposed=False):
        for conv, norm, _ in zip(sequence[::3], sequence[1::3], sequence[2::3], strict=True):
            function = F.conv_transpose2d if transposed else F.conv2d
            x = function(x, conv.weight, None, conv.stride, conv.padding)
            x = torch.relu(x / math.sqrt(1 + norm.eps))  # statistics and weights of a new layer
        return x

    maps, y = [], x
    for block, upsample in zip(rpn.blocks, rpn.upsamples, strict=True):
        y = run(block, y)
        maps.append(run(upsample, y, transposed=True))
    joined = torch.cat(maps, 1)
    score, residual, _ = rpn(x)
    head = rpn.score_head
    torch.testing.assert_close(score, F.conv2d(joined, head.weight, head.bias))
    head = rpn.residual_head
    torch.testing.assert_close(residual, F.conv2d(joined, head.weight, head.bias))


def test_gradients_reach_every_parameter(device):
    torch.manual_seed(0)
    rpn = RPN(3, anchors_per_location=4, **SMALL).to(device)
    score, residual, _ = rpn(torch.randn(2, 3, 16, 16, device=device))
    assert score.shape == (2, 4, 8, 8) and residual.shape == (2, 28, 8, 8)
    (score.square().sum() + residual.square().sum()).backward()
    for name, parameter in rpn.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("prior", [0.01, 0.3])
def test_score_prior(prior):
    rpn = RPN(3, score_prior=prior, **SMALL)
    nn.init.zeros_(rpn.score_head.weight)
    score, _, _ = rpn(torch.randn(2, 3, 8, 8))
    torch.testing.assert_close(score.sigmoid(), torch.full_like(score, prior))


def test_number_of_blocks_is_free():
    rpn = RPN(3, layers=(1,), strides=(1,), channels=(4,), upsample_channels=(5,))
    assert rpn(torch.zeros(2, 3, 5, 7))[0].shape == (2, 2, 5, 7)
    rpn = RPN(3, layers=(0, 0), strides=(4, 3), channels=(4, 4), upsample_channels=(5, 5))
    assert rpn.total_stride == 12
    assert rpn(torch.zeros(2, 3, 12, 24))[0].shape == (2, 2, 3, 6)


def test_size_that_does_not_fit_is_an_error():
    message = "multiples of 8 .* got 20 x 16"
    with pytest.raises(ValueError, match=message):
        RPN(3, input_size=(20, 16), **SMALL)
    rpn = RPN(3, **SMALL)
    with pytest.raises(ValueError, match=message):
        rpn(torch.zeros(1, 3, 20, 16))
    with pytest.raises(ValueError, match=message):
        rpn.output_size(20, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strides": (2, 2)}, "same number of blocks, got \\[3, 2, 3, 3\\]"),
        ({"strides": (2, 0, 2)}, "at least 1"),
        ({"anchors_per_location": 0}, "at least 1"),
        ({"score_prior": 1.0}, "score_prior must be in \\(0, 1\\), got 1.0"),
    ],
)
def test_impossible_arguments_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        RPN(3, **{**SMALL, **arguments})
