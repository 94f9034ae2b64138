from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from voxelpool.nn import DenseMiddle, VoxelConv3d, scatter_to_dense


def random_coords(generator, count, batch_size, shape):
    cells = batch_size * shape[0] * shape[1] * shape[2]
    cell = torch.randperm(cells, generator=generator)[:count].sort().values
    rest, x = cell // shape[2], cell % shape[2]
    rest, y = rest // shape[1], rest % shape[1]
    return torch.stack([rest // shape[0], rest % shape[0], y, x], dim=1).int()


def test_scatter_to_dense(device):
    coords = torch.tensor([[0, 1, 0, 2], [1, 0, 1, 0], [1, 1, 1, 2]], device=device).int()
    features = torch.tensor([[1.0, 2], [3, 4], [5, 6]], device=device, requires_grad=True)
    dense = scatter_to_dense(features, coords, 3, (2, 2, 3))
    expected = torch.zeros(3, 2, 2, 2, 3, device=device)
    for row, (b, z, y, x) in enumerate(coords.tolist()):
        expected[b, :, z, y, x] = features[row].detach()
    assert torch.equal(dense, expected)
    weight = torch.randn_like(dense)
    (dense * weight).sum().backward()
    for row, (b, z, y, x) in enumerate(coords.tolist()):
        assert torch.equal(features.grad[row], weight[b, :, z, y, x])


@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "padding"),
    [
        ((4, 6, 5), (3, 3, 3), (2, 1, 1), (1, 1, 1)),
        ((5, 7, 4), (3, 3, 3), (1, 1, 1), (0, 1, 1)),
        ((1, 3, 3), (3, 3, 3), (2, 2, 2), (1, 1, 1)),
        ((6, 5, 7), (2, 3, 1), (3, 2, 1), (0, 2, 0)),
        ((3, 3, 3), (3, 3, 3), (1, 1, 1), (0, 0, 0)),
    ],
)
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_voxel_conv_equals_dense_conv(device, shape, kernel, stride, padding, share):
    generator = torch.Generator().manual_seed(0)
    batch_size = 3
    count = int(share * batch_size * shape[0] * shape[1] * shape[2])
    coords = random_coords(generator, count, batch_size, shape).to(device)
    features = torch.randn(count, 4, generator=generator, dtype=torch.float64).to(device)
    features.requires_grad_()
    conv = VoxelConv3d(4, 5, kernel, shape, stride=stride, padding=padding).to(device).double()
    dense = scatter_to_dense(features, coords, batch_size, shape)
    expected = F.conv3d(dense, conv.weight, None, stride, padding)
    out = conv(features, coords, batch_size)
    assert out.shape[2:] == conv.out_shape
    torch.testing.assert_close(out, expected)
    weight = torch.randn_like(out)
    grads = torch.autograd.grad((out * weight).sum(), [features, conv.weight])
    expected_grads = torch.autograd.grad((expected * weight).sum(), [features, conv.weight])
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad)


def test_voxel_conv_under_autocast(device):
    generator = torch.Generator().manual_seed(0)
    coords = random_coords(generator, 20, 2, (4, 5, 6)).to(device)
    features = torch.randn(20, 4, generator=generator).to(device)
    middle = DenseMiddle(4, (6, 6), grid_shape=(4, 5, 6), **two_layers()).to(device)
    expected = middle.eval()(features, coords, 2)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        out = middle(features, coords, 2)
        half = middle(features.bfloat16(), coords, 2)
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.05)
    torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.05)


def two_layers():
    return {"strides": ((2, 1, 1), (1, 1, 1)), "paddings": ((1, 1, 1), (1, 1, 1))}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dense_input", [True, False])
def test_middle_is_conv_norm_relu_and_folds_depth(device, training, dense_input):
    """The formula of the paper with torch's own layers, from the same weights."""
    torch.manual_seed(0)
    shape = (10, 8, 6)
    coords = random_coords(torch.Generator().manual_seed(0), 60, 2, shape).to(device)
    features = torch.randn(60, 5, device=device, dtype=torch.float64)
    middle = DenseMiddle(5, (4, 4, 4), grid_shape=shape, dense_input=dense_input)
    middle = middle.to(device).double().train(training)
    x = scatter_to_dense(features, coords, 2, shape).contiguous()
    settings = [((2, 1, 1), (1, 1, 1)), ((1, 1, 1), (0, 1, 1)), ((2, 1, 1), (1, 1, 1))]
    depths = []
    for (stride, padding), conv, norm in zip(settings, middle.convs, middle.norms, strict=True):
        x = F.conv3d(x, conv.weight, None, stride, padding)
        mean = x.mean((0, 2, 3, 4)) if training else norm.running_mean
        var = x.var((0, 2, 3, 4), unbiased=False) if training else norm.running_var
        x = (x - mean.view(1, -1, 1, 1, 1)) / torch.sqrt(var.view(1, -1, 1, 1, 1) + norm.eps)
        x = torch.relu(x)
        depths.append(x.shape[2])
    assert depths == [5, 3, 2]
    out = middle(features, coords, 2)
    assert out.shape == (2, middle.out_channels, *middle.out_size) == (2, 8, 8, 6)
    for channel in range(4):
        for depth in range(2):
            torch.testing.assert_close(out[:, channel * 2 + depth], x[:, channel, depth])


