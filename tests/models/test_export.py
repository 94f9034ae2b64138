"""Exported detectors compute what the detectors do, by operators that others know."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from voxelpool.config import load_config, parse_config
from voxelpool.datasets.sweeps import read_lone_sweep
from voxelpool.detection import Detections, Predictions
from voxelpool.errors import VoxelpoolError
from voxelpool.models import VoxelDetector, build_detector
from voxelpool.models.export import (
    SUFFIXES,
    Format,
    PlainDetector,
    PlainNetwork,
    describe,
    export_detector,
    export_program,
    open_exported,
)
from voxelpool.models.import_weights import import_weights, read_source

CONFIGS = Path(__file__).parents[2] / "configs"

RANGE = [0, -6.4, -3, 12.8, 6.4, 1]
RPN = """
rpn: {layers: [1, 1], strides: [2, 2], channels: [8, 8], upsample_channels: [8, 8]}
anchors:
  - {class_name: Car, size: [3.9, 1.6, 1.56], z_center: -1.0,
     matched_threshold: 0.6, unmatched_threshold: 0.45}
  - {class_name: Pedestrian, size: [0.8, 0.6, 1.73], z_center: -0.6,
     matched_threshold: 0.5, unmatched_threshold: 0.35}
"""
HEADS = "head: {scores: all, direction: true}\nloss: {classification: focal, angle: sine}\n"
NET = f"""
name: tiny_net
grid: {{range: {RANGE}, voxel_size: [0.4, 0.4, 0.4]}}
vfe: {{channels: [8], out_channels: 8, max_points: 5}}
middle: {{channels: [4, 4, 4]}}
{RPN}"""
SECOND = f"""
name: tiny_second
model: second
grid: {{range: {RANGE}, voxel_size: [0.1, 0.1, 0.1]}}
vfe: {{max_points: 3}}
middle: {{channels: [4, 4, 8, 8, 8]}}
{RPN}""".replace("strides: [2, 2]", "strides: [1, 2]")
PILLARS = f"""
name: tiny_pillars
model: pointpillars
grid: {{range: {RANGE}, voxel_size: [0.4, 0.4, 4]}}
vfe: {{out_channels: 8, max_points: 5}}
{RPN}{HEADS}"""
FAMILY = {"voxelnet": NET, "second": SECOND, "pointpillars": PILLARS}
VARIANTS = {
    **FAMILY,
    "voxelnet, directions": NET + HEADS,
    "offsets of 3": NET.replace("max_points: 5", "max_points: 5, center_offsets: true"),
    "average": NET.replace("max_points: 5", "max_points: 5, pool: average"),
    "sum": NET.replace("max_points: 5", "max_points: 5, pool: sum"),
    "min": NET.replace("max_points: 5", "max_points: 5, pool: min"),
    "median": NET.replace("max_points: 5", "max_points: 5, pool: median"),
    "two_stage": SECOND.replace("voxel_size: [0.1, 0.1, 0.1]", "voxel_size: [0.4, 0.4, 0.4]")
    .replace("channels: [4, 4, 8, 8, 8]", "layout: two_stage, channels: [4, 8, 8]")
    .replace("strides: [1, 2]", "strides: [2, 2]"),
    "padded maximum": PILLARS.replace(
        "max_points: 5", "max_points: 5, padded_max: true, keep: first"
    ),
    "open range": PILLARS.replace("[0.4, 0.4, 4]", "[0.4, 0.4, 4], open: true"),
    "few voxels": PILLARS.replace("max_points: 5", "max_points: 2, max_voxels: 100"),
    "necks": PILLARS.replace("strides: [2, 2]", "strides: [2, 2], neck: spp, attention: cbam"),
    "masked squeeze": PILLARS.replace(
        "strides: [2, 2]", "strides: [2, 2], attention: se, squeeze: masked"
    ),
}


def built(text: str, *overrides: str) -> VoxelDetector:
    """A detector whose outputs depend on its inputs as strongly as those of a trained one."""
    detector = build_detector(parse_config(text, overrides))
    generator = torch.Generator().manual_seed(1)
    for module in detector.modules():
        weight = getattr(module, "weight", None)
        if weight is not None and weight.dim() > 1:
            scale = (2 / weight[0].numel()) ** 0.5
            weight.data = torch.randn(weight.shape, generator=generator) * scale
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 1.5),
                (module.weight, 0.7, 1.3),
                (module.bias, -0.2, 0.2),
            ):
                tensor.data.uniform_(low, high, generator=generator)
    nn.init.zeros_(detector.rpn.score_head.bias)
    return detector.eval()


def some_points(count: int, seed: int = 0) -> torch.Tensor:
    """Points in and around the range, some of them in one voxel."""
    generator = torch.Generator().manual_seed(seed)
    low, high = torch.tensor([-1, -6.4, -3, 0]), torch.tensor([12.8, 7, 1, 1])
    points = low + (high - low) * torch.rand(count, 4, generator=generator)
    points[: count // 4, :3] = points[: count // 4, :3] * 0.1 + 2
    return points


def inputs_of(
    detector: VoxelDetector, points: torch.Tensor, batch: torch.Tensor | None = None, size: int = 1
) -> tuple[torch.Tensor, ...]:
    voxels = detector.voxelize(points, batch, size)
    return voxels.pad(points, detector.config.vfe.max_points)[0], voxels.counts(), voxels.coords


def assert_same(found: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor | None, ...]) -> None:
    wanted = [part for part in expected if part is not None]
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("text", VARIANTS.values(), ids=VARIANTS)
@torch.no_grad()
def test_plain_operators_compute_the_same(text: str) -> None:
    detector = built(text)
    network, whole = PlainNetwork(detector), PlainDetector(detector)
    maps = []
    for count in (0, 1, 40, 2500):
        points = some_points(count)
        expected = detector(points)
        assert_same(network(*inputs_of(detector, points)), expected)
        assert_same(whole(points), expected)
        maps.append(expected.residuals)
    assert all((one - maps[-1]).abs().max() > 0.1 for one in maps[:-1])  # inputs matter


@pytest.mark.parametrize("text", FAMILY.values(), ids=FAMILY)
@torch.no_grad()
def test_batches_with_an_empty_sweep(text: str) -> None:
    detector = built(text)
    points = torch.cat([some_points(300), some_points(800, 1)])
    batch = torch.tensor([0] * 300 + [2] * 800)
    inputs = inputs_of(detector, points, batch, 3)
    assert_same(PlainNetwork(detector, batch_size=3)(*inputs), detector(points, batch, 3))
    scores, boxes = PlainNetwork(detector, batch_size=3, gives="boxes")(*inputs)
    assert (scores[1] == 0).all() and (scores[[0, 2]] > 0).all()
    assert boxes.shape == (3, detector.anchors.numel() // 7, 7)


@torch.no_grad()
def test_dense_input_is_the_same() -> None:
    detector = built(NET)
    inputs = inputs_of(detector, some_points(500))
    expected = PlainNetwork(detector)(*inputs)
    detector.middle.dense_input = True
    assert_same(PlainNetwork(detector)(*inputs), expected)


def detections(detector: VoxelDetector, outputs: tuple[torch.Tensor, ...]) -> Detections:
    """The boxes that post-processing makes of an exported detector's maps."""
    (found,) = detector.postprocess(
        Predictions(*outputs), detector.anchors, detector.anchor_classes
    )
    return found


