"""PointNet++ and its set abstraction."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from voxelpool.models import PointNet2, build_classifier
from voxelpool.nn import SetAbstraction
from voxelpool.ops import farthest_points


def cloud(seed=0, batch=3, rows=96):
    return torch.randn(batch, rows, 3, generator=torch.Generator().manual_seed(seed))


def small(**options):
    torch.manual_seed(0)
    options = {"points": 96, "width": 8, "radii": (0.4, 0.8), "neighbours": (8, 16)} | options
    return build_classifier("pointnet2", 5, **options)


def test_parameters():
    """1.48 M as published: that with the biases before BatchNorm, which have no effect."""
    model = PointNet2(40)
    stages = [(3, 64, 64, 128), (131, 128, 128, 256), (259, 256, 512, 1024), (1024, 512, 256)]
    weights = sum(a * b + 2 * b for s in stages for a, b in itertools.pairwise(s))
    count = sum(p.numel() for p in model.parameters())
    assert count == weights + 256 * 40 + 40
    assert count + sum(sum(s[1:]) for s in stages) == 1_475_688


def test_set_abstraction_against_a_loop():
    torch.manual_seed(0)
    layer = SetAbstraction(4, (6, 5), centres=7, radius=1.0, neighbours=6).eval()
    points, features = cloud(rows=40), torch.randn(3, 40, 4)
    points[1, 5:] = math.nan  # five points: two centres are missing
    centres, out = layer(points, features)
    first, second = (layer.layers[i].weight for i in (0, 3))
    scale = 1 / math.sqrt(1 + 1e-5)  # of a fresh BatchNorm
    chosen = farthest_points(points, 7)
    for b in range(3):
        for m, row in enumerate(chosen[b].tolist()):
            if row < 0:
                assert b == 1 and m >= 5
                assert centres[b, m].isnan().all() and (out[b, m] == 0).all()
                continue
            centre = points[b, row]
            assert torch.equal(centres[b, m], centre)
            away = (points[b] - centre).square().sum(1).nan_to_num(math.inf)
            near = [i for i in away.argsort()[:6].tolist() if away[i] <= 1]
            code = torch.cat([points[b, near] - centre, features[b, near]], 1)
            hidden = (F.linear((F.linear(code, first) * scale).relu(), second) * scale).relu()
            torch.testing.assert_close(out[b, m], hidden.amax(0))


@pytest.mark.parametrize("head", ["max", "average", "both"])
def test_the_order_of_the_points_does_not_matter(head):
    model = small(head=head).eval()
    points = cloud()
    out = model(points)
    assert out.shape == (3, 5)
    for seed in range(3):
        order = torch.randperm(96, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(model(points[:, order]), out)


def test_padding_and_copies_add_nothing():
    model = small().eval()
    points = cloud(rows=30)
    out = model(points)
    padded = torch.cat([points, torch.full((3, 60, 3), math.nan)], 1)
    torch.testing.assert_close(model(padded), out)
    # Balls with room for all copies: neighbours of 30 points, twice.
    roomy = small(neighbours=(96, 96)).eval()
    torch.testing.assert_close(roomy(points.repeat(1, 2, 1)), roomy(points))
    torch.testing.assert_close(out[1], model(points[1:2])[0])


def test_objects_of_hardly_any_points():
    """None, one, and two at one place."""
    model = small().eval()
    points = torch.full((3, 4, 3), math.nan)
    points[1, 2] = torch.tensor([1.0, 2.0, 3.0])
    points[2, :2] = 1.0
    out = model(points)
    assert out.isfinite().all()
    assert model(torch.zeros(2, 0, 3)).isfinite().all()
    torch.testing.assert_close(out[0], model(torch.zeros(1, 0, 3))[0])


def test_place_and_scale_do_not_matter_unless_asked_for():
    points = cloud()
    model = small().eval()
    torch.testing.assert_close(model(3 * points + 7), model(points), rtol=1e-3, atol=1e-4)
    metric = small(normalise=False).eval()
    assert (metric(3 * points) - metric(points)).abs().max() > 1e-3


def test_gradients_and_a_step():
    model = small(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    points, classes = cloud(batch=6), torch.arange(6) % 5
    points[0, 50:] = math.nan
    losses = []
    for _ in range(4):
        loss = F.cross_entropy(model(points), classes)
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_compiles():
    torch._dynamo.reset()
    model = small().eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(cloud()), model(cloud()))
    model.train()
    compiled(cloud(1)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_bad_arguments():
    for options, message in [
        ({"head": "spp"}, "set of points"),
        ({"points": 4}, "at least 8"),
        ({"radii": (0.2,)}, "two"),
        ({"radii": (0.2, 0.0)}, "positive"),
    ]:
        with pytest.raises(ValueError, match=message):
            PointNet2(5, **options)
    with pytest.raises(ValueError, match="no option window_pool"):
        build_classifier("pointnet2", 5, window_pool="max")
    with pytest.raises(ValueError, match=r"\(B, N, 3\)"):
        small()(torch.zeros(2, 10, 4))
