"""Classifiers of grids against the published architectures."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from voxelpool.models import NiN, ResNet18, VoxNet, build_classifier
from voxelpool.models.classifier import Conv3d

GRID_MODELS = ("voxnet", "resnet18", "nin", "spp_net", "small_cnn")
NARROW = {"voxnet": 8, "resnet18": 4, "nin": 8, "spp_net": 4, "small_cnn": 4}


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def grids(batch=2, size=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(batch, 1, size, size, size, generator=generator) < 0.1).float()


def narrow(model, **options):
    torch.manual_seed(0)
    return build_classifier(model, 5, width=NARROW[model], **options)


def test_voxnet_has_the_published_parameters():
    assert parameters(build_classifier("voxnet", 40)) == 921_736


def test_resnet18_has_the_published_parameters():
    model = build_classifier("resnet18", 1000, dim=2, stem="imagenet", in_channels=3)
    assert parameters(model) == 11_689_512
    stages = [parameters(layer) for layer in model.features]
    assert stages[0] == 9_408 + 128 and stages[1] == 0
    pairs = [sum(stages[i : i + 2]) for i in range(2, 10, 2)]
    assert pairs == [147_968, 525_568, 2_099_712, 8_393_728]


def test_resnet18_has_the_published_work_and_shapes():
    """1.81 G multiplications for an image of 224 x 224."""
    with torch.device("meta"):
        model = ResNet18(1000, dim=2, stem="imagenet", in_channels=3)
    work, shapes = [], []

    def count(module, _, out):
        if isinstance(module, nn.Conv2d | nn.Linear):
            cells = out[0].numel() // out.shape[1]
            work.append(cells * module.weight.numel())
        else:
            shapes.append(tuple(out.shape[1:]))

    for module in (*model.modules(), *list(model.features)[1:]):
        if isinstance(module, nn.Conv2d | nn.Linear) or module in list(model.features)[1:]:
            module._forward_hooks.clear()
            module.register_forward_hook(count)
    model(torch.zeros(1, 3, 224, 224, device="meta"))
    assert sum(work) / 1e9 == pytest.approx(1.814, abs=5e-4)
    sizes = [(64, 56), (128, 28), (256, 14), (512, 7)]
    assert shapes == [(64, 56, 56)] + [(c, s, s) for c, s in sizes for _ in range(2)]


def resnet18_by_hand(x, weights, stem):
    """ResNet-18 of functions; ``weights`` in the order in which layers are used, the way around
    last in its block.
    """
    take = iter(weights)
    conv = F.conv2d if x.dim() == 4 else F.conv3d

    def layer(x, stride, padding):
        x = conv(x, next(take), stride=stride, padding=padding)
        scale, shift, mean, var, _ = (next(take) for _ in range(5))
        view = (1, -1) + (1,) * (x.dim() - 2)
        normal = (x - mean.view(view)) / (var.view(view) + 1e-5).sqrt()
        return normal * scale.view(view) + shift.view(view)

    if stem == "imagenet":
        x = layer(x, 2, 3).relu()
        x = (F.max_pool2d if x.dim() == 4 else F.max_pool3d)(x, 3, 2, 1)
    else:
        x = layer(x, 2 if stem == "strided" else 1, 1).relu()
    for stage in range(4):
        for block in range(2):
            stride = 2 if stage > 0 and block == 0 else 1
            inner = layer(layer(x, stride, 1).relu(), 1, 1)
            around = layer(x, stride, 0) if stride == 2 else x
            x = (inner + around).relu()
    weight, bias = take
    return F.linear(x.flatten(2).mean(2), weight, bias)


@pytest.mark.parametrize(
    ("dim", "stem", "shape", "width"),
    [
        (2, "imagenet", (2, 3, 64, 48), 64),
        (2, "small", (2, 3, 16, 16), 8),
        (3, "strided", (2, 1, 24, 20, 16), 4),
        (3, "imagenet", (2, 1, 40, 33, 32), 4),
    ],
)
def test_resnet18_against_functions(dim, stem, shape, width):
    torch.manual_seed(0)
    model = ResNet18(10, dim=dim, stem=stem, in_channels=shape[1], width=width).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            for value in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(value, 0.5, 1.5)
    x = torch.randn(shape)
    with torch.no_grad():
        expected = resnet18_by_hand(x, list(model.state_dict().values()), stem)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("window", ["max", "average"])
def test_voxnet_against_functions(window):
    torch.manual_seed(0)
    model = VoxNet(10, window_pool=window).eval()
    x = grids()
    w1, b1, w2, b2, w3, b3, w4, b4 = model.parameters()
    y = F.leaky_relu(F.conv3d(2 * x - 1, w1, b1, stride=2), 0.1)
    assert y.shape[1:] == (32, 14, 14, 14)
    y = F.leaky_relu(F.conv3d(y, w2, b2), 0.1)
    assert y.shape[1:] == (32, 12, 12, 12)
    y = F.max_pool3d(y, 2) if window == "max" else F.avg_pool3d(y, 2)
    y = F.linear(F.linear(y.flatten(1), w3, b3).relu(), w4, b4)
    torch.testing.assert_close(model(x), y)


def test_voxnet_centres_every_kind_of_occupancy():
    for occupancy, values in [
        ("hit", (0, 0.5, 1)),
        ("density", (0, 0.5, 1)),
        ("log_odds", (-4, 0, 4)),
    ]:
        model = build_classifier("voxnet", 5, occupancy=occupancy)
        grid = torch.zeros(1, 1, 32, 32, 32)
        grid.view(-1)[:3] = torch.tensor(values)
        assert model.prepare(grid).view(-1)[:3].tolist() == [-1, 0, 1]


def test_nin_ends_in_maps_of_classes():
    for dim in (2, 3):
        model = NiN(7, dim=dim, width=12)
        assert not any(isinstance(module, nn.Linear) for module in model.modules())
        assert any(
            isinstance(module, nn.Linear)
            for module in NiN(7, dim=dim, width=12, head="both").modules()
        )


@pytest.mark.parametrize("model", GRID_MODELS)
@pytest.mark.parametrize("head", ["average", "max", "both", "spp", "flatten"])
def test_every_head(model, head):
    for dim in (3,) if model == "voxnet" else (2, 3):
        network = narrow(model, head=head, dim=dim)
        assert network(grids()).shape == (2, 5)
        if head == "flatten":
            other = grids(size=48) if dim == 3 else torch.zeros(1, 32, 48, 48)
            with pytest.raises(ValueError, match="flatten head was built for maps of"):
                network(other)
        else:
            other = torch.zeros(2, 1, 24, 40, 33) if dim == 3 else torch.zeros(2, 1, 32, 40, 33)
            assert network(other).shape == (2, 5)


@pytest.mark.parametrize("model", GRID_MODELS)
def test_gradients_and_a_step(model):
    for dim in (3,) if model == "voxnet" else (2, 3):
        network = narrow(model, dim=dim, dropout=0.0)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
        x, y = grids(4), torch.tensor([0, 1, 2, 3])
        losses = []
        for _ in range(4):
            loss = F.cross_entropy(network(x), y)
            optimizer.zero_grad()
            loss.backward()
            for name, parameter in network.named_parameters():
                assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]


@pytest.mark.parametrize("model", ["voxnet", "resnet18"])
def test_compiles(model):
    torch._dynamo.reset()
    network = narrow(model).eval()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(grids()), network(grids()))
    x = grids(4)
    network.train()
    compiled(x).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_flatten_at_another_grid_size():
    """VoxNet on the 30 cells of an archive: 30 -> 13 -> 11 -> 5."""
    model = build_classifier("voxnet", 10, grid_size=30)
    assert model.head.map_size == (5, 5, 5)
    assert model(grids(size=30)).shape == (2, 10)


@pytest.mark.parametrize("model", GRID_MODELS)
def test_shapes_that_do_not_fit(model):
    network = narrow(model)
    for shape in [(2, 32, 32, 32), (2, 2, 32, 32, 32)]:
        with pytest.raises(ValueError, match="objects must be"):
            network(torch.zeros(shape))
    if model != "voxnet":
        with pytest.raises(ValueError, match=r"\(B, 32, H, W\) or \(B, 1, 32, H, W\)"):
            narrow(model, dim=2)(torch.zeros(1, 1, 30, 32, 32))


def test_options():
    model = build_classifier("resnet18", 4, width=8, stem=None, points=512, occupancy="density")
    assert model.features[0][0].stride == (2, 2, 2)
    with pytest.raises(ValueError, match="voxnet has no option depth, stem; it has dim, dropout"):
        build_classifier("voxnet", 4, stem="small", depth=3)
    with pytest.raises(ValueError, match="voxnet, resnet18, nin"):
        build_classifier("alexnet", 4)
    for model, options, message in [
        ("voxnet", {"dim": 2}, "3D"),
        ("voxnet", {"dropout": (0.1, 0.2)}, "one or three"),
        ("voxnet", {"occupancy": "binary"}, "occupancy"),
        ("resnet18", {"stem": "large"}, "stem"),
        ("nin", {"dim": 4}, "dim"),
        ("small_cnn", {"head": "mean"}, "kind"),
    ]:
        with pytest.raises(ValueError, match=message):
            build_classifier(model, 4, **options)


def test_building_leaves_the_statistics_alone():
    """The map's size is found without a trace in BatchNorm."""
    network = narrow("resnet18", head="flatten")
    for module in network.modules():
        assert module.training
        if isinstance(module, nn.BatchNorm3d):
            assert module.num_batches_tracked == 0 and (module.running_mean == 0).all()


