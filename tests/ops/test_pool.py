"""Segment pooling against loops over rows, written out here."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelpool.ops import pool, segment_max, segment_mean, segment_min, segment_sum
from voxelpool.ops.reference import pool as reference

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INTEGERS = [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64]
EXTREMES = {"max": segment_max, "min": segment_min}
SUMS = {"sum": segment_sum, "mean": segment_mean}
REDUCTIONS = {**EXTREMES, **SUMS}
NAN, INF = math.nan, math.inf


def loop_extreme(src: torch.Tensor, offsets: list[int], name: str):
    """Value and row of each group and channel, by the rules in the module's docstring."""
    rows, channels = src.shape
    values = src.tolist()
    outs, args = [], []
    for begin, end in itertools.pairwise(offsets):
        out, arg = [0] * channels, [rows] * channels
        for c in range(channels):
            for row in range(begin, end):
                value = values[row][c]
                if row == begin:
                    better = True
                elif out[c] != out[c]:
                    better = False
                elif value != value:
                    better = True
                else:
                    better = value > out[c] if name == "max" else value < out[c]
                if better:
                    out[c], arg[c] = value, row
        outs.append(out)
        args.append(arg)
    return outs, args


def loop_sum(src: torch.Tensor, offsets: list[int], mean: bool) -> torch.Tensor:
    """Adds row by row, in float32 for half types and in int64 for integers."""
    if not src.is_floating_point():
        wide = torch.int64
    else:
        wide = torch.float64 if src.dtype == torch.float64 else torch.float32
    out = torch.zeros((len(offsets) - 1, src.shape[1]), dtype=wide)
    for k, (begin, end) in enumerate(itertools.pairwise(offsets)):
        for row in range(begin, end):
            out[k] = out[k] + src[row].to(wide)
        if mean and end > begin:
            count = torch.tensor(end - begin, dtype=wide)
            out[k] = out[k] / count if wide.is_floating_point else out[k] // count
    return out.to(src.dtype)


def random_offsets(generator: np.random.Generator, rows: int, groups: int) -> list[int]:
    if groups == 0:
        assert rows == 0
        return [0]
    inner = np.sort(generator.integers(0, rows + 1, groups - 1))
    return [0, *map(int, inner), rows]


def random_values(
    generator: np.random.Generator, shape: tuple[int, int], dtype: torch.dtype
) -> torch.Tensor:
    """Few distinct values, so that ties abound; NaN, infinities and both zeros among floats."""
    if not dtype.is_floating_point:
        low = 0 if dtype == torch.uint8 else -100
        return torch.from_numpy(generator.integers(low, 100, shape)).to(dtype)
    choices = np.array([-2.5, -1.0, -0.0, 0.0, 0.125, 3.0, NAN, INF, -INF])
    odds = np.array([8, 8, 4, 4, 8, 8, 0.4, 0.4, 0.4])
    return torch.from_numpy(generator.choice(choices, shape, p=odds / odds.sum())).to(dtype)


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal values, NaN at the same places, zeros of the same sign."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    actual, expected = actual.cpu(), expected.cpu()
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    if actual.is_floating_point():
        known = ~actual.isnan()
        assert torch.equal(actual.signbit()[known], expected.signbit()[known])


SHAPES = [(0, 0, 0), (0, 3, 0), (0, 4, 5), (1, 1, 1), (7, 3, 5), (64, 9, 16), (301, 40, 33)]
LARGE = (20011, 3001, 131)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS + INTEGERS, ids=str)
@pytest.mark.parametrize("name", EXTREMES)
def test_extreme_equals_a_loop(name, dtype, shape, device):
    rows, groups, channels = shape
    generator = np.random.default_rng(rows + channels)
    src = random_values(generator, (rows, channels), dtype)
    offsets = random_offsets(generator, rows, groups)
    values, args = loop_extreme(src, offsets, name)
    expected = torch.tensor(values, dtype=dtype).reshape(groups, channels)
    rows_of = torch.tensor(args, dtype=torch.int64).reshape(groups, channels)
    for run in (EXTREMES[name], getattr(reference, f"segment_{name}")):
        out, arg = run(src.to(device), torch.tensor(offsets, device=device))
        assert_same(out, expected)
        assert_same(arg, rows_of)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS + INTEGERS, ids=str)
