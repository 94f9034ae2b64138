"""Detectors with every neck, attention and voxel pooling that a configuration can name."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from voxelpool.config import Config, parse_config
from voxelpool.errors import ConfigError
from voxelpool.models import VoxelDetector, build_detector

NECKS = ("none", "spp", "sppf")
ATTENTIONS = (("none", "average"), ("se", "average"), ("se", "max"), ("se", "masked"),
              ("cbam", "average"))  # fmt: skip
POOLS = ("max", "average", "min", "median", "sum")
TINY = """
name: tiny
grid: {range: [0, -6.4, -3, 12.8, 6.4, 1], voxel_size: [0.8, 0.8, 0.8]}
anchors:
  - {class_name: Car, size: [3.9, 1.6, 1.56], z_center: -1.0,
     matched_threshold: 0.6, unmatched_threshold: 0.45}
vfe: {channels: [8], out_channels: 8, max_points: 5}
middle: {channels: [4, 4, 4]}
rpn: {layers: [1, 0, 1], channels: [8, 6, 8], upsample_channels: [4, 4, 4]}
"""


def configured(neck="none", attention=("none", "average"), pool="max") -> Config:
    return parse_config(TINY, [f"rpn.neck={neck}", f"rpn.attention={attention[0]}",
                               f"rpn.squeeze={attention[1]}", f"vfe.pool={pool}"])  # fmt: skip


def some_points(count: int, seed: int = 0, x_max: float = 12.8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    low, high = torch.tensor([0, -6.4, -2, 0]), torch.tensor([x_max, 6.4, 0.5, 1])
    return low + (high - low) * torch.rand(count, 4, generator=generator)


def built(*arguments) -> VoxelDetector:
    """With norms of all signs: a blank cell is then not zero."""
    torch.manual_seed(0)
    detector = build_detector(configured(*arguments))
    for module in detector.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return detector


def loss_of(detector: VoxelDetector, *inputs) -> torch.Tensor:
    boxes = [torch.tensor([[6.0, 0.0, -0.9, 3.9, 1.6, 1.5, 0.1]]), torch.zeros(0, 7)]
    classes = [torch.zeros(1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)]
    return detector.loss(detector(*inputs), boxes, classes)["loss"]


BATCH = (
    torch.cat([some_points(250, x_max=6.4), some_points(40, 1)]),
    torch.tensor([0] * 250 + [1] * 40),
    2,
)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("attention", ATTENTIONS, ids="-".join)
@pytest.mark.parametrize("neck", NECKS)
def test_every_combination_trains_a_step(neck, attention, pool):
    detector = built(neck, attention, pool)
    optimizer = torch.optim.SGD(detector.parameters(), lr=1e-3)
    loss = loss_of(detector, *BATCH)
    loss.backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if "attentions" in name or "neck" in name:
            assert parameter.grad.abs().sum() > 0, name
    optimizer.step()
    assert loss_of(detector, *BATCH).isfinite()
    assert len(detector.eval().detect(*BATCH)) == 2


@pytest.mark.parametrize("attention", ATTENTIONS, ids="-".join)
@pytest.mark.parametrize("neck", NECKS)
def test_rows_equal_the_dense_path(neck, attention):
    """Scores, residuals, gradients and running statistics, in float64."""
    rows = built(neck, attention).double()
    dense = copy.deepcopy(rows)
    dense.middle.use_reach = False
    voxels = rows.voxelize(*BATCH)
    points = BATCH[0].double()
    for module in (rows, dense):
        scores, residuals, _ = module.predict(points, voxels)
        assert scores.dtype == torch.float64
        (scores.square().mean() + (residuals + 1).square().mean()).backward()
    for (name, one), other in zip(rows.named_parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=lambda m, name=name: f"{name}: {m}")
    for (name, one), other in zip(rows.named_buffers(), dense.buffers(), strict=True):
        torch.testing.assert_close(one, other, msg=lambda m, name=name: f"{name}: {m}")
    rows.eval(), dense.eval()
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            for one, other in zip(
                rows.predict(points, voxels)[:2], dense.predict(points, voxels)[:2], strict=True
            ):
                torch.testing.assert_close(one, other)


@torch.no_grad()
@pytest.mark.parametrize("attention", ATTENTIONS, ids="-".join)
@pytest.mark.parametrize("neck", NECKS)
def test_alone_and_in_a_batch(neck, attention):
    """And in bfloat16, roughly."""
    detector = built(neck, attention).eval()
    together = detector(*BATCH)
    with torch.autocast("cpu", torch.bfloat16):
        half = detector(*BATCH)
    for row in range(2):
        alone = detector(BATCH[0][BATCH[1] == row])
        for one, other in zip(alone[:2], together[:2], strict=True):
            torch.testing.assert_close(one[0], other[row], rtol=1e-4, atol=1e-5)
    for one, other in zip(half[:2], together[:2], strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.05)


@torch.no_grad()
@pytest.mark.parametrize("pool", POOLS[1:])
def test_another_voxel_pooling_is_used_and_encodes_alike(pool):
    """In every layer and at the end, and no fused op stands in for it."""
    detector, plain = built("none", ATTENTIONS[0], pool).eval(), built().eval()
    assert detector.state_dict().keys() == plain.state_dict().keys()
    voxels, points = detector.voxelize(*BATCH), BATCH[0].double()
    detector.double(), plain.double()
    reduce = {
        "average": lambda v: v.mean(0), "min": lambda v: v.amin(0), "sum": lambda v: v.sum(0),
        "median": lambda v: v.median(0).values,
    }[pool]  # fmt: skip
    packed, expected = points[voxels.point_index], []
    layer, last = detector.vfe.layers[0].points, detector.vfe.points
    for begin, end in itertools.pairwise(voxels.offsets.tolist()):
        own = packed[begin:end]
        own = layer(torch.cat([own, own[:, :3] - own[:, :3].mean(0)], 1))
        own = torch.cat([own, reduce(own).expand_as(own)], 1)
        expected.append(reduce(last(own)))
    out = detector.vfe.encode(points, voxels)
    torch.testing.assert_close(out, torch.stack(expected))
    assert not torch.allclose(out, plain.vfe.encode(points, voxels))
    detector.float()
    torch.testing.assert_close(
        detector.vfe.encode(points.float(), voxels), out.float(), rtol=1e-4, atol=1e-4
    )


def test_the_default_is_the_paper():
    """No weight more, and the weights that all share begin alike."""
    plain = build_detector(parse_config(TINY))
    assert plain.rpn.neck is None and len(plain.rpn.attentions) == 0
    assert plain.vfe.pool == "max" and not any("attention" in key for key in plain.state_dict())
    with_all = built("sppf", ("cbam", "average"), "average")
    plain = built()
    state = with_all.state_dict()
    assert all(
        key in state and (value.dim() < 2 or torch.equal(value, state[key]))
        for key, value in plain.state_dict().items()
    )
    assert state.keys() > plain.state_dict().keys()


def test_parameters_that_are_added():
    def count(*arguments):
        return sum(p.numel() for p in built(*arguments).parameters())

    plain = count()
    squeeze = sum(2 * c * c + c + c for c in (8, 6, 8))
    assert count("none", ("se", "max")) - plain == squeeze
    assert count("none", ("cbam", "average")) - plain == squeeze + 3 * (2 * 49 + 1)
    assert count("spp") - plain == count("sppf") - plain == 8 * 4 + 16 * 8 + 2 * (4 + 8)


def test_settings_that_do_not_exist_are_errors():
    for override, message in [
        ("rpn.neck=fpn", "rpn.neck: .*'none', 'spp' or 'sppf'.*got 'fpn'"),
        ("rpn.attention=eca", "rpn.attention"),
        ("vfe.pool=mean", "vfe.pool: .*'max', 'average'"),
        ("rpn.squeeze=max", "rpn: squeeze max is for attention se, which is none here"),
    ]:
        with pytest.raises(ConfigError, match=message):
            parse_config(TINY, [override])
    detector = built("none", ("se", "masked"))
    with pytest.raises(ValueError, match="needs the cells that are occupied"):
        detector.rpn(torch.zeros(1, detector.rpn.in_channels, 16, 16))
    with pytest.raises(ValueError, match="neck must be none"):
        type(detector.rpn)(4, neck="fpn")


def compiled(function, **how):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager", **how)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("attention", ATTENTIONS, ids="-".join)
@pytest.mark.parametrize("neck", NECKS)
def test_every_neck_and_attention_compiles_in_one_graph(neck, attention):
    rpn = built(neck, attention).rpn.eval()
    x = torch.randn(2, rpn.in_channels, 16, 16)
    occupied = x[:, 0] > 1
    for out, expected in zip(compiled(rpn)(x, occupied)[:2], rpn(x, occupied)[:2], strict=True):
        torch.testing.assert_close(out, expected)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("pool", POOLS)
def test_every_voxel_pooling_compiles_in_one_graph(pool):
    detector = built("none", ATTENTIONS[0], pool).eval()
    vfe, points = detector.vfe, some_points(200)
    voxels = detector.voxelize(points)
    out = compiled(vfe.encode, dynamic=True)(points, voxels)
    torch.testing.assert_close(out, vfe.encode(points, voxels))


@pytest.mark.slow
@torch.no_grad()
def test_the_whole_detector_compiles_in_one_graph():
    """From points in voxels to maps, and no break when the number of voxels changes."""
    detector = built("sppf", ("se", "masked"), "median").eval()
    predict = compiled(detector.predict, dynamic=True)
    for count in (200, 150):
        points = some_points(count)
        voxels = detector.voxelize(points)
        expected = detector.predict(points, voxels)
        for out, other in zip(predict(points, voxels)[:2], expected[:2], strict=True):
            torch.testing.assert_close(out, other, rtol=1e-4, atol=1e-4)
