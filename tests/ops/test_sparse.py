"""Tables and reached cells of sparse convolutions against loops over cells, written out here."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelpool.ops import sparse_reach, sparse_table
from voxelpool.ops.reference import sparse as reference
from voxelpool.ops.reference.cells import conv_shape

OPS = torch.ops.voxelpool
SUBMANIFOLD = ((3, 3, 3), (1, 1, 1), (1, 1, 1))
STRIDED = ((3, 3, 3), (2, 2, 2), (1, 1, 1))


def cells_of(batch_size, shape, share, seed=0):
    """(K, 4) int32: some of the cells, in order."""
    occupied = torch.rand((batch_size, *shape), generator=torch.Generator().manual_seed(seed))
    return (occupied < share).nonzero().int()


def brute_reach(coords, shape, kernel, stride, padding):
    """Every output cell one of whose taps reads a voxel."""
    voxels = {tuple(cell) for cell in coords.tolist()}
    out = [
        range((n + 2 * p - k) // s + 1)
        for n, k, s, p in zip(shape, kernel, stride, padding, strict=True)
    ]
    found = []
    for frame in sorted({cell[0] for cell in voxels}):
        for cell in itertools.product(*out):
            corner = [o * s - p for o, s, p in zip(cell, stride, padding, strict=True)]
            taps = itertools.product(
                *(range(c, c + k) for c, k in zip(corner, kernel, strict=True))
            )
            if any((frame, *tap) in voxels for tap in taps):
                found.append((frame, *cell))
    return torch.tensor(found, dtype=torch.int32).view(-1, 4)


def brute_table(coords, out_coords, kernel, stride, padding):
    row_of = {tuple(cell): row for row, cell in enumerate(coords.tolist())}
    table = []
    for frame, *cell in out_coords.tolist():
        corner = [o * s - p for o, s, p in zip(cell, stride, padding, strict=True)]
        for tap in itertools.product(*(range(k) for k in kernel)):
            place = (frame, *(c + t for c, t in zip(corner, tap, strict=True)))
            table.append(row_of.get(place, -1))
    taps = kernel[0] * kernel[1] * kernel[2]
    return torch.tensor(table, dtype=torch.int32).view(-1, taps)


triples = st.tuples(*[st.integers(1, 4)] * 3)


@settings(max_examples=80, deadline=None)
@given(
    batch_size=st.integers(1, 3),
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    kernel=triples,
    stride=triples,
    padding=st.tuples(*[st.integers(0, 3)] * 3),
    share=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    seed=st.integers(0, 99),
)
def test_any_geometry(batch_size, shape, kernel, stride, padding, share, seed):
    coords = cells_of(batch_size, shape, share, seed)
    layer = (kernel, stride, padding)
    after = conv_shape(shape, *layer)
    if min(after) < 1:
        with pytest.raises(ValueError, match="has no output"):
            sparse_reach(coords, batch_size, shape, *layer)
        return
    expected = brute_reach(coords, shape, *layer)
    assert torch.equal(sparse_reach(coords, batch_size, shape, *layer), expected)
    assert torch.equal(reference.sparse_reach(coords, batch_size, shape, *layer), expected)
    anywhere = cells_of(batch_size, after, 0.3, seed + 1)
    for out_coords in (expected, anywhere):
        arguments = (coords, out_coords, batch_size, shape, after, *layer)
        table = brute_table(coords, out_coords, *layer)
        assert torch.equal(sparse_table(*arguments), table)
        assert torch.equal(reference.sparse_table(*arguments), table)


@pytest.mark.parametrize("layer", [SUBMANIFOLD, STRIDED])
def test_voxels_on_every_border(device, layer):
    shape = (5, 6, 7)
    corners = [[0, n - 1] for n in shape]
    coords = torch.tensor(
        [(frame, *cell) for frame in (0, 2) for cell in itertools.product(*corners)]
    ).int()
    expected = brute_reach(coords, shape, *layer)
    after = conv_shape(shape, *layer)
    reached = sparse_reach(coords.to(device), 3, shape, *layer)
    assert reached.dtype == torch.int32 and torch.equal(reached.cpu(), expected)
    table = sparse_table(coords.to(device), reached, 3, shape, after, *layer)
    assert torch.equal(table.cpu(), brute_table(coords, expected, *layer))


def test_grids_that_no_map_would_hold(device):
    """2^61 cells: a voxel at either end, and one in the middle of a line as long as the grid."""
    shape = (1 << 20, 1 << 20, 1 << 20)
    last = (1 << 20) - 1
    coords = torch.tensor([(0, 0, 0, 0), (0, 5, 6, 7), (1, last, last, last)]).int()
    coords = coords.to(device)
    for layer in (SUBMANIFOLD, STRIDED):
        after = conv_shape(shape, *layer)
        reached = sparse_reach(coords, 2, shape, *layer)
        table = sparse_table(coords, reached, 2, shape, after, *layer)
        assert torch.equal(table.cpu(), brute_table(coords.cpu(), reached.cpu(), *layer))
        if layer is STRIDED:
            far = last // 2
            expected = [(0, 0, 0, 0)]
            expected += [(0, *cell) for cell in itertools.product((2, 3), (3,), (3, 4))]
            far_cells = itertools.product(*[(far, far + 1)] * 3)
            expected += [(1, *cell) for cell in far_cells if max(cell) < after[0]]
            assert [tuple(cell) for cell in reached.tolist()] == expected


def test_no_voxels(device):
    coords = torch.empty((0, 4), dtype=torch.int32, device=device)
    some = torch.tensor([[0, 1, 1, 1]], dtype=torch.int32, device=device)
    shape = (4, 4, 4)
    assert sparse_reach(coords, 2, shape, *STRIDED).shape == (0, 4)
    assert sparse_table(coords, coords, 2, shape, shape, *SUBMANIFOLD).shape == (0, 27)
    table = sparse_table(coords, some, 2, shape, shape, *SUBMANIFOLD)
    assert table.tolist() == [[-1] * 27]
    assert sparse_table(some, coords, 2, shape, shape, *SUBMANIFOLD).shape == (0, 27)


def test_threads_do_not_change_a_bit():
    shape = (9, 200, 180)
    coords = cells_of(2, shape, 0.08)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            reached = sparse_reach(coords, 2, shape, *STRIDED)
            after = conv_shape(shape, *STRIDED)
            results.append((reached, sparse_table(coords, reached, 2, shape, after, *STRIDED)))
    finally:
        torch.set_num_threads(before)
    results.append(
        (
            reference.sparse_reach(coords, 2, shape, *STRIDED),
            reference.sparse_table(coords, results[0][0], 2, shape, after, *STRIDED),
        )
    )
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_opcheck(device):
    shape = (4, 5, 6)
    coords = cells_of(2, shape, 0.3).to(device)
    after = conv_shape(shape, *STRIDED)
    reached = sparse_reach(coords, 2, shape, *STRIDED)
    torch.library.opcheck(OPS.sparse_reach.default, (coords, 2, shape, *STRIDED))
    torch.library.opcheck(OPS.sparse_table.default, (coords, reached, 2, shape, after, *STRIDED))


BAD_CELLS = [
    ([[0, 0, 0, 1], [0, 0, 0, 0]], ValueError, r"coords\[1\] is \(0, 0, 0, 0\), not behind"),
    ([[0, 0, 0, 1], [0, 0, 0, 1]], ValueError, r"coords\[1\] is \(0, 0, 0, 1\), not behind"),
    ([[1, 0, 0, 1], [0, 3, 3, 3]], ValueError, r"coords\[1\] is"),
    ([[0, 0, 0, 4]], IndexError, r"coords\[0\] is \(0, 0, 0, 4\), beyond 2 frames of \(4, 4, 4\)"),
    ([[0, 0, -1, 0]], IndexError, r"coords\[0\] is \(0, 0, -1, 0\), beyond"),
    ([[0, 0, 0, 0], [2, 0, 0, 0]], IndexError, r"coords\[1\] is \(2, 0, 0, 0\), beyond"),
]


@pytest.mark.parametrize(("cells", "error", "message"), BAD_CELLS)
@pytest.mark.parametrize("code", ["native", "reference"])
def test_bad_cells_are_named(cells, error, message, code):
    coords, shape = torch.tensor(cells, dtype=torch.int32), (4, 4, 4)
    good = torch.tensor([[0, 0, 0, 0]], dtype=torch.int32)
    if code == "native":
        table, reach = sparse_table, sparse_reach
    else:
        table, reach = reference.sparse_table, reference.sparse_reach
    with pytest.raises(error, match=message):
        reach(coords, 2, shape, *STRIDED)
    with pytest.raises(error, match=message):
        table(coords, good, 2, shape, shape, *SUBMANIFOLD)
    with pytest.raises(error, match=f"out_{message}"):
        table(good, coords, 2, shape, shape, *SUBMANIFOLD)


def test_bad_cells_deep_in_a_list_are_named():
    shape = (20, 50, 50)
    coords = cells_of(1, shape, 0.5)
    coords[4096], coords[4097] = coords[4097].clone(), coords[4096].clone()
    with pytest.raises(ValueError, match=r"coords\[4097\] is"):
        sparse_reach(coords, 1, shape, *STRIDED)
    with pytest.raises(ValueError, match=r"coords\[4097\] is"):
        reference.sparse_reach(coords, 1, shape, *STRIDED)


def test_what_does_not_fit_is_named():
    coords, shape = torch.zeros((1, 4), dtype=torch.int32), (4, 4, 4)

    def fails(error, message, *arguments):
        with pytest.raises(error, match=message):
            sparse_reach(*arguments)

    fails(TypeError, "coords must be int32", coords.long(), 1, shape, *STRIDED)
    fails(TypeError, "coords must be a torch.Tensor", [[0, 0, 0, 0]], 1, shape, *STRIDED)
    fails(ValueError, r"shape \(K, 4\)", coords[:, :3], 1, shape, *STRIDED)
    fails(ValueError, "batch_size must lie in", coords, 0, shape, *STRIDED)
    fails(ValueError, "shape must be three numbers", coords, 1, (4, 4), *STRIDED)
    fails(ValueError, "too many to number", coords, 1, (1 << 30,) * 3, *STRIDED)
    fails(ValueError, "kernel must be three", coords, 1, shape, (0, 1, 1), (1, 1, 1), (0, 0, 0))
    fails(ValueError, "stride must be three", coords, 1, shape, (1, 1, 1), (1, 1, 0), (0, 0, 0))
    fails(ValueError, "padding must be three", coords, 1, shape, (1, 1, 1), (1, 1, 1), (0, 0, -1))
    with pytest.raises(TypeError, match="out_coords must be int32"):
        sparse_table(coords, coords.long(), 1, shape, shape, *SUBMANIFOLD)