@pytest.mark.parametrize("name", SUMS)
def test_sum_equals_a_loop(name, dtype, shape, device):
    rows, groups, channels = shape
    generator = np.random.default_rng(rows + channels)
    src = torch.from_numpy(generator.normal(0, 30, (rows, channels))).to(dtype)
    offsets = random_offsets(generator, rows, groups)
    expected = loop_sum(src, offsets, name == "mean")
    out = REDUCTIONS[name](src.to(device), torch.tensor(offsets, device=device))
    assert_same(out, expected)
    slow = getattr(reference, f"segment_{name}")(src, torch.tensor(offsets))
    torch.testing.assert_close(slow, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32], ids=str)
@pytest.mark.parametrize("name", REDUCTIONS)
def test_large_equals_the_reference(name, dtype, device):
    rows, groups, channels = LARGE
    generator = np.random.default_rng(1)
    src = random_values(generator, (rows, channels), dtype).to(device)
    offsets = torch.tensor(random_offsets(generator, rows, groups), device=device)
    actual = REDUCTIONS[name](src, offsets)
    expected = getattr(reference, f"segment_{name}")(src, offsets)
    if name in EXTREMES:
        assert_same(actual[0], expected[0])
        assert_same(actual[1], expected[1])
    else:
        torch.testing.assert_close(actual, expected, equal_nan=True)


