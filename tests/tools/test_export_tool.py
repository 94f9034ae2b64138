"""The tool that exports, chained to a checkpoint, and what it says to bad input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from voxelpool.config import Config, parse_config, save_config
from voxelpool.models import build_detector, load_detector
from voxelpool.models.checkpoint import write_checkpoint
from voxelpool.models.export import open_exported

RunTool = Callable[..., tuple[int, str, str]]
PILLARS = """
name: tiny_pillars
model: pointpillars
grid: {range: [0, -6.4, -3, 12.8, 6.4, 1], voxel_size: [0.4, 0.4, 4]}
vfe: {out_channels: 8, max_points: 5}
rpn: {layers: [1, 1], strides: [2, 2], channels: [8, 8], upsample_channels: [8, 8]}
anchors:
  - {class_name: Car, size: [3.9, 1.6, 1.56], z_center: -1.0,
     matched_threshold: 0.6, unmatched_threshold: 0.45}
"""
SECOND = PILLARS.replace("pointpillars", "second").replace("[0.4, 0.4, 4]", "[0.1, 0.1, 0.1]")
SECOND = SECOND.replace("vfe: {out_channels: 8, max_points: 5}", "middle: {backend: native}")
SECOND = SECOND.replace("strides: [2, 2]", "strides: [1, 2]")


def saved(text: str, folder: Path) -> tuple[Config, Path, Path]:
    """A configuration, its file, and a checkpoint of it."""
    config = parse_config(text)
    torch.manual_seed(0)
    save_config(config, folder / "tiny.yaml")
    write_checkpoint(folder / "tiny.ckpt", config, build_detector(config).state_dict())
    return config, folder / "tiny.yaml", folder / "tiny.ckpt"


def error(code: int, err: str) -> str:
    assert code == 1
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in err
    return line


def test_from_points_to_boxes(run_tool: RunTool, tmp_path: Path) -> None:
    _, config, checkpoint = saved(PILLARS, tmp_path)
    out = tmp_path / "out.pt2"
    given = ["export", config, "--checkpoint", checkpoint, "--format", "torch-export", "-o", out]
    code, text, err = run_tool(*given, "--takes", "points", "--gives", "boxes")
    assert code == 0, err
    assert "differs from the detector by" in text and str(out) in text
    scores, boxes = open_exported(out)(torch.rand(50, 4) * 5)
    assert scores.shape == (1, 512) and boxes.shape == (1, 512, 7)

    before = out.read_bytes()
    assert "already exists" in error(*run_tool(*given)[::2])
    assert out.read_bytes() == before
    assert run_tool(*given, "--overwrite", "--no-check")[0] == 0
    assert len(open_exported(out).graph.find_nodes(op="placeholder")) == 3


def test_onnx(run_tool: RunTool, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="extra [export] is not installed")
    pytest.importorskip("onnxruntime", reason="extra [export] is not installed")
    _, config, checkpoint = saved(PILLARS, tmp_path)
    out = tmp_path / "out.onnx"
    given = ["export", config, "--checkpoint", checkpoint, "--format", "onnx", "-o", out]
    code, _, err = run_tool(*given)
    assert code == 0, err
    assert out.is_file()
    out.unlink()
    assert "takes voxels" in error(*run_tool(*given, "--takes", "points")[::2])
    assert "*.pt2" in error(*run_tool(*given, "--format", "aoti")[::2])
    assert "VoxelNet" in error(*run_tool(*given, "--dense-input")[::2])
    assert not list(tmp_path.glob("*out*"))


def test_second_says_what_it_cannot(run_tool: RunTool, tmp_path: Path) -> None:
    _, config, checkpoint = saved(SECOND, tmp_path)
    given = ["export", config, "--checkpoint", checkpoint, "-o", tmp_path / "out.onnx"]
    assert "sparse convolutions" in error(*run_tool(*given, "--format", "onnx")[::2])
    given[-1] = tmp_path / "folder" / "out.pt2"
    assert "folder" in error(*run_tool(*given, "--format", "torch-export", "--no-check")[::2])
    assert (
        "no such file"
        in error(
            *run_tool(*given, "--format", "aoti", "--checkpoint", tmp_path / "none.ckpt")[::2]
        ).lower()
    )
    assert not list(tmp_path.glob("*out*"))


def test_weights_say_what_they_cannot(run_tool: RunTool, tmp_path: Path) -> None:
    _, config, checkpoint = saved(PILLARS, tmp_path)
    given = ["export", config, "--checkpoint", checkpoint, "--format", "weights", "-o"]
    assert "a file *.pt" in error(*run_tool(*given, tmp_path / "out.pt2")[::2])
    assert "--takes" in error(*run_tool(*given, tmp_path / "out.pt", "--takes", "points")[::2])
    assert "none/out.pt: cannot write" in error(*run_tool(*given, tmp_path / "none/out.pt")[::2])
    assert not list(tmp_path.glob("*out*"))


def test_weights_of_several_checkpoints_are_their_mean(run_tool: RunTool, tmp_path: Path) -> None:
    config, file, checkpoint = saved(PILLARS, tmp_path)
    torch.manual_seed(1)
    other = build_detector(config)
    write_checkpoint(tmp_path / "other.ckpt", config, other.state_dict())
    given = ["export", file, "--checkpoint", checkpoint, "--checkpoint", tmp_path / "other.ckpt"]
    out = tmp_path / "out.pt"
    code, _, err = run_tool(*given, "--format", "weights", "-o", out)
    assert code == 0, err
    name = "rpn.blocks.0.0.weight"
    one = load_detector(checkpoint).state_dict()[name]
    mean = (one + other.state_dict()[name]) / 2
    found = load_detector(out).state_dict()[name]
    torch.testing.assert_close(found, mean, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found, one, atol=1e-2)


def test_help_shows_an_example(run_tool: RunTool) -> None:
    code, out, _ = run_tool("export", "--help")
    assert code == 0
    assert "Example: python tools/export.py" in " ".join(out.split())
