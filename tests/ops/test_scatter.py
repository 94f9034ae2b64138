"""torch-scatter's functions against loops over entries, written out here."""

from __future__ import annotations

import importlib
import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import voxelpool.ops as ops
from voxelpool.ops.reference import scatter as reference

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INTEGERS = [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64]
REDUCES = ["sum", "mul", "mean", "min", "max"]
NAN, INF = math.nan, math.inf


# --- the oracle ----------------------------------------------------------------------------------


def wide_type(dtype):
    if not dtype.is_floating_point:
        return np.int64
    return np.float64 if dtype == torch.float64 else np.float32


def full_index(index, shape, dim):
    """The index of each entry, by torch-scatter's rule of broadcasting."""
    index = index.numpy()
    if index.ndim == 1:
        index = index.reshape((1,) * dim + (-1,))
    index = index.reshape(index.shape + (1,) * (len(shape) - index.ndim))
    return np.broadcast_to(index, shape)


def beyond(value, best, reduce):
    if math.isnan(best):
        return False
    if math.isnan(value):
        return True
    return value > best if reduce == "max" else value < best


def loop(src, index, dim, size, reduce, out=None):
    """Values and positions, entry by entry. `index` has the shape of `src`; -1 names no group."""
    dim %= src.dim()
    wide = wide_type(src.dtype)
    values = src.double().numpy() if src.is_floating_point() else src.long().numpy()
    shape = list(src.shape)
    shape[dim] = size
    start = {"sum": 0, "mean": 0, "mul": 1, "min": 0, "max": 0}[reduce]
    result = np.full(shape, start, wide)
    if out is not None:
        result = (
            out.double().numpy().astype(wide) if src.is_floating_point() else out.long().numpy()
        )
        result = result.copy()
    held = np.full(shape, out is not None)
    arg = np.full(shape, src.shape[dim])
    count = np.zeros(shape, np.int64)
    with np.errstate(all="ignore"):
        for at in np.ndindex(*src.shape):
            to = list(at)
            to[dim] = int(index[at])
            to = tuple(to)
            if index[at] < 0:
                continue
            count[to] += 1
            value = wide(values[at])
            if reduce in ("sum", "mean"):
                result[to] += value
            elif reduce == "mul":
                result[to] *= value
            elif not held[to] or beyond(value, result[to], reduce):
                result[to], arg[to], held[to] = value, at[dim], True
        if reduce == "mean":
            divisor = np.maximum(count, 1)
            whole = not src.is_floating_point()
            result = result // divisor if whole else result / divisor.astype(wide)
    return torch.from_numpy(np.asarray(result)).to(src.dtype), torch.from_numpy(np.asarray(arg))


def assert_same(actual, expected):
    """Equal values, NaN at the same places, zeros of the same sign."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    actual, expected = actual.cpu(), expected.cpu()
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    if actual.is_floating_point():
        known = ~actual.isnan()
        assert torch.equal(actual.signbit()[known], expected.signbit()[known])


def random_values(generator, shape, dtype):
    """Few distinct values, so that ties abound; NaN, infinities and both zeros among floats."""
    if not dtype.is_floating_point:
        low = 0 if dtype == torch.uint8 else -100
        return torch.from_numpy(generator.integers(low, 100, shape)).to(dtype)
    choices = np.array([-2.5, -1.0, -0.0, 0.0, 0.125, 3.0, NAN, INF, -INF])
    odds = np.array([8, 8, 4, 4, 8, 8, 0.2, 0.2, 0.2])
    return torch.from_numpy(generator.choice(choices, shape, p=odds / odds.sum())).to(dtype)


def integers(generator, high, shape):
    return torch.from_numpy(generator.integers(0, high, shape))


# Shape of src, dim, shape of index, size of the result.
CASES = [
    ((9,), 0, (9,), 4),
    ((9,), -1, (9,), 40),
    ((9, 5), 0, (9,), 4),
    ((9, 5), 0, (9, 1), 4),
    ((9, 5), 0, (9, 5), 4),
    ((4, 7), -1, (7,), 3),
    ((4, 7), 1, (4, 7), 3),
    ((4, 7), 1, (1, 7), 3),
    ((3, 6, 2), 1, (6,), 4),
    ((3, 6, 2), -2, (3, 6), 4),
    ((3, 6, 2), 1, (3, 6, 1), 4),
    ((3, 6, 2), 1, (3, 6, 2), 4),
    ((3, 6, 2), 1, (3, 1, 2), 4),
    ((3, 6, 2), 1, (1, 6, 2), 4),
    ((3, 6, 2), 0, (3,), 2),
    ((3, 6, 2), 2, (2,), 2),
    ((2, 6, 17), 1, (6,), 4),
    ((2, 3, 5, 2), 2, (5,), 3),
    ((2, 3, 5, 2), 2, (2, 3, 5), 3),
    ((1, 1), 0, (1,), 1),
    ((0, 5), 0, (0,), 3),
    ((0,), 0, (0,), 0),
    ((9, 0), 0, (9,), 4),
    ((3, 0, 2), 1, (0,), 4),
    ((3, 0, 2), 1, (3, 0, 2), 4),
    ((0, 6, 2), 1, (6,), 4),
    ((0, 6, 2), 1, (0, 6), 4),
    ((0, 6, 2), 1, (0, 6, 2), 4),
]


def make_case(case, dtype, seed=0):
    shape, dim, index_shape, size = case
    generator = np.random.default_rng(seed)
    return (
        random_values(generator, shape, dtype),
        integers(generator, max(size, 1), index_shape),
        dim,
        size,
    )


def scatter(src, index, dim, out, size, reduce):
    """Values and positions by the public functions; both devices' inputs are on the CPU."""
    if reduce in ("min", "max"):
        return getattr(ops, f"scatter_{reduce}")(src, index, dim, out, size)
    return ops.scatter(src, index, dim, out, size, reduce), None


