"""VoxelNet, SECOND and PointPillars from one class: what they share, and what tells them apart."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from voxelpool.config import Config, load_config, parse_config
from voxelpool.detection import Predictions, encode
from voxelpool.errors import ConfigError
from voxelpool.models import VoxelDetector, build_detector

CONFIGS = Path(__file__).parents[2] / "configs"
ANCHORS = """
anchors:
  - {class_name: Car, size: [3.9, 1.6, 1.56], z_center: -1.0,
     matched_threshold: 0.6, unmatched_threshold: 0.45}
  - {class_name: Pedestrian, size: [0.8, 0.6, 1.73], z_center: -0.6,
     matched_threshold: 0.5, unmatched_threshold: 0.35}
"""
SECOND = """
name: tiny_second
model: second
grid: {range: [0, -6.4, -3, 12.8, 6.4, 1], voxel_size: [0.1, 0.1, 0.1]}
middle: {channels: [4, 4, 8, 8, 8]}
rpn: {layers: [1, 1], strides: [1, 2], channels: [8, 8], upsample_channels: [8, 8],
      unit_upsample_kernel: 1}
"""
PILLARS = """
name: tiny_pillars
model: pointpillars
grid: {range: [0, -6.4, -3, 12.8, 6.4, 1], voxel_size: [0.4, 0.4, 4]}
vfe: {out_channels: 8, max_points: 5}
rpn: {layers: [1, 1], strides: [2, 2], channels: [8, 8], upsample_channels: [8, 8],
      unit_upsample_kernel: 1}
