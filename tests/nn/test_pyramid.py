"""Pyramids of pooling against their definitions."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from voxelpool.nn import (
    SPPF,
    ParallelSPP,
    PyramidNeck,
    SpatialPyramidPool,
    WindowPool,
    WindowPyramidPool,
)


def bins(size, level):
    """Slices of each bin along an axis, by the floor and ceil edges."""
    return [
        slice(math.floor(i * size / level), math.ceil((i + 1) * size / level)) for i in range(level)
    ]


def pyramid_oracle(x, levels, kind):
    """(B, C, all bins): the bins of every level in raster order."""
    parts = []
    for level in levels:
        for place in itertools.product(*(bins(n, level) for n in x.shape[2:])):
            cells = x[(slice(None), slice(None), *place)].flatten(2)
            assert cells.shape[2] > 0
            reduce = {"max": torch.amax, "average": torch.mean, "min": torch.amin}[kind]
            parts.append(reduce(cells, 2))
    return torch.stack(parts, 2)


def by_level(vector, channels, levels, dim):
    """The output regrouped as the oracle's: (B, C, all bins)."""
    parts = vector.split([channels * level**dim for level in levels], dim=1)
    return torch.cat([part.unflatten(1, (channels, -1)) for part in parts], dim=2)


@pytest.mark.parametrize("kind", ["max", "average", "min"])
def test_bins_of_every_size(kind):
    """Sizes 1 to 30 for levels 1, 2, 3, 4, 6, where the paper's windows miss bins at 6, 7, 11 …"""
    levels = (6, 4, 3, 2, 1)
    for size in range(1, 31):
        x = torch.randn(1, 2, size, 31 - size, dtype=torch.float64)
        pool = SpatialPyramidPool(levels, kind)
        out = pool(x)
        assert out.shape == (1, 2 * (36 + 16 + 9 + 4 + 1)) == (1, pool.out_channels(2))
        torch.testing.assert_close(by_level(out, 2, levels, 2), pyramid_oracle(x, levels, kind))


def test_the_papers_windows_miss_bins():
    """Why the edges are as they are: window ceil(a / n), stride floor(a / n)."""

    def count(size, level):
        window, stride = -(-size // level), size // level
        return (size - window) // stride + 1

    missed = {n: [a for a in range(n, 18) if count(a, n) != n] for n in (4, 6)}
    assert missed == {4: [6, 7, 11], 6: [8, 9, 10, 11, 15, 16, 17]}


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 7), min_size=3, max_size=3),
    levels=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    kind=st.sampled_from(["max", "average", "min"]),
)
def test_bins_in_three_dimensions(sizes, levels, kind):
    x = torch.randn(2, 3, *sizes, dtype=torch.float64)
    pool = SpatialPyramidPool(levels, kind, 3)
    assert pool.num_bins == sum(level**3 for level in levels)
    expected = pyramid_oracle(x, levels, kind)
    torch.testing.assert_close(by_level(pool(x), 3, levels, 3), expected)
    averaged = SpatialPyramidPool(levels, kind, 3, average_levels=True)
    parts = expected.split([level**3 for level in levels], dim=2)
    torch.testing.assert_close(averaged(x), torch.cat([part.mean(2) for part in parts], 1))


@pytest.mark.parametrize(
    ("levels", "bins", "length"), [((6, 3, 2, 1), 50, 12_800), ((4, 3, 2, 1), 30, 7_680),
                                   ((4, 2, 1), 21, 5_376)]
)  # fmt: skip
def test_published_lengths(levels, bins, length):
    pool = SpatialPyramidPool(levels)
    assert pool.num_bins == bins and pool.out_channels(256) == length
    for size in ((13, 13), (10, 17)):
        assert pool(torch.zeros(1, 256, *size)).shape == (1, length)
    assert not list(pool.parameters())


def test_averaged_average_pyramids_collapse_and_maxima_do_not():
    x = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    mean = x.mean((2, 3))
    levels = (4, 3, 2, 1)
    out = SpatialPyramidPool(levels, "average", average_levels=True)(x)
    torch.testing.assert_close(out, mean.repeat(1, 4))
    largest = SpatialPyramidPool(levels, "max", average_levels=True)(x).view(2, 4, 3)
    assert (largest.diff(dim=1) > 0).all()  # coarser bins, larger maxima
    # Bins that overlap count their common cells twice.
    uneven = SpatialPyramidPool((5,), "average", average_levels=True)(x)
    assert not torch.allclose(uneven, mean)
    rows = torch.eye(5, dtype=torch.float64)[None, :, :, None].expand(1, 5, 5, 5)
    weights = SpatialPyramidPool((2,), "average", average_levels=True)(rows)
    torch.testing.assert_close(weights[0], torch.tensor([1, 1, 2, 1, 1]).double() / 6)
    weights = WindowPyramidPool((2, 3))(rows).view(2, 5)
    expected = torch.tensor(
        [[1 / 8, 1 / 4, 1 / 4, 1 / 4, 1 / 8], [1 / 9, 2 / 9, 3 / 9, 2 / 9, 1 / 9]]
    )
    torch.testing.assert_close(weights, expected.double())