def check_exported(path: Path, detector: VoxelDetector, *, takes: str = "voxels") -> None:
    """Maps and boxes of a file are those of the detector, for sweeps of any size."""
    run = open_exported(path)
    for count in (3, 0, 1, 2000):
        points = some_points(count, seed=count)
        with torch.no_grad():
            outputs = run(*(inputs_of(detector, points) if takes == "voxels" else (points,)))
            assert_same(outputs, detector(points))
        if count == 2000:
            found, expected = detections(detector, outputs), detector.detect(points)[0]
            assert len(expected) > 5
            assert found.class_ids.tolist() == expected.class_ids.tolist()
            torch.testing.assert_close(found.boxes, expected.boxes, rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("text", "takes"),
    [
        (NET, "voxels"),
        (PILLARS, "voxels"),
        (PILLARS, "points"),
        pytest.param(SECOND, "points", marks=pytest.mark.slow),
    ],
    ids=lambda value: value.split()[1].removeprefix("tiny_") if " " in value else value,
)
def test_programs(text: str, takes: str, tmp_path: Path) -> None:
    detector = built(text)
    path = tmp_path / "detector.pt2"
    assert export_detector(detector, path, "torch-export", takes=takes) < 1e-5
    check_exported(path, detector, takes=takes)
    extra = {"voxelpool.json": ""}
    program = torch.export.load(path, extra_files=extra)
    operators = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
    assert not any("voxelpool" in operator for operator in operators)
    about = json.loads(extra["voxelpool.json"])
    assert about == describe(detector, takes=takes)
    assert build_detector(parse_config(about["config"])).grid == detector.grid


