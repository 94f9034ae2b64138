"""Window and global pooling against loops over cells, written out here."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from voxelpool.nn import GlobalPool, WindowPool

NAN, INF = math.nan, math.inf
KINDS = ("max", "average", "min", "median")


def ramp_map(rows):
    return torch.tensor(rows, dtype=torch.float64)[None, None]


# --- windows -------------------------------------------------------------------------------------


def windows_of(size, kernel, stride, padding, ceil_mode):
    """For each output cell the cells of its window, (position or None) in raster order."""
    starts = []
    for n, k, s, p in zip(size, kernel, stride, padding, strict=True):
        firsts, first = [], -p
        # Floor: windows that end in the padded map. Ceil: those that start in the map or before.
        while first + k <= n + p or (ceil_mode and first < n and firsts and firsts[-1] + k < n + p):
            firsts.append(first)
            first += s
        starts.append(firsts)
    for corner in itertools.product(*starts):
        cells = []
        for offset in itertools.product(*(range(k) for k in kernel)):
            place = tuple(a + b for a, b in zip(corner, offset, strict=True))
            inside = all(0 <= a < n for a, n in zip(place, size, strict=True))
            padded = all(a < n + p for a, n, p in zip(place, size, padding, strict=True))
            if padded:
                cells.append(place if inside else None)
        yield cells


def brute(x, grad, kind, kernel, stride, padding, ceil_mode, count_include_pad):
    """Output and gradient of one (size...) map; ``grad`` has as many numbers as the output."""
    out, to_x = [], torch.zeros_like(x)
    windows = windows_of(x.shape, kernel, stride, padding, ceil_mode)
    for g, cells in zip(grad.flatten().tolist(), windows, strict=True):
        places = [cell for cell in cells if cell is not None]
        values = [x[place].item() for place in places]
        if kind == "average":
            count = len(cells) if count_include_pad else len(places)
            out.append(sum(values) / count)
            for place in places:
                to_x[place] += g / count
            continue
        ordered = sorted(values)
        value = {"max": ordered[-1], "min": ordered[0], "median": ordered[(len(values) - 1) // 2]}
        out.append(value[kind])
        to_x[places[values.index(value[kind])]] += g
    return torch.tensor(out, dtype=x.dtype), to_x


def shapes(dim):
    """(size, kernel, stride, padding) of each axis, a window fitting at least once."""

    @st.composite
    def axis(draw):
        kernel = draw(st.integers(1, 4))
        padding = draw(st.integers(0, kernel // 2))
        size = draw(st.integers(max(kernel - 2 * padding, 1), 7 if dim == 2 else 5))
        return size, kernel, draw(st.integers(1, 4)), padding

    return st.tuples(*[axis() for _ in range(dim)]).map(lambda axes: tuple(zip(*axes, strict=True)))


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_windows_against_loops(kind, dim, data):
    """Forward and backward, ties included (few distinct values): the first cell wins."""
    size, kernel, stride, padding = data.draw(shapes(dim))
    ceil_mode, count = data.draw(st.booleans()), data.draw(st.booleans())
    pool = WindowPool(dim, kind, kernel, stride, padding, ceil_mode, count_include_pad=count)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    x = torch.randint(-3, 4, (1, 2, *size), generator=generator).double().requires_grad_()
    out = pool(x)
    assert out.shape == (1, 2, *pool.output_size(size))
    grad = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    out.backward(grad)
    for channel in range(2):
        shape = (kernel, stride, padding, ceil_mode, count)
        expected, to_x = brute(x.detach()[0, channel], grad[0, channel], kind, *shape)
        torch.testing.assert_close(out.detach()[0, channel].flatten(), expected)
        torch.testing.assert_close(x.grad[0, channel], to_x)


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_window_gradcheck(device, kind, dim):
    torch.manual_seed(0)
    size = (2, 2, 5, 4, 3)[: dim + 2]
    x = torch.randperm(math.prod(size)).view(size) / 7  # no ties
    x = x.double().to(device).requires_grad_()
    pool = WindowPool(dim, kind, 3, 2, 1, True)
    assert torch.autograd.gradcheck(pool, x)


def test_average_of_the_4x4_map():
    """Windows of 2 x 2, stride 2: 3.75, 1.25, 4, 2."""
    x = ramp_map([[1, 3, 2, 1], [5, 6, 1, 1], [4, 4, 3, 1], [4, 4, 2, 2]])
    assert WindowPool(2, "average", 2, 2)(x).flatten().tolist() == [3.75, 1.25, 4, 2]
    assert WindowPool(2, "average")(x).equal(WindowPool(2, "average", 2, 2)(x))
    assert WindowPool(2, "max")(x).flatten().tolist() == [6, 2, 4, 3]
    assert WindowPool(2, "min")(x).flatten().tolist() == [1, 1, 4, 1]
    assert WindowPool(2, "median")(x).flatten().tolist() == [3, 1, 4, 2]


def test_the_cross_convolved_and_pooled():
    """A 5 x 5 cross under a vertical line of 3; windows of 2 at stride 3, worked by hand."""
    cross = ramp_map([[0, 0, 1, 0, 0]] * 2 + [[1] * 5] + [[0, 0, 1, 0, 0]] * 2)
    line = ramp_map([[0, 1, 0]] * 3)
    edges = F.conv2d(cross, line, padding=1)
    assert edges[0, 0].tolist() == [[0, 0, 2, 0, 0], *[[1, 1, 3, 1, 1]] * 3, [0, 0, 2, 0, 0]]
    expected = {"max": [1, 1, 1, 1], "average": [0.5, 0.5, 0.5, 0.5], "min": [0, 0, 0, 0]}
    for kind, values in expected.items():
        assert WindowPool(2, kind, 2, 3)(edges).flatten().tolist() == values
    # The middle column lies between the windows; one cell of padding brings it in.
    padded = WindowPool(2, "max", 2, 3, 1)(edges)
    assert padded[0, 0].tolist() == [[0, 2], [1, 3]]
    assert WindowPool(2, "max", 2, 3, 0, True)(edges).equal(WindowPool(2, "max", 2, 3)(edges))


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("kind", ["max", "min", "median"])
def test_a_tie_goes_to_the_first_cell(device, kind, dim):
    x = torch.ones((1, 1, 4, 4, 4)[: dim + 2], device=device, requires_grad=True)
    WindowPool(dim, kind, 2)(x).sum().backward()
    first = torch.zeros_like(x)
    first[(..., *[slice(None, None, 2)] * dim)] = 1
    assert torch.equal(x.grad, first)
    x.grad = None
    WindowPool(dim, kind, 3, 1, 1)(x).sum().backward()  # overlapping windows add up
    assert x.grad.sum() == 4**dim
    assert x.grad[(0, 0, *[0] * dim)] == 2**dim


@pytest.mark.parametrize("kind", KINDS)
def test_nan_stays_in_the_windows_that_see_it(device, kind):
    x = torch.randn(1, 1, 6, 6, device=device)
    x[0, 0, 2, 3] = NAN
    out = WindowPool(2, kind, 3, 3)(x)
    assert out.isnan()[0, 0].tolist() == [[False, True], [False, False]]


@pytest.mark.parametrize("kind", ["max", "min", "median"])
def test_padding_is_no_value(device, kind):
    """All below (above) 0, and the map's own infinities."""
    x = torch.full((1, 1, 3, 3), -2.0 if kind == "max" else 2.0, device=device)
    assert WindowPool(2, kind, 3, 1, 1)(x).equal(x)
    for value in (INF, -INF):
        x = torch.full((1, 1, 3, 3), value, device=device, requires_grad=True)
        out = WindowPool(2, kind, 3, 1, 1)(x)
        assert out.equal(x)
        out.sum().backward()
        assert x.grad.sum() == 9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_window_dtypes_and_layouts(device, kind, dtype):
    x = torch.randn(2, 3, 6, 5, device=device).to(dtype)
    pool = WindowPool(2, kind, (3, 2), (2, 1), (1, 0))
    out = pool(x)
    assert out.dtype == dtype and out.shape == (2, 3, 3, 4)
    channels_last = pool(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(channels_last, out)
    assert pool(x[:0]).shape == (0, 3, 3, 4)


def test_impossible_windows_are_errors():
    for arguments, message in [
        ((4,), "dim must be 2 or 3, got 4"),
        ((2, "mode"), "kind must be max, average, min or median, got 'mode'"),
        ((2, "max", 0), "kernel must be one or 2 numbers from 1 up, got 0"),
        ((2, "max", (2, 2, 2)), r"kernel .* got \(2, 2, 2\)"),
        ((2, "max", 2, 0), "stride .* from 1 up, got 0"),
        ((2, "max", 3, 1, 2), r"at most half the kernel, got \(2, 2\) for \(3, 3\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            WindowPool(*arguments)
    with pytest.raises(ValueError, match=r"\(B, C, H, W\), got \(3, 4, 4\)"):
        WindowPool(2)(torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match=r"a map of \(2, 4\) .* holds no window of \(3, 3\)"):
        WindowPool(2, "median", 3)(torch.zeros(1, 1, 2, 4))


# --- the whole map -------------------------------------------------------------------------------


def global_oracle(kind, cells, power=3.0):
    """(C',) of one element's (C, n) cells."""
    if cells.shape[1] == 0:
        return cells.new_zeros(len(cells) * (2 if kind == "both" else 1))
    largest = torch.stack([max(row) for row in cells])
    mean = cells.sum(1) / cells.shape[1]
    if kind == "generalised":
        raised = [sum(max(v.item(), 1e-6) ** power for v in row) / len(row) for row in cells]
        return cells.new_tensor([value ** (1 / power) for value in raised])
    return {"max": largest, "average": mean, "both": torch.cat([largest, mean])}[kind]


@pytest.mark.parametrize("size", [(4,), (3, 5), (2, 3, 4)])
@pytest.mark.parametrize("kind", ["max", "average", "both", "generalised"])
def test_global_of_maps_and_of_voxels(device, kind, size):
    """Dense, dense with a mask, and the mask's voxels in any order; one element has none."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, *size, generator=generator, dtype=torch.float64)
    mask = torch.rand(3, *size, generator=generator) < 0.5
    mask[1] = False
    mask[0].view(-1)[0] = True
    pool = GlobalPool(kind).to(device)
    expected = torch.stack([global_oracle(kind, x[b].flatten(1)) for b in range(3)])
    out = pool(x.to(device))
    assert out.shape == (3, pool.out_channels(4))
    torch.testing.assert_close(out.cpu(), expected)
    expected = torch.stack([global_oracle(kind, x[b][:, mask[b]]) for b in range(3)])
    torch.testing.assert_close(pool(x.to(device), mask.to(device)).cpu(), expected)

    places = mask.nonzero()
    features = x.movedim(1, -1)[mask]
    coords = F.pad(places, (0, 4 - places.shape[1])).int()
    order = torch.randperm(len(coords), generator=generator)
    features, coords = features[order].to(device), coords[order].to(device)
    torch.testing.assert_close(pool.forward_voxels(features, coords, 3).cpu(), expected)
    none = pool.forward_voxels(features[:0], coords[:0], 2)
    assert torch.equal(none, torch.zeros_like(none)) and len(none) == 2


@pytest.mark.parametrize("kind", ["max", "average", "both", "generalised"])
def test_global_gradients(device, kind):
    pool = GlobalPool(kind).double().to(device)
    x = (torch.randperm(24).view(2, 2, 2, 3) / 5 + 0.1).double().to(device).requires_grad_()
    mask = torch.zeros(2, 2, 3, dtype=torch.bool, device=device)
    mask[0, :, 1] = True
    coords = torch.tensor([[1, 0, 0, 0], [1, 0, 0, 1], [3, 0, 0, 0]], device=device)
    features = x.detach().flatten()[:6].view(3, 2).requires_grad_()
    assert torch.autograd.gradcheck(pool, x)
    assert torch.autograd.gradcheck(lambda x: pool(x, mask), x)
    assert torch.autograd.gradcheck(lambda f: pool.forward_voxels(f, coords, 4), features)
    for parameter in pool.parameters():
        out = pool.forward_voxels(features, coords, 4)
        assert torch.autograd.grad(out.sum(), parameter)[0].isfinite()


def test_global_maximum_gives_its_gradient_to_the_first():
    x = torch.ones(1, 2, 3, 3, requires_grad=True)
    GlobalPool("max")(x).sum().backward()
    assert x.grad.flatten(2).tolist() == [[[1.0] + [0.0] * 8] * 2]


def test_generalised_mean_lies_between_average_and_maximum():
    x = torch.rand(2, 3, 8, 8) + 0.1
    last = GlobalPool("average")(x)
    torch.testing.assert_close(GlobalPool("generalised", power=1)(x), last)
    for power in (2, 4, 16):
        out = GlobalPool("generalised", power=power)(x)
        assert (out > last).all() and (out < GlobalPool("max")(x)).all()
        last = out
    assert len(list(GlobalPool("generalised", learn_power=False).parameters())) == 0
    assert sum(p.numel() for p in GlobalPool("generalised").parameters()) == 1


@pytest.mark.parametrize("kind", ["max", "average", "both", "generalised"])
def test_global_half_types(device, kind):
    x = torch.rand(2, 3, 40, 40, device=device) + 0.5
    mask = torch.rand(2, 40, 40, device=device) < 0.9
    for m in (None, mask):
        out = GlobalPool(kind).to(device)(x.bfloat16(), m)
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(
            out.float(), GlobalPool(kind).to(device)(x, m), rtol=0.02, atol=0
        )


def test_global_of_no_cells_and_impossible_arguments():
    for kind in ("max", "average", "both", "generalised"):
        assert GlobalPool(kind)(torch.zeros(2, 3, 0, 4)).abs().sum() == 0
    with pytest.raises(ValueError, match="kind must be max, average, both or generalised"):
        GlobalPool("sum")
    with pytest.raises(ValueError, match="must be positive, got 0 and"):
        GlobalPool("generalised", power=0)
    with pytest.raises(ValueError, match=r"\(B, C, ...\) .* got \(2, 3\)"):
        GlobalPool()(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"mask must be \(2, 4, 4\), got \(2, 1, 4, 4\)"):
        GlobalPool()(torch.zeros(2, 3, 4, 4), torch.ones(2, 1, 4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"coords \(K, 4\), got \(2, 3\) and \(2, 3\)"):
        GlobalPool().forward_voxels(torch.zeros(2, 3), torch.zeros(2, 3), 1)


# --- compiled ------------------------------------------------------------------------------------


class Some(nn.Module):
    """Those that are more than one op of torch's."""

    def __init__(self):
        super().__init__()
        self.window = WindowPool(2, "median", 3, 2, 1, True)
        self.whole = nn.ModuleList(GlobalPool(kind) for kind in ("both", "generalised"))

    def forward(self, x, mask, coords):
        rows = x.flatten(2).transpose(1, 2).flatten(0, 1)
        return [
            self.window(x),
            *(pool(x, mask) for pool in self.whole),
            *(pool.forward_voxels(rows, coords, 2) for pool in self.whole),
        ]


@pytest.mark.slow
def test_compiles_in_one_graph(device):
    model = Some().to(device)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for height, width in ((7, 6), (9, 11)):
        x = torch.rand(2, 3, height, width, device=device)
        mask = x[:, 0] > 0.3
        coords = torch.zeros(2 * height * width, 4, dtype=torch.int32, device=device)
        coords[height * width :, 0] = 1
        arguments = (x, mask, coords)
        for out, expected in zip(compiled(*arguments), model(*arguments), strict=True):
            torch.testing.assert_close(out, expected)