# --- scatter -------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("reduce", REDUCES)
def test_scatter_equals_a_loop(reduce, case, device):
    for dtype in (torch.float32, torch.int32):
        src, index, dim, size = make_case(case, dtype)
        whole = full_index(index, src.shape, dim % src.dim())
        expected, rows = loop(src, whole, dim, size, reduce)
        out, arg = scatter(src.to(device), index.to(device), dim, None, size, reduce)
        assert_same(out, expected)
        assert out.is_contiguous()
        if arg is not None:
            assert_same(arg, rows)


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS, ids=str)
@pytest.mark.parametrize("reduce", REDUCES)
def test_scatter_of_every_type(reduce, dtype, device):
    generator = np.random.default_rng(7)
    src = random_values(generator, (61, 19), dtype)
    index = integers(generator, 11, (61,))
    expected, rows = loop(src, full_index(index, src.shape, 0), 0, 13, reduce)
    out, arg = scatter(src.to(device), index.to(device), 0, None, 13, reduce)
    assert_same(out, expected)
    if arg is not None:
        assert_same(arg, rows)
    slow = getattr(reference, f"scatter_{reduce}")(src.to(device), index.to(device), 13)
    slow = slow[0] if isinstance(slow, tuple) else slow
    if reduce in ("min", "max"):
        assert_same(slow, expected)
    else:
        torch.testing.assert_close(slow.cpu(), expected, equal_nan=True)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("reduce", REDUCES)
def test_out_takes_part_and_is_returned(reduce, case, device):
    for dtype in (torch.float32, torch.int16):
        src, index, dim, size = make_case(case, dtype)
        shape = list(src.shape)
        shape[dim] = size
        start = random_values(np.random.default_rng(1), tuple(shape), dtype)
        whole = full_index(index, src.shape, dim % src.dim())
        expected, rows = loop(src, whole, dim, size, reduce, start)
        out = start.to(device).t().clone().t() if start.dim() == 2 else start.to(device).clone()
        result, arg = scatter(src.to(device), index.to(device), dim, out, None, reduce)
        assert result is out
        # The sum is added to `out`, which loses the sign of a zero where there is nothing to add.
        assert_same(result + 0, expected + 0)
        if arg is not None:
            assert_same(arg, rows)


def test_size_of_the_result():
    src, index = torch.ones(4), torch.tensor([0, 2, 2, 5])
    assert ops.scatter_sum(src, index).tolist() == [1, 0, 2, 0, 0, 1]
    assert ops.scatter_sum(src, index, dim_size=8).shape == (8,)
    assert ops.scatter_mul(src, index, dim_size=8).tolist() == [1] * 8
    assert ops.scatter_max(src, index, dim_size=1000)[1].tolist()[:7] == [0, 4, 1, 4, 4, 3, 4]
    assert ops.scatter_sum(src[:0], index[:0]).shape == (0,)
    assert ops.scatter_max(torch.ones(0, 3), index[:0], 0, dim_size=2)[1].tolist() == [[0] * 3] * 2
    for dtype in (torch.int32, torch.int16, torch.int8, torch.uint8):
        assert ops.scatter_sum(src, index.to(dtype)).tolist() == [1, 0, 2, 0, 0, 1]


def test_names_of_scatter():
    src, index = torch.randn(6, 3), torch.tensor([1, 0, 1, 3, 3, 1])
    for reduce, name in [("add", "sum"), ("sum", "add"), ("mul", "mul"), ("mean", "mean")]:
        expected = getattr(ops, f"scatter_{name}")(src, index, 0)
        assert_same(ops.scatter(src, index, dim=0, reduce=reduce), expected)
    for reduce in ("min", "max"):
        expected = getattr(ops, f"scatter_{reduce}")(src, index, 0)[0]
        assert_same(ops.scatter(src, index, 0, reduce=reduce), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32], ids=str)
@pytest.mark.parametrize("channels", [1, 3, 33, 131])
def test_rows_in_any_order_give_the_bits_of_sorted_rows(dtype, channels, device):
    generator = np.random.default_rng(channels)
    rows, groups = 12007, 1501
    src = torch.from_numpy(generator.normal(0, 9, (rows, channels))).to(dtype).to(device)
    index = integers(generator, groups, (rows,)).to(device)
    order = torch.argsort(index, stable=True)
    offsets = torch.searchsorted(index[order], torch.arange(groups + 1, device=device))
    for name in ("max", "min"):
        out, arg = getattr(ops, f"scatter_{name}")(src, index, 0, dim_size=groups)
        expected, row = getattr(ops, f"segment_{name}")(src[order], offsets)
        assert_same(out, expected)
        assert_same(arg, torch.cat([order, order.new_tensor([rows])])[row])
    for name in ("sum", "mean"):
        out = getattr(ops, f"scatter_{name}")(src, index, 0, dim_size=groups)
        assert_same(out, getattr(ops, f"segment_{name}")(src[order], offsets))


