"""What docs/deploy.md shows is true: its scripts run, without this package, and find the boxes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from voxelpool.config import parse_config
from voxelpool.models import VoxelDetector, build_detector
from voxelpool.models.export import Format, export_detector

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
#: Nothing of this package is there for what runs after it.
ALONE = "import sys\nsys.modules['voxelpool'] = None\n"


def script(section: str) -> str:
    """The Python of a section."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return block


def found_by(section: str, folder: Path) -> list[list[str]]:
    """The words of each line that a section's script prints."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE + script(section)],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


@pytest.fixture
def detector(tmp_path: Path) -> VoxelDetector:
    """A detector that finds a few things in sweep.bin, which lies in the test's folder."""
    config = parse_config(
        """
        name: tiny
        model: pointpillars
        grid: {range: [0, -6.4, -3, 12.8, 6.4, 1], voxel_size: [0.4, 0.4, 4]}
        vfe: {out_channels: 8, max_points: 20}
        rpn: {layers: [1, 1], strides: [2, 2], channels: [8, 8], upsample_channels: [8, 8]}
        anchors:
          - {class_name: Car, size: [3.9, 1.6, 1.56], z_center: -1.0,
             matched_threshold: 0.6, unmatched_threshold: 0.45}
          - {class_name: Pedestrian, size: [0.8, 0.6, 1.73], z_center: -0.6,
             matched_threshold: 0.5, unmatched_threshold: 0.35}
        head: {scores: all, direction: true}
        loss: {classification: focal, angle: sine}
        postprocess: {score_threshold: 0.3, nms_iou: 0}
        """
    )
    torch.manual_seed(0)
    detector = build_detector(config).eval()
    for module in detector.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            module.weight.data *= 2
    # Yaws along the axes: there the script's NMS and the detector's are the same.
    head = detector.rpn.residual_head
    for tensor in (head.weight.data, head.bias.data):
        tensor.view(4, 7, -1)[:, 6] = 0
    nn.init.zeros_(detector.rpn.score_head.bias)
    points = np.random.default_rng(0).uniform([0, -6.4, -3, 0], [12.8, 6.4, 1, 1], (1500, 4))
    points[:400, :3] = points[:400, :3] * 0.2 + [4, 1, 0]
    points.astype(np.float32).tofile(tmp_path / "sweep.bin")
    return detector


def sweep(folder: Path) -> torch.Tensor:
    return torch.from_numpy(np.fromfile(folder / "sweep.bin", np.float32).reshape(-1, 4))


def expected(detector: VoxelDetector, points: torch.Tensor) -> dict[tuple[str, ...], list[float]]:
    """What the detector finds: boxes by class and score."""
    (found,) = detector.detect(points)
    names = [detector.config.classes[row] for row in found.class_ids.tolist()]
    return {
        (name, f"{score:.3f}"): box
        for name, score, box in zip(names, found.scores.tolist(), found.boxes.tolist(), strict=True)
    }


def test_torch_export(detector: VoxelDetector, tmp_path: Path) -> None:
    path = tmp_path / "pillars.pt2"
    export_detector(detector, path, "torch-export", takes="points", gives="boxes", check=False)
    lines = found_by("torch.export", tmp_path)
    assert {line[0] for line in lines} <= {"Car", "Pedestrian"}
    boxes = np.array([line[2:] for line in lines], np.float64)
    points = sweep(tmp_path)
    with torch.no_grad():
        best = detector(points).scores[0].amax(dim=1).sigmoid()
    assert len(lines) == int((best > 0.3).sum()) > 5
    for box in list(expected(detector, points).values()):
        assert np.abs(boxes - box).max(axis=1).min() < 1e-3


def test_onnx(detector: VoxelDetector, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="extra [export] is not installed")
    pytest.importorskip("onnxruntime", reason="extra [export] is not installed")
    export_detector(detector, tmp_path / "pillars.onnx", "onnx", gives="boxes", check=False)
    lines = found_by("ONNX", tmp_path)
    (found,) = detector.detect(sweep(tmp_path))
    assert len(found) > 3
    boxes = {(line[0], *np.round(np.array(line[2:], np.float64), 2)) for line in lines}
    scores = sorted(float(line[1]) for line in lines)
    assert scores == [float(line[1]) for line in lines][::-1]
    for box, kind in zip(found.boxes.numpy(), found.class_ids.tolist(), strict=True):
        near = [
            np.abs(np.array(other[1:]) - box).max()
            for other in boxes
            if other[0] == detector.config.classes[kind]
        ]
        assert min(near) < 0.02


@pytest.mark.slow
def test_aoti(detector: VoxelDetector, tmp_path: Path) -> None:
    path = tmp_path / "pillars_aoti.pt2"
    export_detector(detector, path, "aoti", takes="points", gives="boxes", check=False)
    ((name, *rows),) = found_by("AOTInductor", tmp_path)
    with torch.no_grad():
        scores = detector(sweep(tmp_path)).scores[0].sigmoid()
    assert name == "tiny"
    assert rows == [str(row) for row in (scores > 0.3).nonzero()[:, 0].tolist()] != []


def test_commands_are_those_of_the_tool() -> None:
    (block,) = re.findall(r"^```bash\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    source = (ROOT / "tools" / "export.py").read_text(encoding="utf-8")
    for line in block.splitlines():
        words = line.split()
        assert words[:2] == ["python", "tools/export.py"] and (ROOT / words[2]).is_file()
        assert words[words.index("--format") + 1] in Format.__args__
        for option in filter(lambda word: word.startswith("--"), words):
            assert f"    {option[2:]}: Annotated" in source, option
