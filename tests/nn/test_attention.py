"""Attention against its formulas and published parameter counts."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from voxelpool.nn import CBAM, SqueezeExcite


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def mlp(module, s):
    first, last = module.excite[0], module.excite[2]
    return torch.relu(s @ first.weight.T + first.bias) @ last.weight.T + last.bias


@pytest.mark.parametrize("size", [(5, 4), (2, 3, 4)])
@pytest.mark.parametrize("squeeze", ["average", "max", "masked"])
def test_squeeze_excite_is_the_formula(device, squeeze, size):
    torch.manual_seed(0)
    module = SqueezeExcite(8, 4, squeeze).double().to(device)
    x = torch.randn(3, 8, *size, dtype=torch.float64, device=device)
    mask = torch.rand(3, *size, device=device) < 0.4
    mask[1] = False
    cells = x.flatten(2)
    if squeeze == "masked":
        m = mask.flatten(1)[:, None].double()
        s = (cells * m).sum(2) / m.sum(2).clamp(min=1)
    else:
        s = cells.amax(2) if squeeze == "max" else cells.mean(2)
    gate = torch.sigmoid(mlp(module, s))
    expected = (cells * gate[:, :, None]).view_as(x)
    torch.testing.assert_close(module(x, mask), expected)
    if squeeze == "masked":
        with pytest.raises(ValueError, match="needs a mask"):
            module(x)
    else:
        torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize("dim", [2, 3])
def test_cbam_is_the_formula(device, dim):
    torch.manual_seed(0)
    module = CBAM(8, 4, 3, dim=dim).double().to(device)
    x = torch.randn(2, 8, *(5, 4, 3)[:dim], dtype=torch.float64, device=device)
    cells = x.flatten(2)
    gate = torch.sigmoid(mlp(module, cells.mean(2)) + mlp(module, cells.amax(2)))
    weighed = (cells * gate[:, :, None]).view_as(x)
    seen = torch.stack([weighed.mean(1), weighed.amax(1)], 1)
    convolve = F.conv2d if dim == 2 else F.conv3d
    places = convolve(seen, module.places.weight, module.places.bias, padding=1)
    torch.testing.assert_close(module(x), weighed * torch.sigmoid(places))


@pytest.mark.parametrize(("reduction", "millions"), [(4, 35.7), (8, 30.7), (16, 28.1), (32, 26.9)])
def test_se_resnet_50_has_the_published_size(reduction, millions):
    """ResNet-50 holds 25,557,032 parameters and 53,120 running statistics: 25.6 M published."""
    with torch.device("meta"):
        added = sum(
            blocks * count(SqueezeExcite(channels, reduction))
            for blocks, channels in ((3, 256), (4, 512), (6, 1024), (3, 2048))
        )
    assert round((25_557_032 + 53_120 + added) / 1e6, 1) == millions


def test_parameter_counts():
    assert count(SqueezeExcite(256)) == 2 * 256 * 16 + 16 + 256
    assert count(SqueezeExcite(4, 16)) == 2 * 4 * 1 + 1 + 4
    assert count(CBAM(256)) == 2 * 256 * 16 + 16 + 256 + 2 * 7 * 7 + 1
    assert count(CBAM(256, dim=3)) == 2 * 256 * 16 + 16 + 256 + 2 * 7**3 + 1


@pytest.mark.parametrize(
    "module",
    [SqueezeExcite(4, 2), SqueezeExcite(4, 2, "max"), CBAM(4, 2, 3)],
    ids=["average", "max", "cbam"],
)
def test_gradcheck(module):
    x = (torch.randperm(48).view(1, 4, 4, 3) / 9).double().requires_grad_()
    assert torch.autograd.gradcheck(module.double(), x)
    masked = SqueezeExcite(4, 2, "masked").double()
    mask = torch.rand(1, 4, 3) < 0.5
    assert torch.autograd.gradcheck(lambda x: masked(x, mask), x)


def test_impossible_arguments_are_errors():
    with pytest.raises(ValueError, match="squeeze must be average, max or masked"):
        SqueezeExcite(4, 2, "min")
    with pytest.raises(ValueError, match="at least 1, got 0 and 16"):
        SqueezeExcite(0)
    with pytest.raises(ValueError, match="kernel must be odd, got 4"):
        CBAM(4, 2, 4)
    with pytest.raises(ValueError, match="dim must be 2 or 3"):
        CBAM(4, dim=1)