@pytest.mark.parametrize("text", [NET, PILLARS], ids=["voxelnet", "pointpillars"])
def test_onnx(text: str, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="extra [export] is not installed")
    pytest.importorskip("onnxscript", reason="extra [export] is not installed")
    pytest.importorskip("onnxruntime", reason="extra [export] is not installed")
    detector = built(text)
    path = tmp_path / "detector.onnx"
    assert export_detector(detector, path, "onnx") < 1e-5
    check_exported(path, detector)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    assert [value.name for value in model.graph.input] == ["padded", "counts", "coords"]
    names = ["scores", "residuals", "directions"][: 3 if text == PILLARS else 2]
    assert [value.name for value in model.graph.output] == names
    (entry,) = model.metadata_props
    assert json.loads(entry.value) == describe(detector)


@pytest.mark.slow  # PointPillars: tests/test_deploy.py
@pytest.mark.parametrize(
    ("text", "takes"), [(NET, "voxels"), (SECOND, "points")], ids=["voxelnet", "second"]
)
def test_packages(text: str, takes: str, tmp_path: Path) -> None:
    detector = built(text)
    path = tmp_path / "detector.pt2"
    assert export_detector(detector, path, "aoti", takes=takes) < 1e-5
    check_exported(path, detector, takes=takes)
    package = torch._inductor.aoti_load_package(str(path))
    assert json.loads(package.get_metadata()["voxelpool"]) == describe(detector, takes=takes)


