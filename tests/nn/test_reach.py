"""Layers over rows against the same layers over dense maps."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from voxelpool.nn import RPN, DenseMiddle, reach, scatter_to_dense
from voxelpool.nn.reach import Reach

NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)


class Network(nn.Module):
    """Middle layers and RPN, dense or over rows."""

    def __init__(self, shape, channels=3, layers=(1, 2), strides=(2, 2), middle=(4, 5, 3), **kw):
        super().__init__()
        self.middle = DenseMiddle(channels, middle, grid_shape=shape, **kw)
        count = len(layers)
        self.rpn = RPN(
            self.middle.out_channels,
            layers=layers,
            strides=strides,
            channels=(4, 6, 5)[:count],
            upsample_channels=(5, 3, 4)[:count],
            classes_per_anchor=count,
            directions=True,
            unit_upsample_kernel=3 if count == 3 else 1,
        )
        for module in self.modules():
            if isinstance(module, NORMS):  # a blank cell is then not zero
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
                nn.init.uniform_(module.running_mean, -0.5, 0.5)
                nn.init.uniform_(module.running_var, 0.5, 1.5)

    def dense(self, features, coords, batch_size):
        """With torch's own layers on dense maps alone."""
        x = scatter_to_dense(features, coords, batch_size, self.middle.grid_shape)
        for conv, norm in zip(self.middle.convs, self.middle.norms, strict=True):
            x = torch.relu(norm(F.conv3d(x, conv.weight, None, conv.stride, conv.padding)))
        return self.rpn(x.flatten(1, 2))

    def forward(self, features, coords, batch_size):
        return self.rpn.forward_rows(*self.middle.forward_rows(features, coords, batch_size))


def voxels(generator, batch_size, shape, where, channels=3):
    """Features and coords of voxels for a (B, D, H, W) mask."""
    mask = torch.rand(batch_size, *shape, generator=generator) < where
    coords = mask.nonzero().int()
    features = torch.randn(len(coords), channels, generator=generator, dtype=torch.float64)
    return features, coords