def test_special_values(device):
    src = torch.tensor([[-0.0], [0.0], [-3.0], [-1.0], [1.0], [NAN], [NAN], [-INF], [-INF]])
    offsets = torch.tensor([0, 2, 4, 4, 7, 9])
    out, arg = segment_max(src.to(device), offsets.to(device))
    assert_same(out, torch.tensor([[-0.0], [-1.0], [0.0], [NAN], [-INF]]))
    assert arg.flatten().tolist() == [0, 3, 9, 5, 7]
    out, arg = segment_min(src.to(device), offsets.to(device))
    assert_same(out, torch.tensor([[-0.0], [-3.0], [0.0], [NAN], [-INF]]))
    assert arg.flatten().tolist() == [0, 2, 9, 5, 7]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_value_keeps_its_bits_and_rounds_as_torch_does(dtype, device):
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)
    src = every.reshape(-1, 64).to(device)
    offsets = torch.arange(src.shape[0] + 1, device=device)
    out, _ = segment_max(src, offsets)
    assert torch.equal(out.view(torch.int16), src.view(torch.int16))
    total = segment_sum(src, offsets)
    torch.testing.assert_close(total, src + 0, rtol=0, atol=0, equal_nan=True)
    # Sums of two that lie between two representable numbers, above the largest and below the least.
    a, b = every, every[torch.randperm(1 << 16, generator=torch.Generator().manual_seed(0))]
    pairs = torch.stack([a, b]).to(device)
    total = segment_sum(pairs, torch.tensor([0, 2], device=device))
    torch.testing.assert_close(
        total[0], (pairs[0].float() + pairs[1].float()).to(dtype), rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("rows", [127, 128, 129, 32767, 32768, 32769, 70000])
def test_the_last_row_of_a_long_group_is_found(rows, dtype, device):
    src = torch.zeros((rows + 1, 3), dtype=dtype, device=device)
    src[rows - 1, 0], src[rows - 1, 1], src[rows, 2] = 1, -1, 1
    offsets = torch.tensor([0, rows, rows + 1], device=device)
    out, arg = segment_max(src, offsets)
    assert out.tolist() == [[1, 0, 0], [0, 0, 1]]
    assert arg.tolist() == [[rows - 1, 0, 0], [rows] * 3]
    out, arg = segment_min(src, offsets)
    assert out.tolist() == [[0, -1, 0], [0, 0, 1]]
    assert arg.tolist() == [[0, rows - 1, 0], [rows] * 3]


def test_half_types_accumulate_in_float32(device):
    src = torch.full((4096, 1), 1.0, dtype=torch.bfloat16, device=device)
    assert segment_sum(src, torch.tensor([0, 4096], device=device)).item() == 4096


def test_integer_mean_rounds_down_and_sum_wraps(device):
    offsets = torch.tensor([0, 2], device=device)
    src = torch.tensor([[-3, 100], [0, 100]], dtype=torch.int8, device=device)
    assert segment_mean(src, offsets).tolist() == [[-2, 100]]
    assert segment_sum(src, offsets).tolist() == [[-3, -56]]


@pytest.mark.parametrize("name", REDUCTIONS)
def test_layout_of_the_input_does_not_matter(name, device):
    base = torch.randn(40, 60, device=device)
    offsets = torch.tensor([0, 3, 3, 11, 20], device=device)
    strided = torch.stack([offsets, offsets], dim=1)[:, 0]
    run = REDUCTIONS[name]

    def first(result):
        return result[0] if isinstance(result, tuple) else result

    for view in (base[::2, 7:40], base.t()[:20], base[:1].expand(20, 60), base.flatten()[1:201]):
        src = view if view.dim() == 2 else view.reshape(20, 10)
        assert_same(first(run(src, strided)), first(run(src.clone(), offsets)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32], ids=str)
@pytest.mark.parametrize("channels", [8, 24, 64, 72, 200])
@pytest.mark.parametrize("name", EXTREMES)
def test_arguments_that_fill_caches_equal_the_reference(name, channels, dtype, device):
    """Above 1 MiB they are written past the caches, where their rows are whole lines."""
    generator = np.random.default_rng(channels)
    groups = (2 << 20) // (8 * channels)
    src = random_values(generator, (2 * groups, channels), dtype).to(device)
    offsets = torch.tensor(random_offsets(generator, 2 * groups, groups), device=device)
    for actual, expected in zip(
        REDUCTIONS[name](src, offsets),
        getattr(reference, f"segment_{name}")(src, offsets),
        strict=True,
    ):
        assert_same(actual, expected)


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("channels", [1, 33, 128])
def test_threads_do_not_change_a_bit(name, channels):
    rows, groups = 30000, 700
    generator = np.random.default_rng(2)
    src = torch.from_numpy(generator.normal(size=(rows, channels))).float()
    offsets = torch.tensor(random_offsets(generator, rows, groups))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            result = REDUCTIONS[name](src, offsets)
            results.append(result if isinstance(result, tuple) else (result,))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@settings(deadline=None, max_examples=60)
@given(
    counts=st.lists(st.integers(0, 9), max_size=12),
    channels=st.integers(0, 70),
    seed=st.integers(0, 2**31),
)
def test_any_groups(counts, channels, seed):
    offsets = torch.tensor([0, *np.cumsum(counts)], dtype=torch.int64)
    generator = np.random.default_rng(seed)
    src = random_values(generator, (int(offsets[-1]), channels), torch.float32)
    for name in EXTREMES:
        actual = REDUCTIONS[name](src, offsets)
        expected = getattr(reference, f"segment_{name}")(src, offsets)
        for a, b in zip(actual, expected, strict=True):
            assert_same(a, b)
    assert_same(segment_sum(src, offsets), loop_sum(src, offsets.tolist(), False))


# --- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REDUCTIONS)
def test_gradcheck(name, device):
    values = torch.randperm(60, generator=torch.Generator().manual_seed(0)).double().reshape(12, 5)
    src = values.to(device).requires_grad_()
    offsets = torch.tensor([0, 0, 3, 4, 12, 12], device=device)

    def run(x):
        result = REDUCTIONS[name](x, offsets)
        return result[0] if isinstance(result, tuple) else result

    assert torch.autograd.gradcheck(run, (src,))
    assert torch.autograd.gradgradcheck(run, (src,))


def test_gradient_of_a_tie_goes_to_the_lowest_row_alone(device):
    src = torch.ones((4, 2), device=device, requires_grad=True)
    out, arg = segment_max(src, torch.tensor([0, 3, 4, 4], device=device))
    assert not arg.requires_grad
    out.sum().backward()
    assert src.grad.tolist() == [[1, 1], [0, 0], [0, 0], [1, 1]]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", REDUCTIONS)
def test_gradient_equals_the_reference(name, dtype, device):
    generator = np.random.default_rng(3)
    offsets = torch.tensor(random_offsets(generator, 300, 50), device=device)
    src = torch.from_numpy(generator.integers(-9, 9, (300, 37))).to(dtype).to(device)
    upstream = torch.from_numpy(generator.normal(size=(50, 37))).to(dtype).to(device)
    grads = []
    for module in (pool, reference):
        x = src.clone().requires_grad_()
        result = getattr(module, f"segment_{name}")(x, offsets)
        (result[0] if isinstance(result, tuple) else result).backward(upstream)
        grads.append(x.grad)
    torch.testing.assert_close(
        grads[0], grads[1], rtol=1e-2 if dtype in FLOATS[:2] else 1e-6, atol=0
    )


# --- torch.library -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REDUCTIONS)
def test_opcheck(name, device):
    src = torch.randn(11, 6, device=device, requires_grad=True)
    offsets = torch.tensor([0, 4, 4, 11], device=device)
    torch.library.opcheck(getattr(torch.ops.voxelpool, f"segment_{name}").default, (src, offsets))


def test_opcheck_of_the_backward_ops(device):
    grad = torch.randn(3, 6, device=device, requires_grad=True)
    offsets = torch.tensor([0, 4, 4, 11], device=device)
    arg = torch.tensor([2, 11, 5], device=device).unsqueeze(1).expand(3, 6)
    ops = torch.ops.voxelpool
    torch.library.opcheck(ops.segment_place.default, (grad, arg, offsets, 11))
    for mean in (False, True):
        torch.library.opcheck(ops.segment_spread.default, (grad, offsets, 11, mean))


def pooled_loss(src, offsets):
    largest, arg = segment_max(src * 2, offsets)
    total = segment_mean(src, offsets) + segment_sum(src, offsets) - segment_min(src, offsets)[0]
    return (largest * total).sum() + arg.sum()


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(dynamic, device):
    torch._dynamo.reset()
    compiled = torch.compile(pooled_loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for rows in (11, 17):
        offsets = torch.tensor([0, 4, 4, rows], device=device)
        a = torch.randn(rows, 6, device=device, requires_grad=True)
        b = a.detach().clone().requires_grad_()
        expected, actual = pooled_loss(a, offsets), compiled(b, offsets)
        expected.backward()
        actual.backward()
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(b.grad, a.grad)


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([1, 4], r"offsets\[0\] is 1, expected 0"),
        ([0, 3, 2, 4], r"offsets\[2\] is 2, expected at least the offset before it, 3"),
        ([0, 3], r"offsets\[1\] is 3, expected 4, the number of rows"),
        ([0, 5], r"offsets\[1\] is 5, expected 4, the number of rows"),
        ([0, -1, 4], r"offsets\[1\] is -1, expected at least the offset before it, 0"),
        ([0], r"offsets\[0\] is 0, expected 4, the number of rows"),
    ],
)
@pytest.mark.parametrize("name", REDUCTIONS)
def test_wrong_offsets_are_named(name, offsets, message):
    src = torch.zeros(4, 2)
    for module in (pool, reference):
        with pytest.raises(ValueError, match=message):
            getattr(module, f"segment_{name}")(src, torch.tensor(offsets))


