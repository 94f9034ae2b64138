from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from voxelpool.nn import VFE, MeanVFE, PackedBatchNorm, VFELayer, point_features
from voxelpool.nn import vfe as vfe_module
from voxelpool.ops import voxelize
from voxelpool.structures import VoxelGrid, Voxels

GRID = VoxelGrid(range=(0.0, -4.0, -3.0, 8.0, 4.0, 1.0), voxel_size=(0.5, 0.5, 1.0))
T = 7


def make_voxels(device, frames=2, points=400, seed=0):
    generator = torch.Generator().manual_seed(seed)
    low, high = torch.tensor([0.0, -4, -3, 0]), torch.tensor([8.0, 4, 1, 1])
    xyzr = low + (high - low) * torch.rand(frames * points, 4, generator=generator)
    # A crowd in one corner, so that voxels of more than T points exist.
    xyzr[: points // 4, :3] = low[:3] + 0.9 * torch.rand(points // 4, 3, generator=generator)
    batch = torch.arange(frames).repeat_interleave(points)
    voxels = voxelize(
        xyzr.to(device), GRID, batch=batch.to(device), batch_size=frames, max_points=T
    )
    return xyzr.to(device), voxels


def no_voxels(device):
    return voxelize(torch.zeros(0, 4, device=device), GRID)


def naive_features(points, voxels):
    """The paper's code, voxel by voxel."""
    rows = []
    offsets = voxels.offsets.tolist()
    for first, last in pairwise(offsets):
        own = points[voxels.point_index[first:last]]
        rows.append(torch.cat([own, own[:, :3] - own[:, :3].mean(0)], dim=1))
    return torch.cat(rows)


class NaiveVFE:
    """Padded to (K, T, C) and masked, from the weights of a packed VFE."""

    def __init__(self, vfe: VFE) -> None:
        self.vfe = vfe

    def fcn(self, layer, padded, mask):
        norm = layer.norm
        x = padded @ layer.linear.weight.T
        if self.vfe.training:
            real = x[mask]
            mean, var = real.mean(0), real.var(0, unbiased=False)
        else:
            mean, var = norm.running_mean, norm.running_var
        x = (x - mean) / torch.sqrt(var + norm.eps) * norm.weight + norm.bias
        return torch.relu(x)

    def pool(self, x, mask):
        return x.masked_fill(~mask[..., None], -torch.inf).max(dim=1).values

    def __call__(self, padded, mask):
        x = padded
        for layer in self.vfe.layers:
            own = self.fcn(layer.points, x, mask)
            pooled = self.pool(own, mask)[:, None].expand_as(own)
            x = torch.cat([own, pooled], dim=2) * mask[..., None]
        return self.pool(self.fcn(self.vfe.points, x, mask), mask)


def test_center_offsets_are_where_points_lie_in_their_voxels() -> None:
    grid = VoxelGrid((0, -2, -1, 4, 2, 1), (0.5, 1.0, 2.0))
    points = torch.tensor([[0.1, -1.2, 0.3, 0.5], [0.4, -1.9, -0.3, 0.7], [3.6, 1.5, 0.9, 0.1]])
    voxels = voxelize(points, grid)
    code = point_features(points, voxels, center_offsets="xyz")
    assert torch.equal(code[:, :7], point_features(points, voxels))
    expected = torch.tensor([[-0.15, 0.3, 0.3], [0.15, -0.4, -0.3], [-0.15, 0.0, 0.9]])
    torch.testing.assert_close(code[:, 7:], expected, atol=1e-6, rtol=1e-6)


def test_point_features_are_point_and_offset_to_voxel_mean(device):
    points, voxels = make_voxels(device)
    features = point_features(points, voxels)
    assert features.shape == (voxels.point_index.shape[0], 7)
    torch.testing.assert_close(features, naive_features(points, voxels), rtol=0, atol=2e-6)


def test_point_features_keep_further_columns(device):
    points, voxels = make_voxels(device)
    wide = torch.cat([points, points[:, 3:] * 2], dim=1)
    features = point_features(wide, voxels)
    assert features.shape[1] == 8
    torch.testing.assert_close(features[:, 4], 2 * features[:, 3])
    with pytest.raises(ValueError, match=r"\(N, >=3\)"):
        point_features(points[:, :2], voxels)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channels", [(8, 16), (12,), ()])
def test_packed_equals_padded_and_masked(device, training, channels):
    torch.manual_seed(1)
    points, voxels = make_voxels(device)
    vfe = VFE(7, channels, 10).to(device).double()
    for module in vfe.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.weight)  # negative ones too: padding could win a maximum
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    vfe.train(training)
    features = point_features(points, voxels).double()
    naive = NaiveVFE(vfe)
    index = torch.arange(len(features), device=device)
    padded = features.new_zeros(voxels.num_voxels, T, 7)
    mask = torch.zeros(voxels.num_voxels, T, dtype=torch.bool, device=device)
    row = voxels.voxel_of_point()
    slot = index - voxels.offsets[row]
    padded[row, slot], mask[row, slot] = features, True
    expected = naive(padded, mask)
    weight = torch.randn_like(expected)
    expected_grads = torch.autograd.grad((expected * weight).sum(), list(vfe.parameters()))

    out = vfe(features, voxels)
    grads = torch.autograd.grad((out * weight).sum(), list(vfe.parameters()))
    torch.testing.assert_close(out, expected)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad)


