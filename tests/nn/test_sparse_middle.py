"""Sparse layers against dense convolutions at the same cells, and the two back ends."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch.nn import functional as F

from voxelpool.datasets.kitti import read_sweep
from voxelpool.errors import VoxelpoolError
from voxelpool.nn import RPN, SparseCells, SparseConv, SparseMiddle, SparseStage
from voxelpool.nn import sparse as module
from voxelpool.ops import segment_mean, voxelize
from voxelpool.structures import VoxelGrid

SHAPE = (9, 14, 13)
SMALL = (
    SparseStage(4, 2),
    SparseStage(6, 2, (2, 2, 2)),
    SparseStage(8, 1, (2, 2, 2), padding=(0, 1, 1)),
    SparseStage(8, 0, (2, 1, 1), kernel=(2, 1, 1), padding=(0, 0, 0)),
)


@pytest.fixture
def spconv():
    fault = module.spconv_fault("cpu")
    if fault:
        pytest.skip(f"spconv cannot be used: {fault}")


def voxel_sets(shape):
    """By name, cells and the number of frames; some have none in a frame."""
    generator = torch.Generator().manual_seed(0)
    occupied = torch.rand((3, *shape), generator=generator) < 0.12
    occupied[1] = False
    corners = itertools.product(*[[0, n - 1] for n in shape])
    return {
        "none": (torch.empty((0, 4), dtype=torch.int32), 2),
        "one": (torch.tensor([[0, 4, 5, 6]], dtype=torch.int32), 1),
        "an empty frame of three": (occupied.nonzero().int(), 3),
        "every border": (torch.tensor([(0, *cell) for cell in corners]).int(), 1),
        "all cells": (torch.ones((1, *shape)).nonzero().int(), 1),
    }


SETS = ["none", "one", "an empty frame of three", "every border", "all cells"]


def to_dense(features, coords, batch_size, shape):
    dense = features.new_zeros(batch_size, features.shape[1], *shape)
    batch, z, y, x = coords.long().unbind(1)
    dense[batch, :, z, y, x] = features
    return dense


def dense_middle(middle, features, coords, batch_size):
    """SparseMiddle in training or evaluation, on dense maps that are masked after every layer."""
    shape = middle.grid_shape
    x = to_dense(features, coords, batch_size, shape)
    active = to_dense(torch.ones_like(features[:, :1]), coords, batch_size, shape)
    for conv, norm in zip(middle.convs, middle.norms, strict=True):
        weight = conv.weight.permute(0, 4, 1, 2, 3)
        x = F.conv3d(x, weight, None, conv.stride, conv.padding)
        if not conv.subm:
            ones = torch.ones(1, 1, *conv.kernel, device=x.device, dtype=x.dtype)
            active = (F.conv3d(active, ones, None, conv.stride, conv.padding) > 0).to(x)
        where = active[:, 0].bool()
        rows = x.permute(0, 2, 3, 4, 1)[where]
        batch_statistics = norm.training and len(rows) > 1
        rows = F.batch_norm(
            rows,
            None if batch_statistics else norm.running_mean.clone(),
            None if batch_statistics else norm.running_var.clone(),
            norm.weight,
            norm.bias,
            batch_statistics,
            eps=norm.eps,
        )
        x = to_dense(rows.relu(), where.nonzero(), batch_size, x.shape[2:])
    return x.flatten(1, 2)


def small_middle(backend="native", stages=SMALL, in_channels=4):
    torch.manual_seed(0)
    middle = SparseMiddle(
        in_channels, stages, grid_shape=(SHAPE[0] - 1, *SHAPE[1:]), backend=backend
    )
    for norm in middle.norms:
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.uniform_(norm.bias, -0.2, 0.5)
        torch.nn.init.uniform_(norm.running_mean, -0.2, 0.2)
        torch.nn.init.uniform_(norm.running_var, 0.1, 0.5)
    return middle


def random_features(coords, channels=4, dtype=torch.float32):
    return torch.randn(len(coords), channels, generator=torch.Generator().manual_seed(1)).to(dtype)


def output_and_gradients(run, features, parameters):
    features = features.clone().requires_grad_()
    out = run(features)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).view_as(out)
    inputs = [features, *parameters]
    grads = torch.autograd.grad((out * weight).sum(), inputs, allow_unused=True)
    zeros = map(torch.zeros_like, inputs)
    return [out, *(z if g is None else g for g, z in zip(grads, zeros, strict=True))]


def assert_all_near(ours, theirs, tolerance):
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        scale = float(b.detach().abs().max()) if b.numel() else 0.0
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(scale, 1e-3))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("training", [True, False])
def test_middle_equals_dense_layers_on_masked_maps(device, name, training):
    """In float64: the output and every gradient."""
    coords, batch_size = (x.to(device) if hasattr(x, "to") else x for x in voxel_sets(SHAPE)[name])
    middle = small_middle().double().to(device).train(training)
    features = random_features(coords.cpu(), dtype=torch.float64).to(device)
    expected = output_and_gradients(
        lambda x: dense_middle(middle, x, coords, batch_size), features, middle.parameters()
    )
    found = output_and_gradients(
        lambda x: middle(x, coords, batch_size), features, middle.parameters()
    )
    assert found[0].shape == (batch_size, middle.out_channels, *middle.out_size)
    assert_all_near(found, expected, 1e-9)


@pytest.mark.parametrize("name", SETS)
def test_inference_folds_batch_norm(device, name):
    coords, batch_size = voxel_sets(SHAPE)[name]
    middle = small_middle().to(device).eval()
    features = random_features(coords).to(device)
    coords = coords.to(device)
    expected = middle(features, coords, batch_size)
    with torch.no_grad():
        out = middle(features, coords, batch_size)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("training", [True, False])
def test_back_ends_agree(spconv, name, training):
    coords, batch_size = voxel_sets(SHAPE)[name]
    features = random_features(coords)
    results = []
    for backend in ("native", "spconv"):
        middle = small_middle(backend).train(training)
        assert middle.backend == backend
        results.append(
            output_and_gradients(
                lambda x, net=middle: net(x, coords, batch_size), features, middle.parameters()
            )
            + [norm.running_var for norm in middle.norms]
        )
    assert_all_near(*results, 1e-4)


@pytest.mark.parametrize("kernel", [(1, 1, 1), (3, 3, 3), (2, 3, 1)])
@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 1, 3)])
@pytest.mark.parametrize("padding", [(0, 0, 0), (0, 1, 2)])
def test_a_convolution_in_both_back_ends(spconv, kernel, stride, padding):
    from spconv.pytorch import SparseConvTensor

    if kernel == (1, 1, 1) and stride == (1, 1, 1) and any(padding):
        pytest.skip("spconv refuses a kernel of one with padding")
    coords, batch_size = voxel_sets(SHAPE)["an empty frame of three"]
    torch.manual_seed(0)
    conv = SparseConv(4, 5, kernel, stride, padding)
    features = random_features(coords).requires_grad_()
    rows, cells = conv(features, SparseCells(coords, batch_size, SHAPE))
    x = SparseConvTensor(features, coords.contiguous(), list(SHAPE), batch_size)
    theirs = conv.spconv(x, "0")
    assert theirs.spatial_shape == list(cells.shape)
    order = torch.argsort(
        (theirs.indices.long() * torch.tensor([1 << 30, 1 << 20, 1 << 10, 1])).sum(1)
    )
    assert torch.equal(theirs.indices[order], cells.coords)
    torch.testing.assert_close(rows, theirs.features[order], rtol=1e-5, atol=1e-6)
    weight = torch.randn_like(rows)
    ours = torch.autograd.grad(rows, [features, conv.weight], weight)
    theirs = torch.autograd.grad(theirs.features[order], [features, conv.weight], weight)
    assert_all_near(ours, theirs, 1e-5)


def test_gradcheck():
    coords, batch_size = voxel_sets(SHAPE)["every border"]
    torch.manual_seed(0)
    cells = SparseCells(coords, batch_size, SHAPE)
    features = random_features(coords, 2, torch.float64).requires_grad_()
    for options in ({"subm": True}, {"stride": (2, 2, 2)}):
        conv = SparseConv(2, 3, **options).double()

        def run(x, weight, conv=conv):
            return torch.func.functional_call(conv, {"weight": weight}, (x, cells))[0]

        weight = conv.weight.detach().requires_grad_()
        assert torch.autograd.gradcheck(run, (features, weight))


def test_layers_at_the_same_cells_share_a_table(monkeypatch):
    calls = []
    real = module.sparse_table
    monkeypatch.setattr(module, "sparse_table", lambda *a: calls.append(0) or real(*a))
    coords, batch_size = voxel_sets(SHAPE)["an empty frame of three"]
    small_middle()(random_features(coords), coords, batch_size)
    submanifold = sum(stage.layers > 0 for stage in SMALL)
    assert len(calls) == submanifold + sum(stage.stride is not None for stage in SMALL)


def test_threads_do_not_change_a_bit():
    coords, batch_size = voxel_sets(SHAPE)["an empty frame of three"]
    middle, features = small_middle().train(), random_features(coords)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(
                [
                    *middle.convs[0].norm_relu(
                        features, SparseCells(coords, batch_size, SHAPE), middle.norms[0].eval()
                    )[:1],
                    middle.eval()(features, coords, batch_size),
                ]
            )
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_frame_gives_the_same_alone_and_in_a_batch():
    coords, batch_size = voxel_sets(SHAPE)["an empty frame of three"]
    middle, features = small_middle().eval(), random_features(coords)
    with torch.no_grad():
        together = middle(features, coords, batch_size)
        for frame in range(batch_size):
            chosen = coords[:, 0] == frame
            alone = coords[chosen].clone()
            alone[:, 0] = 0
            assert torch.equal(middle(features[chosen], alone, 1)[0], together[frame])
    assert not together[1].any(), "an empty frame is zeros"


@pytest.mark.parametrize("name", SETS)
def test_a_network_may_go_on_with_rows(device, name):
    coords, batch_size = voxel_sets(SHAPE)[name]
    middle = small_middle().to(device).train()
    assert middle.runs_on_rows(torch.empty(0))
    torch.manual_seed(0)
    rpn = RPN(middle.out_channels, layers=(1,), strides=(1,), channels=(6,), upsample_channels=(6,))
    rpn = rpn.to(device).eval()
    arguments = (random_features(coords).to(device), coords.to(device), batch_size)
    expected = rpn(middle(*arguments))
    found = rpn.forward_rows(*middle.forward_rows(*arguments))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_compiles_to_one_graph():
    middle = small_middle("auto").eval()
    torch._dynamo.reset()
    compiled = torch.compile(middle, fullgraph=True, dynamic=True, backend="aot_eager")
    for name in ("an empty frame of three", "every border"):
        coords, batch_size = voxel_sets(SHAPE)[name]
        features = random_features(coords)
        with torch.no_grad():
            expected = middle(features, coords, batch_size)
            torch.testing.assert_close(compiled(features, coords, batch_size), expected)


def test_autocast(device):
    coords, batch_size = voxel_sets(SHAPE)["an empty frame of three"]
    middle, features = small_middle().to(device).eval(), random_features(coords).to(device)
    coords = coords.to(device)
    expected = middle(features, coords, batch_size)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        out = middle(features, coords, batch_size)
    torch.testing.assert_close(out.float(), expected, rtol=0.1, atol=0.1)


def test_named_networks():
    """OpenPCDet's VoxelBackBone8x has (out, z, y, x, in) weights of these shapes."""
    second = SparseMiddle(4, "second", grid_shape=(40, 1600, 1408))
    widths = [(4, 16), (16, 16), (16, 32), (32, 32), (32, 32), (32, 64), (64, 64), (64, 64)]
    widths += [(64, 64)] * 3
    shapes = [(out, 3, 3, 3, width) for width, out in widths] + [(128, 3, 1, 1, 64)]
    assert [tuple(conv.weight.shape) for conv in second.convs] == shapes
    assert [conv.subm for conv in second.convs] == [True, True, *[False, True, True] * 3, False]
    assert (second.out_depth, second.out_channels, second.out_size) == (2, 256, (200, 176))
    assert second.stride == (8, 8)
    two = SparseMiddle(128, "two_stage", grid_shape=(10, 400, 352))
    assert (two.out_depth, two.out_channels, two.out_size) == (2, 128, (400, 352))
    assert two.stride == (1, 1)
    assert SparseMiddle(4, norm_eps=1e-3, norm_momentum=0.01).norms[3].eps == 1e-3