"""
HEADS = """
head: {scores: all, direction: true}
loss: {classification: focal, angle: sine, residual_weight: 2.0}
"""
FAMILY = [SECOND, PILLARS]
NAMES = ["second", "pointpillars"]


def built(text: str, *overrides: str) -> VoxelDetector:
    torch.manual_seed(0)
    return build_detector(parse_config(text + ANCHORS + HEADS, overrides))


def some_points(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    low, high = torch.tensor([0, -6.4, -3, 0]), torch.tensor([12.8, 6.4, 1, 1])
    return low + (high - low) * torch.rand(count, 4, generator=generator)


BOXES = [torch.tensor([[6.0, 0.0, -1.0, 3.9, 1.6, 1.5, 0.1], [3.0, 3.0, -0.6, 0.8, 0.6, 1.7, 2.0]])]
CLASSES = [torch.tensor([0, 1])]


@pytest.mark.parametrize("text", FAMILY, ids=NAMES)
def test_every_parameter_gets_a_gradient(text: str) -> None:
    detector = built(text)
    predictions = detector(some_points(4000))
    locations = detector.anchors[..., 0].numel()
    assert predictions.scores.shape == (1, locations, 2)
    assert predictions.directions.shape == (1, locations, 2)
    parts = detector.loss(predictions, BOXES, CLASSES)
    assert parts["num_positive"] > 0
    parts["loss"].backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("text", FAMILY, ids=NAMES)
def test_a_sweep_gives_the_same_alone_and_in_a_batch_with_an_empty_one(text: str) -> None:
    detector = built(text).eval()
    sweeps = [some_points(1500, seed) for seed in range(3)]
    sweeps[1] = sweeps[1][:0]
    sizes = torch.tensor([len(sweep) for sweep in sweeps])
    batch = torch.repeat_interleave(torch.arange(3), sizes)
    with torch.no_grad():
        together = detector(torch.cat(sweeps), batch, 3)
        for row, sweep in enumerate(sweeps):
            for one, other in zip(detector(sweep), together, strict=True):
                torch.testing.assert_close(one[0], other[row], rtol=1e-4, atol=1e-5)
    assert len(detector.detect(torch.cat(sweeps), batch, 3)[1]) == 0


@pytest.mark.parametrize("text", FAMILY, ids=NAMES)
@pytest.mark.parametrize(
    "points",
    [some_points(0), some_points(500) + 1000, torch.full((20, 4), torch.nan), some_points(1)],
    ids=["no points", "all out of range", "all NaN", "one point"],
)
def test_odd_sweeps_pass_through_training_and_detection(text: str, points: torch.Tensor) -> None:
    detector = built(text)
    nothing = [torch.zeros(0, 7)], [torch.zeros(0, dtype=torch.int64)]
    loss = detector.loss(detector(points), *nothing)["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    assert len(detector.eval().detect(points)) == 1


@pytest.mark.parametrize("text", FAMILY, ids=NAMES)
def test_rows_equal_the_dense_path(text: str) -> None:
    """Outputs, gradients and running statistics of the layers over rows, in float64."""
    rows = built(text).double()
    dense = copy.deepcopy(rows)
    dense.middle.use_reach = False
    points = some_points(300).double()
    voxels = rows.voxelize(points.float())
    for module in (rows, dense):
        sum((part + 1).square().mean() for part in module.predict(points, voxels)).backward()
    for (name, one), other in zip(rows.named_parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=lambda m, name=name: f"{name}: {m}")
    for (name, one), other in zip(rows.named_buffers(), dense.buffers(), strict=True):
        torch.testing.assert_close(one, other, msg=lambda m, name=name: f"{name}: {m}")
    with torch.no_grad():
        found = [module.eval().predict(points, voxels) for module in (rows, dense)]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_a_detector_learns_which_way_round_two_cars_are() -> None:
    """From residuals and directions that are right, boxes come back as they were."""
    detector = built(PILLARS, "postprocess.score_threshold=0.5", "anchors.1.z_center=-0.7")
    boxes = BOXES[0].clone()
    boxes[0, 6], boxes[1, 6] = -3.0, 0.9
    targets = detector.assign_targets(detector.anchors, [boxes], CLASSES)
    positive = targets.labels[0] == 1
    anchors = detector.anchors.view(-1, 7)
    scores = torch.full((1, len(anchors), 2), -9.0)
    scores[0, positive, targets.class_ids[positive]] = 9.0
    half_turned = targets.residuals[0].clone()
    half_turned[:, 6] += torch.pi
    offset = detector.config.head.direction_offset
    ways = ((targets.yaws - offset) % (2 * torch.pi) >= torch.pi).long()
    directions = torch.nn.functional.one_hot(ways, 2).float()
    predictions = Predictions(scores, half_turned[None], directions)
    (found,) = detector.postprocess(predictions, detector.anchors, detector.anchor_classes)
    assert sorted(found.class_ids.tolist()) == [0, 1]
    torch.testing.assert_close(found.boxes[found.class_ids.argsort()], boxes, rtol=1e-4, atol=1e-4)
    residual = encode(boxes[0], anchors[positive][targets.class_ids[positive] == 0])
    assert residual.isfinite().all()


@pytest.mark.parametrize(
    ("name", "anchors", "weights"),
    [
        ("second_car", 200 * 176 * 2, None),
        ("second_3class", 200 * 176 * 6, None),
        ("pointpillars_car", 248 * 216 * 2, None),
        ("pointpillars_3class", 248 * 216 * 6, 4.8e6),
    ],
)
def test_paper_size(name: str, anchors: int, weights: float | None) -> None:
    detector = build_detector(load_config(CONFIGS / f"{name}.yaml"))
    assert detector.anchors.view(-1, 7).shape == (anchors, 7)
    assert detector.rpn.output_stride == (1 if name.startswith("second") else 2)
    if weights:
        count = sum(parameter.numel() for parameter in detector.parameters())
        assert count == pytest.approx(weights, rel=0.02)


def config_of(*overrides: str) -> Config:
    return parse_config(PILLARS + ANCHORS, overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["grid.voxel_size=[0.4,0.4,2]"], "grid is 2 voxels high; pillars are 1"),
        (["middle.name=dense"], "vfe pillar and middle dense do not go together"),
        (["vfe.name=mean", "vfe.out_channels=8"], "vfe.out_channels: unknown key"),
        (["head.direction=true"], "head.direction is for loss.angle sine"),
        (["rpn.strides=[2,3]"], "which middle and rpn.strides, in all 6, do not divide"),
        (["rpn.strides=[2]"], "must name the same number of blocks"),
        (["vfe.offsets=x"], "vfe.offsets: "),
    ],
)
def test_what_does_not_go_together_is_said(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(*overrides)


def test_the_model_says_which_blocks_are_meant() -> None:
    found = {
        name: load_config(CONFIGS / f"{name}.yaml")
        for name in ("voxelnet_car", "second_car", "pointpillars_car")
    }
    blocks = [(config.vfe.name, config.middle.name) for config in found.values()]
    assert blocks == [("stacked", "dense"), ("mean", "sparse"), ("pillar", "scatter")]
    original = parse_config(
        SECOND + ANCHORS,
        ["vfe.name=stacked", "middle.layout=two_stage", "middle.channels=[8,8,8]",
         "grid.voxel_size=[0.2,0.2,0.4]", "rpn.strides=[2,2]"],
    )  # fmt: skip
    assert original.vfe.name == "stacked" and original.middle.name == "sparse"


def test_points_on_the_lower_faces_are_outside_an_open_grid() -> None:
    points = torch.tensor(
        [[0.0, 0.0, 0.0, 0.5], [1.0, -6.4, 0.0, 0.5], [1.0, 0.0, -3.0, 0.5], [1.0, 0.0, 0.0, 0.5]]
    )
    closed, opened = built(PILLARS), built(PILLARS, "grid.open=true")
    assert closed.voxelize(points).num_points == 4
    assert opened.voxelize(points).point_index.tolist() == [3]


def test_a_full_pillar_keeps_its_first_points_if_told_to() -> None:
    points = torch.cat([torch.tensor([[1.0, 0.1, 0.0]]).expand(9, 3), torch.rand(9, 1)], dim=1)
    detector = built(PILLARS, "vfe.keep=first")
    assert detector.voxelize(points).point_index.tolist() == [0, 1, 2, 3, 4]