@pytest.mark.parametrize("groups", [1, 3, 5000, 400_000])
@pytest.mark.parametrize("pattern", ["random", "sorted", "reversed", "one", "skewed"])
def test_threads_do_not_change_a_bit(groups, pattern):
    generator = np.random.default_rng(3)
    rows = 40_000
    index = integers(generator, groups, (rows,))
    if pattern == "sorted":
        index = index.sort().values
    elif pattern == "reversed":
        index = index.sort(descending=True).values
    elif pattern == "one":
        index = index[:1].repeat(rows)
    elif pattern == "skewed":
        index = index * (torch.rand(rows) < 0.3)
    src = torch.from_numpy(generator.normal(size=(rows, 3 if groups > 9999 else 130))).float()
    upstream = torch.randn(groups, src.shape[1])
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            x = src.clone().requires_grad_()
            out, arg = ops.scatter_max(x, index, 0, dim_size=groups)
            total = ops.scatter_mean(x, index, 0, dim_size=groups)
            (out * upstream + total).sum().backward()
            results.append((out, arg, total, x.grad))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_layout_of_the_inputs_does_not_matter(device):
    base = torch.randn(60, 80, device=device)
    ids = torch.randint(0, 7, (40,), device=device)
    strided = torch.stack([ids, ids], dim=1)[:, 0]
    offset = torch.cat([ids[:1], ids])[1:]
    wide = ids.unsqueeze(1).expand(40, 20)
    for src in (
        base[:40, 7:27],
        base.t()[:40, 1:21],
        base[:1, :20].expand(40, 20),
        base.flatten()[1:801].view(40, 20),
        base[:40:1, ::4],
    ):
        plain = src.clone(memory_format=torch.contiguous_format)
        for reduce in REDUCES:
            expected = scatter(plain, ids, 0, None, 7, reduce)
            for index in (strided, offset, wide, wide.contiguous()):
                actual = scatter(src, index, 0, None, 7, reduce)
                for a, b in zip(actual, expected, strict=True):
                    if a is not None:
                        assert_same(a, b)


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_any_shape_dim_and_index(data):
    shape = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=4), label="shape")
    dim = data.draw(st.integers(-len(shape), len(shape) - 1), label="dim")
    at = dim % len(shape)
    kind = data.draw(st.sampled_from(["1-D", "full", "ones"]), label="index")
    if kind == "1-D":
        index_shape = [shape[at]]
    else:
        dims = data.draw(st.integers(max(at + 1, 2), max(len(shape), 2)), label="dims")
        index_shape = shape[:dims]
        if kind == "ones":
            index_shape = [
                1 if d != at and data.draw(st.booleans()) else n for d, n in enumerate(index_shape)
            ]
    if len(index_shape) > len(shape):
        return
    size = data.draw(st.integers(1, 9), label="size")
    generator = np.random.default_rng(data.draw(st.integers(0, 2**31), label="seed"))
    src = random_values(generator, tuple(shape), torch.float32)
    index = integers(generator, size, tuple(index_shape))
    whole = full_index(index, src.shape, at)
    for reduce in REDUCES:
        expected, rows = loop(src, whole, dim, size, reduce)
        out, arg = scatter(src, index, dim, None, size, reduce)
        assert_same(out, expected)
        if arg is not None:
            assert_same(arg, rows)


# --- segments ------------------------------------------------------------------------------------

# Shape of src, offsets. The last dimension of the offsets lies along its place in src.
RUNS = [
    ((7,), [0, 2, 2, 7]),
    ((7, 3), [0, 2, 2, 7]),
    ((7, 3), [1, 4, 5]),
    ((7, 3), [0]),
    ((7, 3), [3]),
    ((0, 3), [0, 0, 0]),
    ((7, 0), [0, 7]),
    ((2, 5), [[0, 1, 5], [2, 2, 4]]),
    ((2, 5, 3), [[0, 1, 5], [2, 2, 4]]),
    ((2, 5, 3), [[0, 1, 5]]),
    ((2, 2, 4, 3), [[[0, 1, 4], [0, 0, 4]], [[1, 2, 3], [0, 4, 4]]]),
    ((2, 2, 4, 3), [[[0, 1, 4]], [[1, 2, 3]]]),
]


def index_of_runs(indptr, shape):
    """The group of each entry, or -1, and the dimension."""
    dim = indptr.dim() - 1
    whole = np.broadcast_to(indptr.numpy(), (*shape[:dim], indptr.shape[-1]))
    index = np.full(shape, -1)
    for at in np.ndindex(*shape[:dim]):
        for k in range(indptr.shape[-1] - 1):
            index[at][whole[at][k] : whole[at][k + 1]] = k
    return index, dim


@pytest.mark.parametrize("shape,indptr", RUNS, ids=str)
@pytest.mark.parametrize("reduce", ["sum", "mean", "min", "max"])
def test_segment_csr_equals_a_loop(reduce, shape, indptr, device):
    indptr = torch.tensor(indptr)
    groups = indptr.shape[-1] - 1
    index, dim = index_of_runs(indptr, shape)
    for dtype in (torch.float32, torch.int64):
        src = random_values(np.random.default_rng(5), shape, dtype)
        expected, rows = loop(src, index, dim, groups, reduce)
        src, moved = src.to(device), indptr.to(device)
        result = getattr(ops, f"segment_{reduce}_csr")(src, moved)
        if reduce in ("min", "max"):
            assert_same(result[1], rows)
            result = result[0]
        assert_same(result, expected)
        assert_same(ops.segment_csr(src, moved, reduce=reduce), expected)
        out = torch.full_like(expected, 9, device=device)
        assert ops.segment_csr(src, moved, out, reduce) is out
        assert_same(out, expected)