def test_weights_move_between_back_ends(spconv):
    native, other = small_middle("native"), small_middle("spconv")
    assert list(native.state_dict()) == list(other.state_dict())
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    other.load_state_dict(native.state_dict())
    other = copy.deepcopy(other).eval()
    coords, batch_size = voxel_sets(SHAPE)["every border"]
    features = random_features(coords)
    with torch.no_grad():
        torch.testing.assert_close(
            other(features, coords, batch_size), native.eval()(features, coords, batch_size)
        )
        other(features, coords, batch_size)
    assert list(native.state_dict()) == list(other.state_dict())


def test_a_missing_or_broken_spconv_is_named(monkeypatch):
    for fault in ("it cannot be imported", "it is broken"):
        monkeypatch.setattr(module, "spconv_fault", lambda kind, fault=fault: fault)
        with pytest.raises(VoxelpoolError, match=f"backend: spconv cannot be used on cpu: {fault}"):
            small_middle("spconv")
        assert small_middle("auto").backend == "native"
        assert module.resolve_backend("auto", torch.device("cuda")) == "native"
    monkeypatch.setattr(module, "spconv_fault", lambda kind: "")
    assert module.resolve_backend("auto", torch.device("cuda")) == "spconv"
    assert module.resolve_backend("auto", torch.device("cpu")) == "native"


