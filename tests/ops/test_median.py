"""The median of groups against sorting in a loop."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelpool.ops import segment_median

NAN = math.nan


def loop(src, offsets):
    """Value and row of each group and channel."""
    rows, channels = src.shape
    out, arg = [], []
    for begin, end in itertools.pairwise(offsets):
        for c in range(channels):
            values = src[begin:end, c].tolist()
            if not values:
                out.append(0.0), arg.append(rows)
                continue
            holes = [i for i, value in enumerate(values) if value != value]
            middle = sorted(values)[(len(values) - 1) // 2] if not holes else NAN
            out.append(middle)
            arg.append(begin + (holes[0] if holes else values.index(middle)))
    shape = (len(offsets) - 1, channels)
    return torch.tensor(out, dtype=src.dtype).view(shape), torch.tensor(arg).view(shape)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 6), max_size=6),
    channels=st.integers(1, 3),
    seed=st.integers(0, 1000),
    holes=st.booleans(),
)
def test_against_a_loop(counts, channels, seed, holes):
    """Few distinct values, so that ties abound."""
    generator = torch.Generator().manual_seed(seed)
    src = torch.randint(-3, 4, (sum(counts), channels), generator=generator).double()
    if holes:
        src[torch.rand(src.shape, generator=generator) < 0.1] = NAN
        src[torch.rand(src.shape, generator=generator) < 0.1] = math.inf
    offsets = [0, *itertools.accumulate(counts)]
    out, arg = segment_median(src, torch.tensor(offsets))
    expected, rows = loop(src, offsets)
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(arg, rows)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int32, torch.uint8]
)
def test_dtypes_and_the_lower_middle(device, dtype):
    src = torch.tensor([[4], [1], [3], [2], [9]], device=device).to(dtype)
    out, arg = segment_median(src, torch.tensor([0, 4, 4, 5], device=device))
    assert out.dtype == dtype
    assert out.flatten().tolist() == [2, 0, 9] and arg.flatten().tolist() == [3, 5, 4]


def test_gradient(device):
    src = torch.randn(9, 2, dtype=torch.float64, device=device, requires_grad=True)
    offsets = torch.tensor([0, 4, 4, 5, 9], device=device)
    assert torch.autograd.gradcheck(lambda x: segment_median(x, offsets)[0], src)
    tied = torch.ones(4, 1, device=device, requires_grad=True)
    segment_median(tied, torch.tensor([0, 4], device=device))[0].sum().backward()
    assert tied.grad.flatten().tolist() == [1, 0, 0, 0]


def test_bad_offsets_are_errors():
    for offsets in ([0, 5], [0, 3, 2, 3], [1, 3], [-1, 3]):
        with pytest.raises(ValueError, match="offsets"):
            segment_median(torch.zeros(3, 1), torch.tensor(offsets))
    assert segment_median(torch.zeros(0, 2), torch.tensor([0]))[0].shape == (0, 2)
    with pytest.raises(ValueError, match=r"\(M, C\)"):
        segment_median(torch.zeros(3), torch.tensor([0, 3]))