def test_a_voxel_depends_on_its_own_points_only(device):
    points, voxels = make_voxels(device)
    vfe = VFE(7, (8, 16), 8).to(device).eval()
    features = point_features(points, voxels)
    changed = features.clone()
    first, last = voxels.offsets[3], voxels.offsets[4]
    changed[first:last] += 1
    before, after = vfe(features, voxels), vfe(changed, voxels)
    same = torch.ones(voxels.num_voxels, dtype=torch.bool, device=device)
    same[3] = False
    assert torch.equal(before[same], after[same])
    assert not torch.equal(before[3], after[3])


def test_paper_size(device):
    points, voxels = make_voxels(device, points=60)
    vfe = VFE().to(device)
    weights = [m.weight.numel() for m in vfe.modules() if isinstance(m, nn.Linear)]
    assert weights == [7 * 16, 32 * 64, 128 * 128]
    assert round(sum(weights), -2) == 18_500
    out = vfe(point_features(points, voxels), voxels)
    assert out.shape == (voxels.num_voxels, 128)
    out.square().sum().backward()
    for name, parameter in vfe.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("training", [True, False])
def test_no_voxels(device, training):
    voxels = no_voxels(device)
    vfe = VFE(7, (8, 16), 8).to(device).train(training)
    before = {k: v.clone() for k, v in vfe.state_dict().items()}
    out = vfe(point_features(torch.zeros(0, 4, device=device), voxels), voxels)
    assert out.shape == (0, 8)
    out.sum().backward()
    for parameter in vfe.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()
    for key, value in vfe.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_one_point_uses_running_statistics(device):
    vfe = VFE(7, (8,), 8).to(device)
    nn.init.constant_(vfe.points.norm.running_mean, 0.25)
    points = torch.tensor([[1.0, 1.0, 0.0, 0.5]], device=device)
    voxels = voxelize(points, GRID)
    features = point_features(points, voxels)
    trained = vfe.train()(features, voxels)
    assert trained.shape == (1, 8) and trained.isfinite().all()
    assert torch.equal(trained, vfe.eval()(features, voxels))


def test_packed_batch_norm_is_batch_norm_for_two_rows_and_more(device):
    ours, theirs = PackedBatchNorm(3).to(device), nn.BatchNorm1d(3).to(device)
    x = torch.randn(5, 3, device=device)
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.running_var, theirs.running_var)


def test_wrong_shapes_are_named(device):
    _, voxels = make_voxels(device)
    with pytest.raises(ValueError, match=r"features must be \(\d+, 7\), got \(3, 7\)"):
        VFE().to(device)(torch.zeros(3, 7, device=device), voxels)
    with pytest.raises(ValueError, match="even, got 5"):
        VFELayer(7, 5)


# --- the stack as one op -------------------------------------------------------------------------


def learned(vfe):
    """A VFE whose norms have statistics, weights and biases of all signs, in evaluation."""
    for module in vfe.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return vfe.eval()


def layer_by_layer(vfe, points, voxels, center_offsets=""):
    """The plain path, in float64."""
    plain = copy.deepcopy(vfe).double()
    plain.fused = False
    return plain(point_features(points.double(), voxels, center_offsets=center_offsets), voxels)


@pytest.fixture
def ops_called(monkeypatch):
    """Names of the encoding ops that the VFE called."""
    called = []
    for name in ("encode_points", "encode_voxels"):
        run = getattr(vfe_module, name)

        def counted(*args, name=name, run=run, **kwargs):
            called.append(name)
            return run(*args, **kwargs)

        monkeypatch.setattr(vfe_module, name, counted)
    return called