@pytest.mark.parametrize("case", [c for c in CASES if c[1] % len(c[0]) == len(c[2]) - 1], ids=str)
@pytest.mark.parametrize("reduce", ["sum", "mean", "min", "max"])
def test_segment_coo_equals_a_loop(reduce, case, device):
    for dtype in (torch.float32, torch.int16):
        src, index, dim, size = make_case(case, dtype)
        index = index.sort(-1).values
        whole = full_index(index, src.shape, dim % src.dim())
        shape = list(src.shape)
        shape[dim] = size
        start = random_values(np.random.default_rng(1), tuple(shape), dtype)
        run = getattr(ops, f"segment_{reduce}_coo")
        for out in (None, start):
            expected, rows = loop(src, whole, dim, size, reduce, out)
            given_out = None if out is None else out.to(device).clone()
            result = run(src.to(device), index.to(device), given_out, size)
            if reduce in ("min", "max"):
                assert_same(result[1], rows)
                result = result[0]
            assert_same(result + 0, expected + 0)
            assert given_out is None or result is given_out
        expected, _ = loop(src, whole, dim, size, reduce)
        actual = ops.segment_coo(src.to(device), index.to(device), dim_size=size, reduce=reduce)
        assert_same(actual, expected)


def test_segment_add_is_sum():
    src, index = torch.randn(5, 2), torch.tensor([0, 0, 2, 2, 3])
    indptr = torch.tensor([0, 2, 2, 4, 5])
    expected = ops.scatter_sum(src, index, 0)
    assert_same(ops.segment_add_coo(src, index), expected)
    assert_same(ops.segment_coo(src, index, reduce="add"), expected)
    assert_same(ops.segment_add_csr(src, indptr), expected)
    assert_same(ops.segment_csr(src, indptr, reduce="add"), expected)


@pytest.mark.parametrize("shape,indptr", RUNS, ids=str)
def test_gather_csr_repeats_over_each_run(shape, indptr, device):
    indptr = torch.tensor(indptr)
    index, dim = index_of_runs(indptr, shape)
    groups = indptr.shape[-1] - 1
    values = torch.randn((*shape[:dim], groups, *shape[dim + 1 :]))
    expected = torch.zeros(shape)
    for at in np.ndindex(*shape):
        if index[at] >= 0:
            expected[at] = values[(*at[:dim], index[at], *at[dim + 1 :])]
    out = torch.full(shape, 9.0, device=device)
    assert ops.gather_csr(values.to(device), indptr.to(device), out) is out
    assert_same(out, expected)
    last = int(indptr.flatten()[-1]) if values.numel() else 0
    if last == shape[dim]:
        assert_same(ops.gather_csr(values.to(device), indptr.to(device)), expected)


@pytest.mark.parametrize("case", [c for c in CASES if c[1] % len(c[0]) == len(c[2]) - 1], ids=str)
def test_gather_coo_takes_what_the_index_names(case, device):
    shape, dim, index_shape, size = case
    dim %= len(shape)
    if size == 0:
        return
    generator = np.random.default_rng(0)
    index = integers(generator, size, index_shape)
    values = torch.randn((*shape[:dim], size, *shape[dim + 1 :]))
    target = (*index_shape[:dim], *shape[dim : dim + 1], *shape[dim + 1 :])
    whole = index.reshape(index_shape + (1,) * (len(shape) - dim - 1)).expand(
        *shape[:dim], *target[dim:]
    )
    expected = values.gather(dim, whole)
    if index.dim() < len(shape) or index.shape == expected.shape:
        assert_same(ops.gather_coo(values.to(device), index.to(device)), expected)
        out = torch.zeros_like(expected, device=device)
        assert ops.gather_coo(values.to(device), index.to(device), out) is out
        assert_same(out, expected)