def compare(network, features, coords, batch_size, training):
    """Outputs, gradients and running statistics."""
    network = network.to(features.dtype).train(training)
    plain = copy.deepcopy(network)
    features, twin = features.detach().requires_grad_(), features.detach().requires_grad_()
    outs = network(features, coords, batch_size)
    expected = plain.dense(twin, coords, batch_size)
    weights = [torch.randn_like(out) for out in outs]
    for ours, theirs in zip(outs, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    sum((out * w).sum() for out, w in zip(outs, weights, strict=True)).backward()
    sum((out * w).sum() for out, w in zip(expected, weights, strict=True)).backward()
    torch.testing.assert_close(features.grad, twin.grad)
    pairs = zip(network.named_parameters(), plain.parameters(), strict=True)
    for (name, ours), theirs in pairs:
        torch.testing.assert_close(ours.grad, theirs.grad, msg=lambda m, n=name: f"{n}: {m}")
    for ours, theirs in zip(network.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)
    if not training:
        with torch.no_grad():  # BatchNorm folded into the convolutions
            for ours, theirs in zip(network(features, coords, batch_size), expected, strict=True):
                torch.testing.assert_close(ours, theirs)


CORNERS = [(0, 0, 0), (4, 0, 0), (0, 23, 0), (0, 0, 19), (4, 23, 19), (2, 23, 0)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "coords",
    [
        [(0, *cell) for cell in CORNERS],
        [(0, 2, 11, 9)],
        [(1, *cell) for cell in CORNERS[:2]],  # frame 0 is empty
        [],
    ],
    ids=["corners", "middle", "an empty frame", "no voxel"],
)
def test_few_voxels_in_a_large_map(coords, training):
    torch.manual_seed(0)
    coords = torch.tensor(coords, dtype=torch.int32).view(-1, 4)
    features = torch.randn(len(coords), 3, dtype=torch.float64)
    compare(Network((5, 24, 20)), features, coords, 2, training)


@settings(max_examples=15, deadline=None)
@given(
    batch_size=st.integers(1, 3),
    depth=st.integers(5, 10),
    height=st.integers(1, 7),
    width=st.integers(1, 9),
    share=st.sampled_from([0.0, 0.002, 0.02, 0.3, 1.0]),
    strides=st.sampled_from([(2, 2), (1, 2), (4,), (1,)]),
    training=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_grid(batch_size, depth, height, width, share, strides, training, seed):
    smallest = batch_size * height * width * (4 // math.prod(strides)) ** 2
    assume(not training or smallest > 1)  # BatchNorm wants two values to learn from
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    shape = (depth, 4 * height, 4 * width)
    network = Network(shape, layers=(1, 2)[: len(strides)], strides=strides)
    compare(network, *voxels(generator, batch_size, shape, share), batch_size, training)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("strides", "paddings"),
    [
        (((1, 2, 2), (2, 1, 1), (1, 1, 1)), ((1, 1, 1), (1, 1, 1), (0, 1, 1))),
        (((2, 1, 1), (1, 1, 2), (2, 2, 1)), ((1, 0, 2), (0, 2, 1), (1, 1, 0))),
        (((1, 1, 1), (1, 1, 1), (1, 1, 1)), ((0, 3, 4), (1, 4, 3), (0, 0, 0))),
    ],
)
def test_any_stride_and_padding(strides, paddings, training):
    """Padding beyond the kernel too, where a window sees nothing but zeros."""
    torch.manual_seed(0)
    middle = DenseMiddle(3, (4, 5, 3), grid_shape=(6, 26, 23), strides=strides, paddings=paddings)
    middle = middle.double().train(training)
    for norm in middle.norms:
        nn.init.uniform_(norm.bias, -0.5, 0.5)
        nn.init.uniform_(norm.running_mean, -0.5, 0.5)
    for share in (0.002, 1.0):
        features, coords = voxels(torch.Generator().manual_seed(0), 2, (6, 26, 23), share)
        twin = copy.deepcopy(middle)
        twin.use_reach = False
        expected = twin(features, coords, 2)
        torch.testing.assert_close(middle(features, coords, 2), expected)
        x = scatter_to_dense(features, coords, 2, (6, 26, 23))
        for conv, norm in zip(copy.deepcopy(twin).eval().convs, middle.norms, strict=True):
            x = F.conv3d(x, conv.weight, None, conv.stride, conv.padding)
            x = torch.relu(
                F.batch_norm(
                    x,
                    None if training else norm.running_mean,
                    None if training else norm.running_var,
                    norm.weight,
                    norm.bias,
                    training,
                )
            )
        torch.testing.assert_close(expected, x.flatten(1, 2))
        middle.load_state_dict(twin.state_dict())


def test_only_what_voxels_reach_is_computed():
    """One voxel in the middle: its cube, and one row for each kind of cell around."""
    start = Reach.of_voxels(torch.tensor([[0, 2, 20, 20]]), 1, (5, 40, 40))
    layer = ((3, 3, 3), (1, 1, 1), (0, 1, 1))
    table, first = start.through(*layer)
    assert first.shape == (3, 40, 40)
    assert (first.rows, first.shared) == (27 + 3, 3) and table.shape == (30, 27)
    _, second = first.through((3, 3, 3), (1, 1, 1), (1, 1, 1))
    assert (second.rows, second.shared) == (3 * 25 + 3 * 9, 3 * 9)
    assert second.margins == ((1, 1), (1, 1))
    _, third = second.through((3, 3, 3), (1, 2, 2), (0, 1, 1))
    assert third.margins == ((1, 1), (1, 1)) and third.shape == (1, 20, 20)
    assert second.counts().sum() == 3 * 40 * 40
    expected = F.max_pool2d(second.reached.any(1).float(), 3, 2, 1) > 0
    assert torch.equal(third.reached[:, 0], expected)


def test_where_all_is_reached_nothing_is_added():
    coords = torch.ones(2, 3, 8, 8).nonzero()
    reached = Reach.of_voxels(coords, 2, (3, 8, 8))
    for _ in range(2):
        table, reached = reached.through((1, 3, 3), (1, 1, 1), (0, 1, 1))
        assert (reached.rows, reached.shared) == (2 * 3 * 64, 0) and len(table) == 2 * 3 * 64
        assert torch.equal(reached.index.flatten(), torch.arange(384, dtype=torch.int32))


def test_float32_is_near_float64():
    torch.manual_seed(0)
    network = Network((10, 64, 64), 16, middle=(16, 32, 16)).eval()
    features, coords = voxels(torch.Generator().manual_seed(0), 1, (10, 64, 64), 0.003, 16)
    with torch.no_grad():
        exact = copy.deepcopy(network).double().dense(features, coords, 1)
        outs = network(features.float(), coords, 1)
    for out, expected in zip(outs, exact, strict=True):
        assert out.dtype == torch.float32
        assert (out - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("training", [True, False])
def test_bfloat16_is_near(training):
    torch.manual_seed(0)
    network = Network((10, 64, 64), 16, middle=(16, 32, 16)).train(training)
    features, coords = voxels(torch.Generator().manual_seed(0), 1, (10, 64, 64), 0.003, 16)
    exact = copy.deepcopy(network)(features.float(), coords, 1)
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(training):
        outs = network(features.float(), coords, 1)
    for out, expected in zip(outs, exact, strict=True):
        assert out.dtype == torch.float32
        assert (out - expected).norm() < 0.03 * expected.norm()
    if training:
        sum(out.sum() for out in outs).backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_further_training_is_seen():
    """Nothing of the blank cells is kept from call to call."""
    torch.manual_seed(0)
    network = Network((5, 24, 20))
    features, coords = voxels(torch.Generator().manual_seed(0), 1, (5, 24, 20), 0.01)
    features = features.float()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        sum(out.square().mean() for out in network.train()(features, coords, 1)).backward()
        optimizer.step()
        with torch.no_grad():
            outs = network.eval()(features, coords, 1)
            for ours, theirs in zip(outs, network.dense(features, coords, 1), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_batch_norm_of_repeated_rows():
    """A row that counts n times, against the list that holds it n times; gradients too."""
    torch.manual_seed(0)
    rows = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    counts = torch.tensor([1.0, 1, 5, 0, 2, 7])
    norm = nn.BatchNorm2d(3, momentum=None).double()
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias)
    twin = copy.deepcopy(norm)
    repeated = rows.repeat_interleave(counts.long(), 0)
    for _ in range(2):
        out = reach.norm_relu(rows, counts, norm)
        expected = torch.relu(twin(repeated.T[None, :, :, None]))[0, :, :, 0].T
        torch.testing.assert_close(out.repeat_interleave(counts.long(), 0), expected)
    for ours, theirs in zip(norm.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)
    parameters = (rows, norm.weight, norm.bias)
    assert torch.autograd.gradcheck(
        lambda r, w, b: reach._NormRelu.apply(r, counts.double() / 16, w, b, 1e-5, False)[0],
        parameters,
    )


def test_off_on_request_and_while_compiling():
    middle = DenseMiddle(3, (4, 4, 4), grid_shape=(5, 8, 8))
    features = torch.zeros(0, 3)
    assert middle.runs_on_rows(features)
    assert not middle.runs_on_rows(features.to("meta"))
    middle.use_reach = False
    assert not middle.runs_on_rows(features)
