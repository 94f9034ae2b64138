"""Heads of classifiers against their definitions."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from voxelpool.nn import ClassifierHead

POOLS = ("average", "max", "both", "spp", "flatten")
VECTORS = {
    "average": lambda x: x.flatten(2).mean(2),
    "max": lambda x: x.flatten(2).amax(2),
    "both": lambda x: torch.cat([x.flatten(2).amax(2), x.flatten(2).mean(2)], 1),
    "flatten": lambda x: x.flatten(1),
}


def maps(dim, size=4, batch=3, channels=6):
    torch.manual_seed(size)
    return torch.randn(batch, channels, *[size] * dim)


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("pool", ["average", "max", "both", "flatten"])
def test_pooled_then_layers(pool, dim):
    x = maps(dim)
    head = ClassifierHead(6, 5, pool, dim, map_size=(4,) * dim, hidden=(7,), dropout=0.5).eval()
    weights = [p for p in head.parameters()]
    vector = VECTORS[pool](x)
    expected = F.linear(F.relu(F.linear(vector, *weights[:2])), *weights[2:])
    torch.testing.assert_close(head(x), expected)


@pytest.mark.parametrize("dim", [2, 3])
def test_spp_sees_where_things_are(dim):
    """One bin a cell at the level of the map's size: those weights are a flattening."""
    x = maps(dim, size=2)
    head = ClassifierHead(6, 5, "spp", dim, levels=(2,))
    flat = ClassifierHead(6, 5, "flatten", dim, map_size=(2,) * dim)
    flat.load_state_dict(head.state_dict())
    torch.testing.assert_close(head(x), flat(x))
    assert ClassifierHead(6, 5, "spp", dim).layers[-1].in_features == 6 * sum(
        n**dim for n in (3, 2, 1)
    )


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("pool", ["average", "max", "both", "spp"])
def test_any_size(pool, dim):
    head = ClassifierHead(6, 5, pool, dim)
    for size in (1, 2, 5, 9):
        assert head(maps(dim, size)).shape == (3, 5)
    assert head(torch.randn(2, 6, *range(3, 3 + dim))).shape == (2, 5)


def test_flatten_says_which_size_it_takes():
    head = ClassifierHead(6, 5, "flatten", 2, map_size=(4, 4))
    with pytest.raises(ValueError, match=r"built for maps of \(4, 4\), got \(5, 4\)"):
        head(torch.zeros(1, 6, 5, 4))
    with pytest.raises(ValueError, match="map_size"):
        ClassifierHead(6, 5, "flatten", 2)


@pytest.mark.parametrize("dim", [2, 3])
def test_maps_of_classes(dim):
    """The mean of a linear map is the linear map of the mean; the maximum is not."""
    x = maps(dim)
    head = ClassifierHead(6, 5, "average", dim, class_maps=True).eval()
    weight, bias = head.parameters()
    torch.testing.assert_close(head(x), F.linear(x.flatten(2).mean(2), weight.flatten(1), bias))
    head = ClassifierHead(6, 5, "max", dim, class_maps=True).eval()
    weight, bias = head.parameters()
    scores = torch.einsum("kc,bcn->bkn", weight.flatten(1), x.flatten(2)).amax(2) + bias
    torch.testing.assert_close(head(x), scores)


def test_masked_cells_do_not_count():
    head = ClassifierHead(6, 5, "both", 1)
    x = torch.randn(2, 6, 8)
    mask = torch.arange(8) < torch.tensor([[3], [8]])
    torch.testing.assert_close(head(x, mask)[0], head(x[:1, :, :3])[0])
    torch.testing.assert_close(head(x, mask)[1], head(x)[1])
    with pytest.raises(ValueError, match="mask"):
        ClassifierHead(6, 5, "spp", 2)(maps(2), torch.ones(3, 4, 4, dtype=torch.bool))


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("norm", [False, True])
def test_gradients(pool, norm):
    head = ClassifierHead(6, 5, pool, 3, map_size=(4, 4, 4), hidden=(16, 8), norm=norm)
    x = maps(3, batch=4).requires_grad_()
    head(x).square().sum().backward()
    assert x.grad.abs().sum() > 0
    for name, parameter in head.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((6, 5, "median", 2), "kind"),
        ((6, 5, "max", 4), "dim"),
        ((6, 5, "spp", 1), "set of points"),
        ((6, 0, "max", 2), "at least 1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClassifierHead(*arguments)
    with pytest.raises(ValueError, match="class_maps"):
        ClassifierHead(6, 5, "spp", 2, class_maps=True)
    with pytest.raises(ValueError, match="more dimensions"):
        ClassifierHead(6, 5, "max", 2)(maps(3))