# --- composite -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_composites_equal_torch_on_each_group(dim, dtype, device):
    generator = torch.Generator().manual_seed(0)
    src = (torch.randn(6, 12, 4, generator=generator) * 5).to(dtype).to(device)
    dim_at = dim % 3
    index = torch.randint(0, 3, (src.shape[dim_at],), generator=generator).to(device)
    index[:2] = torch.tensor([0, 1])
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-5
    std = ops.scatter_std(src, index, dim, dim_size=4)
    biased = ops.scatter_std(src, index, dim, dim_size=4, unbiased=False)
    sums = ops.scatter_logsumexp(src, index, dim, dim_size=4)
    soft = ops.scatter_softmax(src, index, dim, dim_size=4)
    log_soft = ops.scatter_log_softmax(src, index, dim, dim_size=4)
    for group in range(4):
        rows = (index == group).nonzero().flatten()
        part = src.index_select(dim, rows).double()
        kept = [x.select(dim, group).double() for x in (std, biased, sums)]
        if len(rows) == 0:
            assert all((x == 0).all() for x in kept)
            continue
        n = len(rows)
        squares = part.var(dim, unbiased=False) * n
        for actual, expected in [
            (kept[0], (squares / (max(n - 1, 1) + 1e-6)).sqrt()),
            (kept[1], (squares / (n + 1e-6)).sqrt()),
            (kept[2], part.logsumexp(dim)),
            (soft.index_select(dim, rows).double(), part.softmax(dim)),
            (log_soft.index_select(dim, rows).double(), part.log_softmax(dim)),
        ]:
            torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_composites_with_extreme_values():
    src = torch.tensor([1e4, 1e4, -1e4, -INF, -INF, INF, NAN])
    index = torch.tensor([0, 0, 1, 2, 2, 3, 4])
    sums = ops.scatter_logsumexp(src, index)
    torch.testing.assert_close(sums[:2], torch.tensor([1e4 + math.log(2), -1e4]))
    assert sums[2] <= math.log(1e-11) and sums[3] == INF and sums[4].isnan()
    torch.testing.assert_close(ops.scatter_softmax(src, index)[:3], torch.tensor([0.5, 0.5, 1]))
    log_soft = ops.scatter_log_softmax(src, index)[:3]
    torch.testing.assert_close(log_soft, torch.tensor([-math.log(2), -math.log(2), 0]))


def test_composites_with_out():
    src, index = torch.tensor([1.0, 3.0, 4.0]), torch.tensor([0, 0, 2])
    out = torch.tensor([2.0, 5.0, -1.0])
    expected = torch.tensor([[2.0, 1, 3], [5, -INF, -INF], [-1, 4, -INF]]).logsumexp(1)
    assert ops.scatter_logsumexp(src, index, out=out) is out
    torch.testing.assert_close(out, expected)
    out = torch.tensor([2.0, 4.0, 0.0])
    assert ops.scatter_std(src, index, out=out, unbiased=False) is out
    torch.testing.assert_close(out, torch.tensor([math.sqrt(2), 2, 0]))


def test_composites_refuse_integers():
    src, index = torch.ones(3, dtype=torch.int64), torch.tensor([0, 0, 1])
    for name in ("std", "logsumexp", "softmax", "log_softmax"):
        with pytest.raises(ValueError, match=f"scatter_{name} takes floating point numbers"):
            getattr(ops, f"scatter_{name}")(src, index)


# --- gradients -----------------------------------------------------------------------------------


def first(result):
    return result[0] if isinstance(result, tuple) else result


GRADIENT_CASES = [
    ((9, 5), 0, (9,), 4),
    ((3, 6, 2), 1, (6,), 4),
    ((3, 6, 2), 1, (3, 6), 4),
    ((3, 6, 2), 1, (3, 6, 2), 4),
    ((2, 6, 17), -2, (6,), 4),
]


@pytest.mark.parametrize("case", GRADIENT_CASES, ids=str)
@pytest.mark.parametrize(
    "name", ["sum", "mul", "mean", "min", "max", "std", "logsumexp", "softmax", "log_softmax"]
)
def test_gradcheck_of_scatter(name, case, device):
    shape, dim, index_shape, size = case
    generator = np.random.default_rng(0)
    values = generator.permutation(math.prod(shape)).reshape(shape) / 31 + 0.2
    src = torch.from_numpy(values).to(device).requires_grad_()
    index = integers(generator, size, index_shape).to(device)
    if name == "std":  # whose derivative a group of one has not
        groups = (torch.arange(shape[dim], device=device) // 2).clamp(max=2)
        if index.dim() > 1:
            along = groups.view([-1 if d == dim else 1 for d in range(index.dim())])
            groups = along.expand(index.shape).contiguous()
        index = groups

    def run(x):
        return first(getattr(ops, f"scatter_{name}")(x, index, dim, dim_size=size))

    large = math.prod(shape) > 60
    assert torch.autograd.gradcheck(run, (src,), fast_mode=large)
    if not large and name != "std":
        assert torch.autograd.gradgradcheck(run, (src,), fast_mode=True)


def test_gradcheck_of_segments(device):
    src = torch.randperm(60).double().reshape(2, 6, 5).to(device).requires_grad_()
    runs = torch.tensor([[0, 1, 1, 4], [1, 3, 6, 6]], device=device)
    index = torch.tensor([[0, 0, 1, 3, 3, 3], [1, 1, 1, 1, 2, 3]], device=device)
    for reduce in ("sum", "mean", "min", "max"):
        for run in (
            lambda x, r=reduce: ops.segment_csr(x, runs, reduce=r),
            lambda x, r=reduce: ops.segment_csr(x.reshape(12, 5), runs[0], reduce=r),
            lambda x, r=reduce: ops.segment_coo(x, index, dim_size=5, reduce=r),
            lambda x, r=reduce: ops.segment_coo(x.reshape(12, 5)[:6], index[0], reduce=r),
        ):
            assert torch.autograd.gradcheck(run, (src,))
            assert torch.autograd.gradgradcheck(run, (src,))
    values = torch.randn(2, 3, 5, dtype=torch.float64, device=device).requires_grad_()
    for run in (
        lambda x: ops.gather_csr(x, runs, x.new_zeros(2, 6, 5)),
        lambda x: ops.gather_csr(x[0], runs[0]),
        lambda x: ops.gather_coo(x, index.clamp(max=2)),
        lambda x: ops.gather_coo(x[1], index[0].clamp(max=2)),
    ):
        assert torch.autograd.gradcheck(run, (values,))
        assert torch.autograd.gradgradcheck(run, (values,))


@pytest.mark.parametrize("reduce", REDUCES)
def test_gradcheck_with_out(reduce, device):
    src = (torch.randperm(12).double().reshape(6, 2).to(device) / 7 + 0.3).requires_grad_()
    start = (torch.randperm(8).double().reshape(4, 2).to(device) / 5 + 0.4).requires_grad_()
    index = torch.tensor([0, 2, 2, 0, 3, 2], device=device)

    def run(x, y):
        return ops.scatter(x, index, 0, y.clone(), reduce=reduce)

    assert torch.autograd.gradcheck(run, (src, start))


def test_gradient_of_a_product_with_zeros():
    src = torch.tensor([2.0, 0, 3, 0, 0, 5, 7], requires_grad=True)
    index = torch.tensor([0, 0, 0, 1, 1, 2, 2])
    ops.scatter_mul(src, index).sum().backward()
    assert src.grad.tolist() == [0, 6, 0, 0, 0, 7, 5]


def test_gradient_of_a_tie_goes_to_the_lowest_row_alone(device):
    src = torch.ones((4, 2), device=device, requires_grad=True)
    out, arg = ops.scatter_max(src, torch.tensor([2, 0, 2, 0], device=device), 0)
    assert not arg.requires_grad
    assert arg.tolist() == [[1, 1], [4, 4], [0, 0]]
    out.sum().backward()
    assert src.grad.tolist() == [[1, 1], [1, 1], [0, 0], [0, 0]]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("reduce", ["sum", "mean", "min", "max"])
def test_gradient_equals_the_reference(reduce, dtype, device):
    generator = np.random.default_rng(3)
    index = integers(generator, 50, (300,)).to(device)
    src = torch.from_numpy(generator.integers(-9, 9, (300, 37))).to(dtype).to(device)
    upstream = torch.from_numpy(generator.normal(size=(50, 37))).to(dtype).to(device)
    x, y = src.clone().requires_grad_(), src.clone().requires_grad_()
    ops.scatter(x, index, 0, None, 50, reduce).backward(upstream)
    first(getattr(reference, f"scatter_{reduce}")(y, index, 50)).backward(upstream)
    half = dtype in FLOATS[:2]
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-2 if half else 1e-6, atol=0)


