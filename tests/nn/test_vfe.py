from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from voxelpool.nn import VFE, PackedBatchNorm, VFELayer, point_features
from voxelpool.ops import voxelize
from voxelpool.structures import VoxelGrid

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
    code = point_features(points, voxels, center_offsets=True)
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