def test_wrong_arguments_are_named():
    src, offsets = torch.zeros(4, 2), torch.tensor([0, 4])
    with pytest.raises(TypeError, match=r"src must be a torch.Tensor, got ndarray"):
        segment_max(src.numpy(), offsets)
    with pytest.raises(TypeError, match=r"offsets must be a torch.Tensor, got list"):
        segment_max(src, [0, 4])
    with pytest.raises(TypeError, match=r"src must be floating point or integer, got torch.bool"):
        segment_max(src.bool(), offsets)
    with pytest.raises(TypeError, match=r"offsets must hold integers, got torch.float32"):
        segment_max(src, offsets.float())
    with pytest.raises(ValueError, match=r"src must have shape \(M, C\), got \(4, 2, 1\)"):
        segment_sum(src.unsqueeze(2), offsets)
    with pytest.raises(ValueError, match=r"offsets must be 1-D, got shape \(1, 2\)"):
        segment_sum(src, offsets.unsqueeze(0))
    with pytest.raises(ValueError, match=r"offsets must have shape \(K \+ 1,\), got \(0,\)"):
        segment_sum(src, offsets[:0])
    with pytest.raises(ValueError, match=r"src is on cpu and offsets on meta"):
        segment_sum(src, offsets.to("meta"))


def test_offsets_of_any_integer_type():
    src = torch.arange(8.0).reshape(4, 2)
    for dtype in (torch.int32, torch.int16, torch.uint8):
        out, _ = segment_max(src, torch.tensor([0, 1, 4], dtype=dtype))
        assert out.tolist() == [[0, 1], [6, 7]]