# --- torch.library -------------------------------------------------------------------------------


def test_opcheck(device):
    src = torch.randn(11, 6, device=device, requires_grad=True)
    index = torch.tensor([0, 4, 4, 1, 0, 3, 3, 3, 0, 1, 4], device=device)
    check = torch.library.opcheck
    library = torch.ops.voxelpool
    for name in ("max", "min", "sum", "mean", "mul"):
        check(getattr(library, f"scatter_{name}").default, (src, index, 6))
    values = torch.randn(5, 6, device=device, requires_grad=True)
    arg = torch.arange(5, device=device).unsqueeze(1).expand(5, 6)
    check(library.scatter_spread.default, (values, index))
    check(library.scatter_place.default, (values, arg, index))
    check(library.scatter_keys.default, (index.view(1, 11, 1).expand(3, 11, 2), 5))
    check(library.sorted_offsets.default, (index.sort().values, 7))
    offsets = torch.tensor([1, 4, 10], device=device)
    for name in ("max", "min", "sum", "mean"):
        check(getattr(library, f"segment_{name}").default, (src, offsets, True))


def everything(src, index, indptr, size):
    columns = index.unsqueeze(1).expand_as(src).contiguous()
    total = ops.scatter_max(src * 2, index, 0, dim_size=size)[0]
    total = total + ops.scatter_min(src, columns, 0, dim_size=size)[0]
    total = total + ops.scatter_sum(src, index, 0, dim_size=size)
    total = total + ops.scatter_mean(src, index, 0, torch.ones_like(total))
    total = total + ops.scatter_mul(src, index, 0, dim_size=size)
    total = total + ops.scatter_sum(src.t(), index, -1, dim_size=size).t()
    total = total + ops.scatter_logsumexp(src, index, 0, dim_size=size)
    total = total + ops.scatter_std(src, index, 0, dim_size=size)
    total = total + ops.segment_coo(src, index.sort().values, dim_size=size, reduce="mean")
    back = ops.gather_coo(total, index) + ops.scatter_softmax(src, index, 0, size)
    back = back + ops.scatter_log_softmax(src, index, 0, dim_size=size)
    runs = ops.segment_max_csr(back, indptr)[0]
    return total.sum() + (runs * ops.segment_csr(src, indptr, reduce="mean")).sum()


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(dynamic, device):
    torch._dynamo.reset()
    compiled = torch.compile(everything, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for rows in (11, 17):
        generator = torch.Generator().manual_seed(rows)
        index = torch.randint(0, 4, (rows,), generator=generator).to(device)
        index[:8] = torch.arange(8, device=device) // 2
        indptr = torch.tensor([0, 3, 3, rows - 1], device=device)
        a = torch.randn(rows, 6, generator=generator).to(device).requires_grad_()
        b = a.detach().clone().requires_grad_()
        expected, actual = everything(a, index, indptr, 4), compiled(b, index, indptr, 4)
        expected.backward()
        actual.backward()
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(b.grad, a.grad)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_captured_in_a_cuda_graph():
    src = torch.randn(5000, 64, device="cuda")
    index = torch.randint(0, 300, (5000,), device="cuda")

    def run():
        largest, arg = ops.scatter_max(src, index, 0, dim_size=300)
        return largest, arg, ops.scatter_mean(src, index, 0, dim_size=300)

    for _ in range(3):
        run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    src.copy_(torch.randn_like(src))
    index.copy_(torch.randint_like(index, 300))
    graph.replay()
    for a, b in zip(captured, run(), strict=True):
        assert torch.equal(a, b)


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-1, 3, 2**40, -(2**62)])
def test_an_index_out_of_range_is_named(value):
    src, index = torch.randn(50, 2), torch.zeros(50, dtype=torch.int64)
    index[17] = value
    message = rf"index\[17\] is {value}, expected 0 to 2"
    for reduce in REDUCES:
        with pytest.raises(ValueError, match=message):
            ops.scatter(src, index, 0, dim_size=3, reduce=reduce)
        with pytest.raises(ValueError, match=message):
            getattr(reference, f"scatter_{reduce}")(src, index, 3)
    with pytest.raises(ValueError, match=message):
        ops.gather_coo(src[:3], index)
    with pytest.raises(ValueError, match=message):
        torch.ops.voxelpool.scatter_place(src[:3], torch.zeros(3, 2).long(), index)
    if value >= 0:
        with pytest.raises(ValueError, match=message):
            ops.segment_coo(src[:18], index[:18], dim_size=3)
    many = torch.zeros(4, 50, dtype=torch.int64)
    many[2, 17] = value
    message = rf"index\[2, 17\] is {value}, expected 0 to 2"
    for run in (ops.scatter_sum, reference_keys):
        with pytest.raises(ValueError, match=message):
            run(torch.randn(4, 50), many, 1, dim_size=3)
    with pytest.raises(ValueError, match=r"index\[0\] is 0, expected no entries: there are 0 gr"):
        ops.scatter_sum(src, index, 0, dim_size=0)