def test_a_build_that_gives_wrong_numbers_is_found(spconv, monkeypatch):
    right = SparseConv.spconv
    monkeypatch.setattr(
        SparseConv, "spconv", lambda *a: (x := right(*a)).replace_feature(1.1 * x.features)
    )
    assert "is wrong by" in module.spconv_fault.__wrapped__("cpu")
    monkeypatch.setattr(SparseConv, "spconv", lambda *a: 1 / 0)
    assert "small convolution fails (ZeroDivisionError" in module.spconv_fault.__wrapped__("cpu")


def test_what_does_not_fit_is_named():
    coords, features = torch.zeros((1, 4), dtype=torch.int32), torch.zeros(1, 4)
    middle = small_middle()
    with pytest.raises(ValueError, match=r"features must be \(K, 4\), got \(1, 3\)"):
        middle(features[:, :3], coords, 1)
    with pytest.raises(ValueError, match=r"coords must be \(1, 4\) for as many"):
        middle(features, coords[:0], 1)
    with pytest.raises(IndexError, match=r"coords\[0\] is \(1, 0, 0, 0\), beyond 1 frames"):
        middle(features, coords + torch.tensor([1, 0, 0, 0], dtype=torch.int32), 1)
    with pytest.raises(ValueError, match=r"coords\[1\] is .*, not behind the cell before"):
        middle(features.repeat(2, 1), coords.repeat(2, 1), 1)
    with pytest.raises(ValueError, match="backend must be one of auto, spconv, native"):
        small_middle("fast")
    with pytest.raises(ValueError, match="stages must be one of second, two_stage, got 'third'"):
        SparseMiddle(4, "third")
    with pytest.raises(ValueError, match="at least one layer"):
        SparseMiddle(4, [])
    with pytest.raises(ValueError, match=r"stage 4 has no output: its convolution gets \(2, "):
        SparseMiddle(4, grid_shape=(8, 64, 64), stages=[*SMALL[:3], SMALL[2]])
    with pytest.raises(ValueError, match="an odd kernel, stride 1"):
        SparseConv(2, 2, (2, 3, 3), padding=(1, 1, 1), subm=True)