@pytest.mark.parametrize("center_offsets", ["", "xy", "xyz"])
@pytest.mark.parametrize("channels", [(32, 128), (8, 6, 10), (12,), ()])
@torch.no_grad()
def test_fused_equals_layer_by_layer(device, channels, center_offsets, ops_called):
    torch.manual_seed(2)
    points, voxels = make_voxels(device)
    vfe = learned(
        VFE(7 + len(center_offsets), channels, 20, center_offsets=center_offsets).to(device)
    )
    expected = layer_by_layer(vfe, points, voxels, center_offsets)
    code = point_features(points, voxels, center_offsets=center_offsets)
    from_code = vfe(code, voxels)
    from_points = vfe.encode(points, voxels)
    assert ops_called == ["encode_voxels", "encode_points"]
    scale = expected.abs().max().item()
    for out in (from_code, from_points):
        assert out.dtype == torch.float32
        torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5 * scale)
    vfe.fused = False
    plain = vfe.encode(points, voxels)
    assert len(ops_called) == 2
    torch.testing.assert_close(plain.double(), expected, rtol=1e-5, atol=1e-5 * scale)


@torch.no_grad()
def test_fused_equals_padded_and_masked(device):
    torch.manual_seed(3)
    points, voxels = make_voxels(device)
    vfe = learned(VFE().to(device))
    padded, mask = voxels.pad(points, T)
    mean = padded[:, :, :3].sum(1) / mask.sum(1, keepdim=True)
    code = torch.cat([padded, padded[:, :, :3] - mean[:, None]], dim=2) * mask[..., None]
    torch.testing.assert_close(
        vfe.encode(points, voxels), NaiveVFE(vfe)(code, mask), rtol=1e-5, atol=1e-4
    )