@torch.no_grad()
def test_boxes_are_decoded_and_faced(tmp_path: Path) -> None:
    """What is given as boxes, filtered by score and NMS alone, is what the detector finds."""
    detector = built(PILLARS, "postprocess.nms_pre=4096", "postprocess.max_detections=4096")
    path = tmp_path / "detector.pt2"
    export_detector(detector, path, "torch-export", takes="points", gives="boxes")
    points = some_points(2000)
    scores, boxes = open_exported(path)(points)
    expected = detector.detect(points)[0]
    assert len(expected) > 5
    for box, score, kind in zip(
        expected.boxes, expected.scores, expected.class_ids.tolist(), strict=True
    ):
        row = (scores[0, :, kind] - score).abs().argmin()
        torch.testing.assert_close(scores[0, row, kind], score, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(boxes[0, row], box, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("text", FAMILY.values(), ids=FAMILY)
@torch.no_grad()
def test_anchors_that_are_left_out_have_no_score(text: str) -> None:
    """Points on one side only, in the second of two sweeps; the scores of all others stay."""
    detector, plain = built(text, "head.min_voxels=2"), built(text)
    plain.load_state_dict(detector.state_dict())
    points = some_points(800)
    points = points[points[:, 1] > 0]
    batch = torch.ones(len(points), dtype=torch.int64)
    inputs = inputs_of(detector, points, batch, 2)
    counted = detector.counted_anchors(detector.voxelize(points, batch, 2))
    scores, boxes = PlainNetwork(detector, batch_size=2, gives="boxes")(*inputs)
    all_scores, all_boxes = PlainNetwork(plain, batch_size=2, gives="boxes")(*inputs)
    assert counted is not None and counted[1].any() and not counted[1].all()
    assert torch.equal(
        scores != 0, counted.view(*counted.shape, *[1] * (scores.dim() - 2)).expand_as(scores)
    )
    torch.testing.assert_close(scores[counted], all_scores[counted])
    torch.testing.assert_close(boxes, all_boxes)


@pytest.mark.parametrize("format", ["torch-export", "onnx"])
def test_exported_programs_leave_out_anchors(format: str, tmp_path: Path) -> None:
    """For any number of voxels."""
    if format == "onnx":
        pytest.importorskip("onnxscript", reason="extra [export] is not installed")
        pytest.importorskip("onnxruntime", reason="extra [export] is not installed")
    detector = built(PILLARS, "head.min_voxels=2")
    path = tmp_path / f"detector{SUFFIXES[format]}"
    export_detector(detector, path, format, gives="boxes")
    run = open_exported(path)
    for count in (0, 1, 40, 2000):
        inputs = inputs_of(detector, some_points(count, seed=count))
        with torch.no_grad():
            assert_same(run(*inputs), PlainNetwork(detector, gives="boxes")(*inputs))


def test_what_cannot_be_exported_says_why(tmp_path: Path) -> None:
    second, pillars = built(SECOND), built(PILLARS)
    second.middle._wanted_backend = "spconv"
    path = tmp_path / "detector.onnx"
    with pytest.raises(VoxelpoolError, match=r"onnx has no sparse convolutions"):
        export_detector(second, path, "onnx")
    with pytest.raises(VoxelpoolError, match="onnx takes voxels"):
        export_detector(pillars, path, "onnx", takes="points")
    with pytest.raises(VoxelpoolError, match="spconv"):
        export_program(second)
    with pytest.raises(VoxelpoolError, match=r"detector\.onnx: .*\.pt2"):
        export_detector(pillars, path, "torch-export")
    with pytest.raises(VoxelpoolError, match="a batch of 2"):
        export_program(pillars, takes="points", batch_size=2)
    assert not list(tmp_path.iterdir())


def test_a_wrong_export_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = built(PILLARS)
    path = tmp_path / "detector.pt2"
    forward = PlainNetwork.forward
    monkeypatch.setattr(
        PlainNetwork,
        "forward",
        lambda self, padded, counts, coords: forward(self, padded * 0.9, counts, coords),
    )
    with pytest.raises(VoxelpoolError, match="differs from the detector"):
        export_detector(detector, path, "torch-export")
    monkeypatch.undo()
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        export_detector(detector, path, "torch-export")
    assert [file.name for file in tmp_path.iterdir()] == ["detector.pt2"]
    assert path.read_text() == "mine"
    export_detector(detector, path, "torch-export", overwrite=True, check=False)
    check_exported(path, detector)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["torch-export", "onnx"])
def test_trained_weights_on_real_frames(
    format: Format, kitti_sample: Path, reference_pointpillars: Path, tmp_path: Path
) -> None:
    """Boxes of the exported detector are the detector's, on sweeps of 3000 to 9000 pillars."""
    if format == "onnx":
        pytest.importorskip("onnxscript", reason="extra [export] is not installed")
        pytest.importorskip("onnxruntime", reason="extra [export] is not installed")
    config = load_config(CONFIGS / "pointpillars_zhulf0804.yaml")
    source = read_source(reference_pointpillars / "checkpoint.pth")
    detector = build_detector(config).eval()
    weights = import_weights(source, "pointpillars-zhulf0804", config).weights
    detector.load_state_dict(dict(weights), strict=False)
    path = tmp_path / f"pillars{SUFFIXES[format]}"
    export_detector(detector, path, format, check=False)
    run = open_exported(path)
    sweeps = sorted((kitti_sample / "training" / "velodyne").glob("*.bin"))[:3]
    for sweep in sweeps:
        points = torch.from_numpy(read_lone_sweep(sweep).points)
        with torch.no_grad():
            found = detections(detector, run(*inputs_of(detector, points)))
        (expected,) = detector.detect(points)
        assert found.class_ids.tolist() == expected.class_ids.tolist()
        torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=1e-4)
        torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-5)