def reference_keys(src, index, dim, dim_size):
    return reference.scatter_keys(index.unsqueeze(2), dim_size)


def test_large_index_out_of_range_with_threads():
    src, index = torch.randn(100_000, 1), torch.zeros(100_000, dtype=torch.int64)
    index[60_000], index[90_000] = 5, 6
    with pytest.raises(ValueError, match=r"index\[60000\] is 5, expected 0 to 4"):
        ops.scatter_max(src, index, 0, dim_size=5)
    with pytest.raises(ValueError, match=r"index\[60000, 0\] is 5"):
        ops.scatter_max(src.expand(-1, 2), torch.stack([index, index], 1), 0, dim_size=5)


def test_an_index_that_is_not_sorted_is_named():
    with pytest.raises(ValueError, match=r"index\[2\] is 0, expected at least the entry before it"):
        ops.segment_coo(torch.ones(3), torch.tensor([0, 1, 0]))
    with pytest.raises(ValueError, match=r"index\[2\] is 0, expected at least the entry before it"):
        reference.sorted_offsets(torch.tensor([0, 1, 0]), 2)


def test_wrong_arguments_are_named():
    src, index = torch.zeros(4, 2), torch.tensor([0, 1, 1, 0])
    with pytest.raises(TypeError, match=r"index must be a torch.Tensor, got list"):
        ops.scatter(src, [0, 1], 0)
    with pytest.raises(TypeError, match=r"src must be floating point or integer, got torch.bool"):
        ops.scatter(src.bool(), index, 0)
    with pytest.raises(TypeError, match=r"index must hold integers, got torch.float32"):
        ops.scatter(src, index.float(), 0)
    with pytest.raises(ValueError, match=r"dim must be one of the 2 dimensions of src, got 2"):
        ops.scatter(src, index, 2)
    with pytest.raises(ValueError, match=r"index of shape \(4,\) does not broadcast along dim 1"):
        ops.scatter(src, index)
    with pytest.raises(ValueError, match=r"index of shape \(4, 2, 1\) does not broadcast"):
        ops.scatter(src, torch.zeros(4, 2, 1).long(), 0)
    with pytest.raises(ValueError, match=r"out must have shape \(5, 2\), got \(5, 3\)"):
        ops.scatter(src, index, 0, torch.zeros(5, 3))
    with pytest.raises(TypeError, match=r"out must be of the dtype of src, torch.float32, got"):
        ops.scatter(src, index, 0, torch.zeros(5, 2).double())
    with pytest.raises(ValueError, match=r"dim_size must be at least 0, got -1"):
        ops.scatter(src, index, 0, dim_size=-1)
    with pytest.raises(ValueError, match=r"src is on cpu and index on meta"):
        ops.scatter(src, index.to("meta"), 0)
    for run in (ops.scatter, ops.segment_coo, ops.segment_csr):
        with pytest.raises(ValueError, match=r"reduce must be sum, add, .*, got 'median'"):
            run(src, index, reduce="median")
    with pytest.raises(ValueError, match=r"indptr must have shape \(..., K \+ 1\)"):
        ops.segment_csr(src, torch.zeros(3, 2).long())
    with pytest.raises(TypeError, match=r"indptr must hold integers"):
        ops.segment_csr(src, torch.zeros(3))
    with pytest.raises(ValueError, match=r"offsets\[1\] is 5, expected at most 4"):
        ops.segment_csr(src, torch.tensor([0, 5]))
    with pytest.raises(ValueError, match=r"indptr must hold 0 to 2, the entries of src, got 3"):
        ops.segment_csr(src, torch.tensor([0, 3]).expand(4, 2))
    with pytest.raises(ValueError, match=r"src must have 1 entries along dim 0"):
        ops.gather_csr(src, torch.tensor([0, 5]))
    with pytest.raises(ValueError, match=r"out must have shape \(1, 2\), got \(2, 2\)"):
        ops.segment_csr(src, torch.tensor([0, 4]), torch.zeros(2, 2))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_index_out_of_range_on_cuda(monkeypatch):
    src = torch.arange(6.0, device="cuda").requires_grad_()
    index = torch.tensor([0, 7, 1, -1, 1, 2**40], device="cuda")
    out, arg = ops.scatter_max(src, index, 0, dim_size=2)
    assert (out.tolist(), arg.tolist()) == ([0, 4], [0, 4])
    assert ops.scatter_sum(src, index, 0, dim_size=2).tolist() == [0, 6]
    (out.sum() + ops.scatter_mean(src, index, 0, dim_size=2).sum()).backward()
    assert src.grad.tolist() == [2, 0, 0.5, 0, 1.5, 0]
    wide = torch.stack([index, index], 1)
    twice = ops.scatter_sum(src.unsqueeze(1).expand(6, 2), wide, 0, dim_size=2)
    assert twice.tolist() == [[0, 0], [6, 6]]
    monkeypatch.setenv("VOXELPOOL_DEBUG", "1")
    with pytest.raises(ValueError, match=r"index\[1\] is 7, expected 0 to 1"):
        ops.scatter_max(src, index, 0, dim_size=2)


