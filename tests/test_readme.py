"""What the README shows is true: its Python runs, its commands exist with the options it gives."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from voxelpool.config import Config
from voxelpool.datasets.kitti import write_sweep
from voxelpool.models import build_detector
from voxelpool.models.checkpoint import write_checkpoint
from voxelpool.models.weights import random_points

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """The words of every command that the README shows, comments left out."""
    text = "\n".join(blocks("bash")).replace("\\\n", " ")
    prose = re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`((?:python|make) [^`]*)`", prose.replace("\n", " "))
    lines = [shlex.split(line, comments=True) for line in [*text.splitlines(), *inline]]
    return [line for line in lines if line]


def run_python(use: str, folder: Path) -> str:
    """Runs the README's Python that has ``use`` in it; what it printed."""
    (snippet,) = [block for block in blocks("python") if use in block]
    done = subprocess.run(
        [sys.executable, "-c", snippet], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_python_runs(tmp_path: Path) -> None:
    out = run_python("voxelize(", tmp_path)
    stored = np.load(tmp_path / "voxels.npz")
    assert f"torch.Size([{len(stored['coords'])}, 4])" in out
    assert stored["offsets"][-1] <= 20_000


def test_detecting_from_python_runs(tiny_config: Config, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_detector(tiny_config).eval()
    with torch.no_grad():
        network.rpn.score_head.bias.add_(2)
    checkpoint = tmp_path / "runs/demo/checkpoints/best.ckpt"
    sweep = tmp_path / "data/simulated/training/velodyne/000600.bin"
    for path in (checkpoint, sweep):
        path.parent.mkdir(parents=True)
    write_checkpoint(checkpoint, tiny_config, network.state_dict())
    points = random_points(network, 500)
    write_sweep(sweep, points.numpy())
    found = network.detect(points)[0]
    found = found[found.scores >= 0.3]
    lines = [line.split() for line in run_python("Detector.load(", tmp_path).splitlines()]
    assert len(lines) == len(found) > 0
    assert [line[0] for line in lines] == ["Car"] * len(found)
    scores = torch.tensor([float(line[1]) for line in lines])
    torch.testing.assert_close(scores, found.scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_commands_exist(command: list[str], run_help: dict[str, str]) -> None:
    if command[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in command[1:])
        return
    assert command[0] == "python"
    if command[1] == "-m":
        assert command[2] == "voxelpool"
        return
    help_text = run_help[command[1]]
    for word in command[2:]:
        if word.startswith("-"):
            assert re.search(rf"(?<!\w){re.escape(word)}\b", help_text), word
        if word.startswith("configs/"):
            assert (ROOT / word).is_file()


@pytest.fixture(scope="module")
def run_help() -> dict[str, str]:
    """The help of each tool that the README shows."""
    tools = sorted({c[1] for c in commands() if c[0] == "python" and c[1].startswith("tools/")})
    processes = {
        tool: subprocess.Popen(
            [sys.executable, ROOT / tool, "--help"], stdout=subprocess.PIPE, text=True
        )
        for tool in tools
    }
    texts = {tool: process.communicate()[0] for tool, process in processes.items()}
    assert all(process.returncode == 0 for process in processes.values())
    return texts


def test_pictures_and_pages_are_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
