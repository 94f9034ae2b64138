"""tools/import_weights.py as a user runs it: listing, messages, exit codes, and the tools after."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from voxelpool.config import load_detector_config
from voxelpool.datasets.kitti import read_result
from voxelpool.models import build_detector, load_detector

CONFIGS = Path(__file__).parents[2] / "configs"
CONFIG = CONFIGS / "pointpillars_zhulf0804.yaml"
SMALL = "grid.range=[0, -2.56, -3, 5.12, 2.56, 1]"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A checkpoint with the names and shapes of the other package, and zeros."""
    ours = build_detector(load_detector_config(CONFIG, [SMALL])).state_dict()
    renamed = {
        "vfe.points.linear": "pillar_encoder.conv",
        "vfe.points.norm": "pillar_encoder.bn",
        "rpn.blocks": "backbone.multi_blocks",
        "rpn.upsamples": "neck.decoder_blocks",
        "rpn.score_head": "head.conv_cls",
        "rpn.residual_head": "head.conv_reg",
        "rpn.direction_head": "head.conv_dir_cls",
    }
    weights = {}
    for name, value in ours.items():
        (start,) = [start for start in renamed if name.startswith(start)]
        value = value[..., None] if name == "vfe.points.linear.weight" else value
        weights[renamed[start] + name.removeprefix(start)] = torch.zeros_like(value)
    path = tmp_path_factory.mktemp("source") / "epoch_160.pth"
    torch.save(weights, path)
    return path


@pytest.fixture
def tool(run_tool, source, tmp_path):
    def run(*arguments, source=source, format="pointpillars-zhulf0804", config=CONFIG):
        return run_tool(
            "import_weights", source, "--format", format, "--config", config,
            "-o", tmp_path / "out.ckpt", *arguments,
        )  # fmt: skip

    return run


def refusal(result, tmp_path) -> str:
    """The line that says why, nothing having been written."""
    code, _, err = result
    assert code == 1
    assert not list(tmp_path.glob("*out.ckpt*"))
    (line,) = [line for line in err.splitlines() if line.startswith("error:")]
    return line


def test_writes_a_checkpoint(tool, tmp_path):
    code, out, err = tool(SMALL)
    assert code == 0
    assert "126 tensors" in out and "left: nothing" in out and "missing: nothing" in out
    assert "head.conv_reg" in out and "rpn.residual_head" in out
    assert "grid.range" in err  # another one than published
    detector = load_detector(tmp_path / "out.ckpt")
    assert detector.config == load_detector_config(CONFIG, [SMALL])
    assert [path.name for path in tmp_path.iterdir()] == ["out.ckpt"]


def test_nothing_is_overwritten(tool, tmp_path):
    out = tmp_path / "out.ckpt"
    out.write_text("precious")
    code, _, err = tool(SMALL)
    assert code == 1 and "already exists" in err
    assert out.read_text() == "precious"
    assert tool(SMALL, "--overwrite")[0] == 0
    load_detector(out)


def test_bad_sources(tool, source, tmp_path):
    assert "absent.pth" in refusal(tool(SMALL, source=tmp_path / "absent.pth"), tmp_path)
    weights = torch.load(source, weights_only=True)
    path = tmp_path / "other.pth"

    name = "backbone.multi_blocks.0.0.weight"
    torch.save({**weights, name: torch.zeros(64, 32, 3, 3)}, path)
    line = refusal(tool(SMALL, source=path), tmp_path)
    assert "other.pth" in line and f"{name} has shape (64, 32, 3, 3)" in line
    assert "rpn.blocks.0.0.weight" in line and "(64, 64, 3, 3)" in line

    torch.save({name: value for name, value in weights.items() if "conv_cls" not in name}, path)
    assert "head.conv_cls.weight" in refusal(tool(SMALL, source=path), tmp_path)

    torch.save({**weights, "run": print}, path)
    assert "more than" in (line := refusal(tool(SMALL, source=path), tmp_path)) or "objects" in line


def test_bad_options(tool, tmp_path):
    code, _, err = tool(SMALL, format="second.pytorch")
    assert code == 2 and "second.pytorch" in err
    assert "norm.eps" in refusal(tool(SMALL, "norm.eps=1e-5"), tmp_path)
    assert tool(SMALL, "norm.eps=1e-5", "--allow-differences", "--overwrite")[0] == 0


def test_class_order(tool, source, tmp_path):
    """Scores of the source's second class are those of the class that is named second."""
    weights = torch.load(source, weights_only=True)
    weights["head.conv_cls.bias"] = torch.arange(18.0)
    path = tmp_path / "ordered.pth"
    torch.save(weights, path)
    assert tool(SMALL, "--classes", "Car", "Pedestrian", "Cyclist", source=path)[0] == 0
    bias = load_detector(tmp_path / "out.ckpt").rpn.score_head.bias
    # Pedestrian, Cyclist, Car here: anchors 2 to 5, then 0 and 1; classes 1, 2, 0 in each.
    expected = [3 * anchor + kind for anchor in (2, 3, 4, 5, 0, 1) for kind in (1, 2, 0)]
    assert bias.tolist() == expected


def test_help(run_tool):
    code, out, _ = run_tool("import_weights", "--help")
    assert code == 0 and "Example: python tools/import_weights.py" in out


def test_imported_detector_in_the_other_tools(
    run_tool, tool, reference_pointpillars, kitti_sample, tmp_path
):
    assert tool(source=reference_pointpillars / "checkpoint.pth")[0] == 0
    checkpoint, found = tmp_path / "out.ckpt", tmp_path / "found"
    sweep = kitti_sample / "training" / "velodyne" / "000008.bin"
    code, _, _ = run_tool("detect", CONFIG, sweep, "--checkpoint", checkpoint, "-o", found)
    assert code == 0
    assert read_result(found / "000008.txt").type.count("Car") >= 5
    split = tmp_path / "frames.txt"
    split.write_text("000008\n000025\n")
    code, out, _ = run_tool(
        "evaluate", CONFIG, f"data.root={kitti_sample}", "data.num_workers=0", "--checkpoint",
        checkpoint, "--split", split,
    )  # fmt: skip
    assert code == 0 and "Car" in out and "2 frames" in out