@pytest.fixture
def real_voxels(kitti_sample):
    """The voxels of two real sweeps and an empty frame between them, 0.2 x 0.2 x 0.1 m."""
    paths = sorted((kitti_sample / "training" / "velodyne").glob("*.bin"))[:2]
    points = [torch.from_numpy(read_sweep(path)) for path in paths]
    batch = torch.cat([torch.full((len(p),), 2 * i) for i, p in enumerate(points)])
    points = torch.cat(points)
    grid = VoxelGrid((5, -6.4, -3, 17.8, 6.4, 1), (0.2, 0.2, 0.1))
    voxels = voxelize(points, grid, batch=batch, batch_size=3)
    return segment_mean(points[voxels.point_index], voxels.offsets), voxels


@pytest.mark.parametrize("other", ["dense", "spconv"])
def test_real_voxels(real_voxels, other, request):
    features, voxels = real_voxels
    middle = SparseMiddle(4, SMALL, grid_shape=voxels.grid.shape, backend="native")
    arguments = (voxels.coords, voxels.batch_size)
    if other == "spconv":
        request.getfixturevalue("spconv")
        theirs = SparseMiddle(4, SMALL, grid_shape=voxels.grid.shape, backend="spconv")
        theirs.load_state_dict(middle.state_dict())
        middle, theirs, tolerance = middle.eval(), theirs.eval(), 1e-4
    else:
        middle, features, tolerance = middle.double(), features.double(), 1e-8

        def theirs(x, coords, batch_size):
            return dense_middle(middle, x, coords, batch_size)

    weights = list(middle.parameters())
    expected = output_and_gradients(
        lambda x: theirs(x, *arguments),
        features,
        weights if other == "dense" else theirs.parameters(),
    )
    found = output_and_gradients(lambda x: middle(x, *arguments), features, weights)
    assert found[0].any(dim=1).sum() > 500
    assert_all_near(found, expected, tolerance)


@pytest.mark.parametrize(
    ("stages", "voxel_size"), [("second", (0.05, 0.05, 0.1)), ("two_stage", (0.2, 0.2, 0.4))]
)
def test_named_networks_on_a_real_sweep(spconv, kitti_sample, stages, voxel_size):
    path = min((kitti_sample / "training" / "velodyne").glob("*.bin"))
    points = torch.from_numpy(read_sweep(path))
    grid = VoxelGrid((0, -40, -3, 70.4, 40, 1), voxel_size)
    voxels = voxelize(points, grid, max_points=5, max_voxels=20_000)
    features = segment_mean(points[voxels.point_index], voxels.offsets)
    results = []
    for backend in ("native", "spconv"):
        torch.manual_seed(0)
        middle = SparseMiddle(4, stages, grid_shape=grid.shape, backend=backend).eval()
        with torch.no_grad():
            results.append(middle(features, voxels.coords, 1))
    assert results[0].any(dim=1).sum() > 2000
    assert_all_near(results[:1], results[1:], 1e-5)