# --- torch-scatter's surface ---------------------------------------------------------------------

SIGNATURES = {
    "scatter": "src index dim=-1 out=None dim_size=None reduce='sum'",
    "scatter_sum": "src index dim=-1 out=None dim_size=None",
    "scatter_add": "src index dim=-1 out=None dim_size=None",
    "scatter_mul": "src index dim=-1 out=None dim_size=None",
    "scatter_mean": "src index dim=-1 out=None dim_size=None",
    "scatter_min": "src index dim=-1 out=None dim_size=None",
    "scatter_max": "src index dim=-1 out=None dim_size=None",
    "segment_sum_csr": "src indptr out=None",
    "segment_add_csr": "src indptr out=None",
    "segment_mean_csr": "src indptr out=None",
    "segment_min_csr": "src indptr out=None",
    "segment_max_csr": "src indptr out=None",
    "segment_csr": "src indptr out=None reduce='sum'",
    "gather_csr": "src indptr out=None",
    "segment_sum_coo": "src index out=None dim_size=None",
    "segment_add_coo": "src index out=None dim_size=None",
    "segment_mean_coo": "src index out=None dim_size=None",
    "segment_min_coo": "src index out=None dim_size=None",
    "segment_max_coo": "src index out=None dim_size=None",
    "segment_coo": "src index out=None dim_size=None reduce='sum'",
    "gather_coo": "src index out=None",
    "scatter_std": "src index dim=-1 out=None dim_size=None unbiased=True",
    "scatter_logsumexp": "src index dim=-1 out=None dim_size=None eps=1e-12",
    "scatter_softmax": "src index dim=-1 dim_size=None",
    "scatter_log_softmax": "src index dim=-1 eps=1e-12 dim_size=None",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature_is_that_of_torch_scatter(name):
    parameters = inspect.signature(getattr(ops, name)).parameters.values()
    words = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters]
    assert " ".join(words) == SIGNATURES[name]
    assert name in ops.__all__
    if "std" in name or "soft" in name or "exp" in name:
        assert getattr(ops.composite, name) is getattr(ops, name)


@pytest.mark.parametrize("name", SIGNATURES)
def test_agrees_with_torch_scatter_where_it_is_installed(name):
    peer = pytest.importorskip("torch_scatter")
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(3, 20, 4, dtype=torch.float64, generator=generator).requires_grad_()
    if "csr" in name:
        places = torch.tensor([[0, 4, 4, 20], [0, 1, 19, 20], [0, 0, 7, 20]])
    else:
        places = torch.randint(0, 3, (3, 20), generator=generator).sort(-1).values
    arguments = {} if "csr" in name or "gather" in name else {"dim_size": 4}
    if name.startswith("scatter"):
        arguments["dim"] = 1
    if name.startswith("gather"):
        a = torch.randn(3, 3, 4, dtype=torch.float64, generator=generator).requires_grad_()
    if "softmax" in name:
        places = places.unsqueeze(-1).expand(a.shape)
    b = a.detach().clone().requires_grad_()
    actual = getattr(ops, name)(a, places, **arguments)
    expected = getattr(importlib.import_module(peer.__name__), name)(b, places, **arguments)
    for x, y in zip(
        actual if isinstance(actual, tuple) else (actual,),
        expected if isinstance(expected, tuple) else (expected,),
        strict=True,
    ):
        torch.testing.assert_close(x, y)
    upstream = torch.randn(first(actual).shape, dtype=torch.float64, generator=generator)
    first(actual).backward(upstream)
    first(expected).backward(upstream)
    torch.testing.assert_close(a.grad, b.grad)
