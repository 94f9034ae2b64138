"""Convolutions between rows against sums over taps, written out here."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelpool.ops import conv_table, gather_conv, gather_conv_affine

OPS = torch.ops.voxelpool


def random_table(
    generator: torch.Generator, cells: int, taps: int, rows: int, shared: int
) -> torch.Tensor:
    """Holes, shared rows in any place, and every other row once a tap at most."""
    own = rows - shared
    columns = []
    for _ in range(taps):
        column = torch.randperm(max(own, cells), generator=generator)[:cells]
        column[column >= own] = -1
        columns.append(column)
    table = torch.stack(columns, 1) if columns else torch.zeros(cells, 0, dtype=torch.int64)
    if shared:
        chosen = torch.rand(table.shape, generator=generator) < 0.3
        anywhere = torch.randint(own, rows, table.shape, generator=generator)
        table = torch.where(chosen, anywhere, table)
    return table.masked_fill(torch.rand(table.shape, generator=generator) < 0.2, -1).int()


def oracle(rows, table, weight):
    """Row by row and tap by tap, in float64."""
    padded = torch.cat([rows.double(), rows.new_zeros(1, rows.shape[1]).double()])
    return torch.einsum("ntc,tco->no", padded[table.long()], weight.double())


def problem(cells, taps, rows, channels, out, shared, dtype, device, seed=0):
    generator = torch.Generator().manual_seed(seed)
    table = random_table(generator, cells, taps, rows, shared)
    values = torch.randn(rows, channels, generator=generator).to(dtype)
    weight = torch.randn(out, channels, taps, generator=generator).to(dtype)
    return values.to(device), table.to(device), weight.to(device).permute(2, 1, 0)


SIZES = [
    # cells, taps, rows, channels, out, shared
    (40, 5, 50, 7, 9, 3),
    (400, 27, 300, 64, 64, 10),
    (97, 9, 120, 16, 100, 0),
    (7, 1, 10, 32, 16, 2),
    (130, 3, 90, 10, 130, 5),
    (5, 2, 0, 4, 3, 0),
    (0, 2, 5, 4, 3, 1),
]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def assert_near(out, expected):
    scale = expected.abs().max().item() if expected.numel() else 1.0
    tolerance = TOLERANCE[out.dtype] * max(scale, 1e-3)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", SIZES)
def test_forward_and_gradients(device, size, dtype):
    rows, table, weight = problem(*size, dtype, device)
    rows, weight = rows.requires_grad_(), weight.detach().requires_grad_()
    out = gather_conv(rows, table, weight, shared=size[-1])
    assert out.dtype == dtype and out.shape == (size[0], size[4])
    exact_rows, exact_weight = (x.detach().double().requires_grad_() for x in (rows, weight))
    expected = oracle(exact_rows, table, exact_weight)
    assert_near(out, expected)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    grads = torch.autograd.grad(out, [rows, weight], grad)
    exact = torch.autograd.grad(expected, [exact_rows, exact_weight], grad.double())
    for ours, theirs in zip(grads, exact, strict=True):
        assert_near(ours, theirs)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_affine(device, size, relu, dtype):
    rows, table, weight = problem(*size, dtype, device)
    scale, bias = torch.randn(2, size[4], device=device, dtype=torch.float64).to(dtype)
    out = gather_conv_affine(rows, table, weight, scale, bias, relu=relu)
    expected = oracle(rows, table, weight) * scale.double() + bias.double()
    assert out.dtype == dtype
    assert_near(out, expected.relu() if relu else expected)


@settings(max_examples=40, deadline=None)
@given(
    cells=st.integers(0, 110),
    taps=st.integers(1, 4),
    own=st.integers(0, 60),
    channels=st.integers(1, 20),
    out=st.integers(1, 70),
    shared=st.integers(0, 3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_any_size(cells, taps, own, channels, out, shared, dtype, seed):
    size = (cells, taps, own + shared, channels, out, shared)
    rows, table, weight = problem(*size, dtype, "cpu", seed)
    assert_near(gather_conv(rows, table, weight, shared=shared), oracle(rows, table, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_do_not_change_a_bit(dtype):
    rows, table, weight = problem(400, 27, 300, 64, 70, 10, dtype, "cpu")
    grad = torch.randn(400, 70).to(dtype)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            results.append(
                (
                    gather_conv(rows, table, weight, shared=10),
                    OPS.gather_conv_rows(grad, table, weight, 300, 10),
                    OPS.gather_conv_weight(rows, table, grad),
                )
            )
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_gradcheck_and_opcheck(device):
    rows, table, weight = problem(12, 3, 10, 4, 5, 2, torch.float64, device)
    rows, weight = rows.requires_grad_(), weight.detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda r, w: gather_conv(r, table, w, shared=2), (rows, weight))
    rows, weight = (x.detach().float().requires_grad_() for x in (rows, weight))
    torch.library.opcheck(OPS.gather_conv.default, (rows, table, weight, 2))
    rows, weight, ones = rows.detach(), weight.detach(), torch.ones(5, device=device)
    torch.library.opcheck(OPS.gather_conv_affine.default, (rows, table, weight, ones, ones, True))
    grad = torch.randn(12, 5, device=device)
    torch.library.opcheck(OPS.gather_conv_rows.default, (grad, table, weight, 10, 2))
    torch.library.opcheck(OPS.gather_conv_weight.default, (rows, table, grad))


def test_only_the_gradients_that_are_wanted(device):
    rows, table, weight = problem(12, 3, 10, 4, 5, 2, torch.float32, device)
    rows.requires_grad_()
    gather_conv(rows, table, weight, shared=2).sum().backward()
    assert rows.grad is not None and weight.grad is None


def test_nan_and_infinity_stay_in_their_cells():
    rows = torch.ones(3, 4)
    rows[1] = torch.nan
    rows[2] = torch.inf
    table = torch.tensor([[0], [1], [2], [-1]], dtype=torch.int32)
    out = gather_conv(rows, table, torch.ones(1, 4, 2))
    assert out[0].tolist() == [4, 4] and out[1].isnan().all()
    assert out[2].tolist() == [torch.inf] * 2 and out[3].tolist() == [0, 0]
    one, zero = torch.ones(2), torch.zeros(2)
    out = gather_conv_affine(rows, table, torch.ones(1, 4, 2), one, zero, relu=True)
    assert out[1].isnan().all(), "ReLU hides no NaN"


def test_bad_tables_are_errors_not_wild_reads():
    rows, weight = torch.ones(3, 4), torch.ones(1, 4, 2)
    with pytest.raises(IndexError, match=r"table\[1, 0\] is 3, expected -1 to 2"):
        gather_conv(rows, torch.tensor([[0], [3]], dtype=torch.int32), weight)
    twice = torch.tensor([[0], [0]], dtype=torch.int32)
    out = gather_conv(rows.requires_grad_(), twice, weight)
    with pytest.raises(ValueError, match="row 0 is read twice with tap 0"):
        out.sum().backward()


@pytest.mark.parametrize(
    ("rows", "table", "weight", "error", "message"),
    [
        ([3, 4], torch.zeros(2, 1, dtype=torch.int64), [1, 4, 2], TypeError, "int32, got"),
        ([3, 4], torch.zeros(2, dtype=torch.int32), [1, 4, 2], ValueError, r"table \(N, T\)"),
        ([3, 4], torch.zeros(2, 1, dtype=torch.int32), [2, 4, 2], ValueError, r"\(1, 4, O\)"),
        ([3, 4], torch.zeros(2, 1, dtype=torch.int32), [1, 5, 2], ValueError, r"\(1, 4, O\)"),
    ],
)
def test_what_does_not_fit_is_named(rows, table, weight, error, message):
    with pytest.raises(error, match=message):
        gather_conv(torch.zeros(rows), table, torch.zeros(weight))


def test_more_arguments_that_do_not_fit():
    rows, weight = torch.ones(3, 4), torch.ones(1, 4, 2)
    table = torch.zeros(2, 1, dtype=torch.int32)
    with pytest.raises(TypeError, match="rows must be floating point"):
        gather_conv(rows.long(), table, weight)
    with pytest.raises(ValueError, match="shared must be 0 to 3"):
        gather_conv(rows, table, weight, shared=4)
    with pytest.raises(ValueError, match=r"bias must have shape \(2,\), got \(3,\)"):
        gather_conv_affine(rows, table, weight, torch.ones(2), torch.ones(3), relu=False)


@settings(max_examples=40, deadline=None)
@given(
    batch_size=st.integers(1, 2),
    shape=st.tuples(*[st.integers(1, 5)] * 3),
    kernel=st.tuples(*[st.integers(1, 3)] * 3),
    stride=st.tuples(*[st.integers(1, 3)] * 3),
    padding=st.tuples(*[st.integers(1, 4)] * 3),
    seed=st.integers(0, 99),
)
def test_table_reads_what_a_dense_convolution_reads(
    batch_size, shape, kernel, stride, padding, seed
):
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(-1, 50, (batch_size, *shape), generator=generator).int()
    unfolded = torch.nn.functional.pad(
        index, [p for p in reversed(padding) for _ in range(2)], value=-1
    )
    for axis in range(3):
        unfolded = unfolded.unfold(axis + 1, kernel[axis], stride[axis])
    out = unfolded.shape[1:4]
    expected = unfolded.reshape(batch_size * out[0] * out[1] * out[2], -1)
    cells = torch.randperm(len(expected), generator=generator)[: len(expected) // 2 + 1]
    table = conv_table(index, cells, out, kernel, stride, padding)
    assert table.dtype == torch.int32 and torch.equal(table, expected[cells])


def test_table_op(device):
    index = torch.arange(24, dtype=torch.int32, device=device).view(1, 2, 3, 4)
    cells = torch.arange(0, 24, 5, device=device)
    geometry = ((2, 3, 4), (3, 3, 3), (1, 1, 1), (1, 1, 1))
    torch.library.opcheck(OPS.conv_table.default, (index, cells, *geometry))
    assert conv_table(index, cells[:0], *geometry).shape == (0, 27)
    with pytest.raises(TypeError, match="index must be int32 and cells int64"):
        conv_table(index.long(), cells, *geometry)
    with pytest.raises(ValueError, match=r"\(B, D, H, W\)"):
        conv_table(index[0], cells, *geometry)
    if device.type == "cpu":
        with pytest.raises(IndexError, match=r"cells\[4\] is 24, expected 0 to 23"):
            conv_table(index, cells + 4, *geometry)