@pytest.mark.parametrize("columns", [4, 300])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_small_and_large_maps_and_batches_agree(device, batch_size, columns):
    """Whichever kernel a size leads to, the map is that of torch's layers, and so are gradients."""
    torch.manual_seed(0)
    shape = (9, columns, 5)
    coords = random_coords(torch.Generator().manual_seed(0), 80, batch_size, shape).to(device)
    features = torch.randn(80, 5, device=device, dtype=torch.float64)
    middle = DenseMiddle(5, (6, 7, 8), grid_shape=shape).to(device).double()
    x = scatter_to_dense(features, coords, batch_size, shape)
    for conv, norm in zip(middle.convs, middle.norms, strict=True):
        x = F.conv3d(x, conv.weight, None, conv.stride, conv.padding)
        x = torch.relu(F.batch_norm(x, None, None, norm.weight, norm.bias, True))
    expected = x.flatten(1, 2)
    out = middle(features, coords, batch_size)
    torch.testing.assert_close(out, expected)
    weight = torch.randn_like(out)
    grads = torch.autograd.grad((out * weight).sum(), list(middle.parameters()))
    expected_grads = torch.autograd.grad((expected * weight).sum(), list(middle.parameters()))
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad)


@pytest.mark.parametrize(("rows", "columns"), [(400, 352), (200, 240)])
def test_paper_size(rows, columns):
    middle = DenseMiddle(grid_shape=(10, rows, columns))
    weights = [conv.weight.numel() for conv in middle.convs]
    assert weights == [128 * 64 * 27, 64 * 64 * 27, 64 * 64 * 27]
    assert round(sum(weights), -3) == 442_000
    assert (middle.out_depth, middle.out_channels) == (2, 128)
    with torch.device("meta"):
        middle = DenseMiddle(grid_shape=(10, rows, columns), dense_input=True)
        out = middle(torch.empty(6000, 128), torch.empty(6000, 4, dtype=torch.int32), 1)
    assert out.shape == (1, 128, rows, columns)


@pytest.mark.parametrize("depth", range(3, 20))
def test_depth_of_any_grid(depth):
    middle = DenseMiddle(2, (3, 3, 3), grid_shape=(depth, 4, 4)) if depth >= 5 else None
    if middle is None:
        with pytest.raises(ValueError, match="middle layer 2 has no output"):
            DenseMiddle(2, (3, 3, 3), grid_shape=(depth, 4, 4))
        return
    out = middle(torch.zeros(1, 2), torch.zeros(1, 4, dtype=torch.int32), 1)
    assert out.shape == (1, middle.out_channels, 4, 4)
    assert middle.out_channels == 3 * middle.out_depth


@pytest.mark.parametrize("dense_input", [True, False])
def test_no_voxels_and_empty_frames(device, dense_input):
    middle = DenseMiddle(3, (4, 4, 4), grid_shape=(8, 6, 6), dense_input=dense_input).to(device)
    features = torch.zeros(0, 3, device=device, requires_grad=True)
    out = middle(features, torch.zeros(0, 4, dtype=torch.int32, device=device), 2)
    assert out.shape == (2, middle.out_channels, 6, 6) and out.isfinite().all()
    out.sum().backward()
    for parameter in middle.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()


def test_gradients_reach_every_parameter(device):
    torch.manual_seed(0)
    shape = (8, 6, 6)
    coords = random_coords(torch.Generator().manual_seed(0), 50, 2, shape).to(device)
    features = torch.randn(50, 3, device=device, requires_grad=True)
    middle = DenseMiddle(3, (4, 4, 4), grid_shape=shape).to(device)
    middle(features, coords, 2).square().sum().backward()
    assert features.grad is not None and (features.grad.abs().sum(1) > 0).all()
    for name, parameter in middle.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_weights_are_those_of_plain_convolutions():
    state = DenseMiddle(3, (4, 4, 4), grid_shape=(8, 6, 6)).state_dict()
    plain = nn.Conv3d(3, 4, 3, bias=False).state_dict()
    assert state["convs.0.weight"].shape == plain["weight"].shape


def test_wrong_shapes_are_named():
    middle = DenseMiddle(3, (4, 4, 4), grid_shape=(8, 6, 6))
    with pytest.raises(ValueError, match=r"\(K, 3\), got \(5, 4\)"):
        middle(torch.zeros(5, 4), torch.zeros(5, 4, dtype=torch.int32), 1)
    with pytest.raises(ValueError, match=r"coords \(K, 4\)"):
        middle(torch.zeros(5, 3), torch.zeros(4, 4, dtype=torch.int32), 1)
    with pytest.raises(ValueError, match="same number of layers, got 2, 3 and 3"):
        DenseMiddle(3, (4, 4), grid_shape=(8, 6, 6))