@pytest.mark.parametrize("model", GRID_MODELS)
def test_turns_are_further_outputs_of_the_last_layer(model):
    network, objects = narrow(model, turns=4).eval(), grids()
    scores, turns = network.forward_turns(objects)
    assert scores.shape == (2, 5) and turns.shape == (2, 5, 4)
    assert torch.equal(network(objects), scores)
    every = network.head(network.features(network.prepare(objects)))
    assert torch.equal(every[:, 5 + 2 * 4 + 1], turns[:, 2, 1]), "by class, then by turn"
    with pytest.raises(ValueError, match="turns must be at least 0, got -1"):
        build_classifier(model, 3, turns=-1)


@pytest.mark.parametrize("channels", [16, 64])
def test_gradients_on_tiny_maps_are_right_in_bfloat16(channels):
    """Where torch's own on the CPU are what memory happened to hold."""
    torch.manual_seed(0)
    conv = Conv3d(channels, channels, 3, 1, 1, bias=False)
    x = torch.randn(8, channels, 2, 2, 2, requires_grad=True)
    exact = torch.autograd.grad(conv(x).square().mean(), [x, conv.weight])
    for _ in range(20):
        with torch.autocast("cpu", torch.bfloat16):
            loss = conv(x).float().square().mean()
        for found, expected in zip(torch.autograd.grad(loss, [x, conv.weight]), exact, strict=True):
            torch.testing.assert_close(found, expected, rtol=0.05, atol=1e-3)