def test_fused_follows_training_and_loading(device, ops_called):
    """Nothing is kept from one call to the next."""
    torch.manual_seed(4)
    points, voxels = make_voxels(device)
    vfe = VFE(7, (8, 16), 8).to(device)
    optimizer = torch.optim.SGD(vfe.parameters(), lr=0.5)
    before = {key: value.clone() for key, value in vfe.state_dict().items()}
    with torch.no_grad():
        first = vfe.eval().encode(points, voxels)
    vfe.train().encode(points, voxels).square().mean().backward()
    optimizer.step()
    assert len(ops_called) == 1  # training takes the layers one by one
    with torch.no_grad():
        second = vfe.eval().encode(points, voxels)
        expected = layer_by_layer(vfe, points, voxels).float()
        torch.testing.assert_close(second, expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(first, second)
        vfe.load_state_dict(before)
        assert torch.equal(vfe.encode(points, voxels), first)


def test_a_gradient_takes_the_layers_one_by_one(device, ops_called):
    points, voxels = make_voxels(device)
    vfe = learned(VFE(7, (8,), 8).to(device))
    vfe.encode(points, voxels).sum().backward()
    assert all(parameter.grad is not None for parameter in vfe.parameters())
    vfe.requires_grad_(False)
    assert not ops_called
    vfe.encode(points, voxels)
    assert ops_called == ["encode_points"]
    points.requires_grad_()
    vfe.encode(points, voxels).sum().backward()
    assert points.grad is not None and len(ops_called) == 1


@torch.no_grad()
def test_what_cannot_be_fused_takes_the_layers_one_by_one(device, ops_called):
    points, voxels = make_voxels(device)
    vfe = learned(VFE(7, (8,), 8).to(device))
    doubled = copy.deepcopy(vfe).double()
    assert doubled.encode(points.double(), voxels).dtype == torch.float64
    half_trained = copy.deepcopy(vfe)
    half_trained.points.norm.train()
    half_trained.encode(points, voxels)
    assert not ops_called
    with pytest.raises(ValueError, match=r"features must be \(\d+, 7\), got \(\d+, 8\)"):
        vfe.encode(torch.cat([points, points[:, 3:]], dim=1), voxels)
    with pytest.raises(ValueError, match=r"\(N, >=3\)"):
        vfe.encode(points[:, :2], voxels)


@torch.no_grad()
def test_half_types_are_computed_in_float32(device, ops_called):
    torch.manual_seed(5)
    points, voxels = make_voxels(device)
    vfe = learned(VFE(7, (8, 16), 8).to(device))
    expected = vfe.encode(points, voxels)
    with torch.autocast(device.type, torch.bfloat16):
        assert torch.equal(vfe.encode(points, voxels), expected)
        assert torch.equal(vfe(point_features(points, voxels), voxels), expected)
    for dtype in (torch.bfloat16, torch.float16):
        half = copy.deepcopy(vfe).to(dtype)
        out = half(point_features(points, voxels).to(dtype), voxels)
        assert out.dtype == dtype
        rounding = 20 * torch.finfo(dtype).eps * expected.abs().max().item()
        torch.testing.assert_close(out.float(), expected, rtol=0, atol=rounding)
    assert len(ops_called) == 5


@torch.no_grad()
@pytest.mark.parametrize("center_offsets", ["", "xy", "xyz"])
def test_fused_compiles_in_one_graph_and_exports(device, center_offsets):
    torch.manual_seed(6)
    vfe = learned(
        VFE(7 + len(center_offsets), (8, 16), 8, center_offsets=center_offsets).to(device)
    )

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.vfe = vfe

        def forward(self, points, coords, offsets, point_index):
            voxels = Voxels(coords, offsets, point_index, GRID, 2)
            return self.vfe.encode(points, voxels)

    def inputs(seed, count):
        points, voxels = make_voxels(device, points=count, seed=seed)
        return points, voxels.coords, voxels.offsets, voxels.point_index

    model = Encoder().eval()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    points, voxels, kept = (torch.export.Dim(name) for name in ("points", "voxels", "kept"))
    exported = torch.export.export(
        model,
        inputs(0, 200),
        dynamic_shapes=({0: points}, {0: voxels}, {0: voxels + 1}, {0: kept}),
    )
    assert "voxelpool.encode_points" in exported.graph_module.code
    for seed, count in ((0, 200), (1, 300)):
        arguments = inputs(seed, count)
        expected = model(*arguments)
        torch.testing.assert_close(compiled(*arguments), expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(exported.module()(*arguments), expected, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_fused_encodes_no_voxels(device, ops_called):
    vfe = learned(VFE(7, (8,), 8).to(device))
    assert vfe.encode(torch.zeros(0, 4, device=device), no_voxels(device)).shape == (0, 8)
    assert ops_called == ["encode_points"]


@torch.no_grad()
def test_nan_goes_where_the_layers_let_it(device):
    points, voxels = make_voxels(device)
    vfe = learned(VFE(7, (8, 16), 8).to(device))
    points[voxels.point_index[voxels.offsets[4]], 3] = torch.nan
    fused = vfe.encode(points, voxels)
    vfe.fused = False
    assert torch.equal(fused.isnan(), vfe.encode(points, voxels).isnan())
    assert fused.isnan().any(dim=1).nonzero().flatten().tolist() == [4]


@pytest.mark.parametrize("offsets", ["xy", "xyz"])
@pytest.mark.parametrize("training", [False, True])
def test_pillars_that_pad(device, offsets, training):
    """The padded formulation: rows of zeros up to T go through the layer and into the maximum."""
    torch.manual_seed(6)
    points, voxels = make_voxels(device)
    voxels = voxels.first(4)
    vfe = VFE(7 + len(offsets), (), 16, center_offsets=offsets, padded_to=4)
    vfe = learned(vfe.to(device))
    norm = vfe.points.norm
    norm.bias.data += 1.0  # so that many a row of zeros counts
    code = point_features(points, voxels, center_offsets=offsets)
    packed = replace(voxels, point_index=torch.arange(len(code), device=device))
    padded, mask = packed.pad(code, 4)
    rows = vfe.points.linear(padded)
    if training:
        seen = torch.cat([vfe.points.linear(code), rows.new_zeros(1, 16)])
        mean, var = seen.mean(0), seen.var(0, unbiased=False)
        vfe.train()
    else:
        mean, var = norm.running_mean, norm.running_var
    rows = ((rows - mean) / (var + norm.eps).sqrt() * norm.weight + norm.bias).relu()
    expected = rows.amax(dim=1)
    with torch.set_grad_enabled(training):
        found = [vfe(code, voxels)] if training else [vfe(code, voxels), vfe.encode(points, voxels)]
    for out in found:
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    without = rows.masked_fill(~mask[..., None], -torch.inf).amax(dim=1)
    assert (without < expected - 1e-3).any(), "padding decides somewhere"


def test_padding_has_no_place_in_a_stack():
    with pytest.raises(ValueError, match="padded_to is for one point layer and pool max"):
        VFE(7, (8,), 8, padded_to=5)
    with pytest.raises(ValueError, match="padded_to is for one point layer and pool max"):
        VFE(7, (), 8, padded_to=5, pool="average")
    with pytest.raises(ValueError, match="center_offsets must be '', 'xy' or 'xyz', got 'z'"):
        VFE(8, (), 8, center_offsets="z")


def test_the_mean_encoder_is_the_mean(device):
    points, voxels = make_voxels(device)
    found = MeanVFE(points.shape[1]).encode(points, voxels)
    ends = voxels.offsets.tolist()
    for row, (start, end) in enumerate(pairwise(ends)):
        expected = points[voxels.point_index[start:end]].double().mean(0)
        torch.testing.assert_close(found[row].double(), expected, rtol=1e-5, atol=1e-5)
    empty = no_voxels(device)
    assert MeanVFE(4).encode(torch.zeros(0, 4, device=device), empty).shape == (0, 4)