def test_window_pyramid():
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    out = WindowPyramidPool()(x)
    expected = [x.mean((2, 3))]
    for window in (2, 3):
        patches = x.unfold(2, window, 1).unfold(3, window, 1)
        expected.append(patches.mean((2, 3, 4, 5)))
    torch.testing.assert_close(out, torch.cat(expected, 1))
    # Each cell weighs as many windows as see it: cells at the border fewer.
    torch.testing.assert_close(out[:, :3], x.mean((2, 3)))
    assert not torch.allclose(out[:, :3], out[:, 3:6])
    for kind in ("max", "min", "median"):
        small = WindowPyramidPool((1, 2, 3), kind, 3)(torch.ones(1, 2, 1, 2, 4))
        assert torch.equal(small, torch.ones(1, 6))  # windows are cut to the map
    with pytest.raises(ValueError, match="at least one"):
        WindowPyramidPool(())
    with pytest.raises(ValueError, match="kernel"):
        WindowPyramidPool((0,))


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("kind", ["max", "min"])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_chain_equals_windows_side_by_side(kind, dim, data):
    """To the bit; NaN and infinities too."""
    size = data.draw(st.lists(st.integers(1, 16 if dim == 2 else 6), min_size=dim, max_size=dim))
    x = torch.randn(1, 2, *size)
    if data.draw(st.booleans()):
        x[torch.rand(x.shape) < 0.02] = math.nan
        x[torch.rand(x.shape) < 0.05] = -math.inf
    chain, side = SPPF(kind=kind, dim=dim)(x), ParallelSPP(kind=kind, dim=dim)(x)
    assert chain.shape == (1, 8, *size)
    assert torch.equal(chain.nan_to_num(nan=77), side.nan_to_num(nan=77))


def test_chain_of_other_windows_and_kinds():
    x = torch.randn(1, 2, 9, 8)
    for kernel, repeats in ((3, 4), (7, 1), (1, 2)):
        kernels = [1 + (kernel - 1) * i for i in range(1, repeats + 1)]
        assert torch.equal(SPPF(kernel, repeats)(x), ParallelSPP(kernels)(x))
        assert SPPF(kernel, repeats).out_channels(2) == SPPF(kernel, repeats)(x).shape[1]
    average = SPPF(kind="average")(x)
    own = WindowPool(2, "average", 5, 1, 2, count_include_pad=False)
    torch.testing.assert_close(average[:, 4:6], own(own(x)))
    assert not torch.allclose(average[:, 4:6], ParallelSPP(kind="average")(x)[:, 4:6])
    for bad in (lambda: SPPF(4), lambda: ParallelSPP((5, 6))):
        with pytest.raises(ValueError, match="must be odd"):
            bad()
    with pytest.raises(ValueError, match="repeats"):
        SPPF(repeats=0)
    with pytest.raises(ValueError, match="levels"):
        SpatialPyramidPool((2, 0))


@pytest.mark.parametrize(
    "pool",
    [SpatialPyramidPool((3, 2), kind) for kind in ("max", "average", "min")]
    + [SPPF(3, 2), SPPF(3, 2, "average"), ParallelSPP((3, 5), "median"), WindowPyramidPool()],
    ids=str,
)
def test_gradcheck(pool):
    x = (torch.randperm(40).view(1, 2, 5, 4) / 7).double().requires_grad_()
    assert torch.autograd.gradcheck(pool, x)


def test_neck():
    torch.manual_seed(0)
    neck = PyramidNeck(6, "sppf").eval()
    x = torch.randn(2, 6, 8, 7)
    other = PyramidNeck(6, "spp").eval()
    other.load_state_dict(neck.state_dict())
    assert torch.equal(neck(x), other(x)) and neck(x).shape == x.shape
    first, last = neck.reduce[0].weight, neck.join[0].weight
    assert first.shape == (3, 6, 1, 1) and last.shape == (6, 12, 1, 1)
    convs = sum(m.weight.numel() for m in neck.modules() if isinstance(m, nn.Conv2d))
    assert convs == 6 * 3 + 12 * 6  # C * C/2 + 2C * C
    assert sum(p.numel() for p in neck.parameters()) == convs + 2 * 3 + 2 * 6
    inner = torch.relu(torch.einsum("bchw,oc->bohw", x, first[:, :, 0, 0]) / math.sqrt(1 + 1e-5))
    joined = torch.einsum("bchw,oc->bohw", ParallelSPP()(inner), last[:, :, 0, 0])
    torch.testing.assert_close(neck(x), torch.relu(joined / math.sqrt(1 + 1e-5)))
    with pytest.raises(ValueError, match="kind must be spp or sppf, got 'none'"):
        PyramidNeck(6, "none")


@pytest.mark.slow
def test_compiles_in_one_graph(device):
    pools = [SpatialPyramidPool((3, 2)), SpatialPyramidPool((3, 2), "average"), SPPF(),
             WindowPyramidPool(), PyramidNeck(3).to(device).eval()]  # fmt: skip

    def model(x):
        return [pool(x) for pool in pools]

    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((7, 6), (12, 9)):
        x = torch.randn(2, 3, *size, device=device)
        for out, expected in zip(compiled(x), model(x), strict=True):
            torch.testing.assert_close(out, expected)
