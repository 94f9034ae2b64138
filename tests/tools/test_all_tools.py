"""What every tool does alike: help, common options, errors, Ctrl-C."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from voxelpool.datasets.kitti import write_sweep

ROOT = Path(__file__).parents[2]
TOOLS = sorted(path.stem for path in (ROOT / "tools").glob("[!_]*.py"))
CONFIG = str(ROOT / "configs" / "demo.yaml")
MISSING = {
    "compare_pooling": ["--experiments", "nowhere"],
    "detect": ["--weights", "voxelnet_car_sim", "nowhere.bin"],
    "evaluate": ["--labels", "nowhere", "--results", "nowhere"],
    "export": [CONFIG, "--checkpoint", "nowhere.ckpt", "--format", "onnx", "-o", "out.onnx"],
    "import_data": ["nowhere", "out", "--boxes", "nowhere.csv"],
    "import_weights": ["nowhere.pth", "--format", "openpcdet", "--config", CONFIG, "-o", "o.ckpt"],
    "prepare_kitti": ["nowhere"],
    "report": ["nowhere"],
    "simulate": ["file/out", "--frames", "1"],
    "train": ["nowhere.yaml"],
    "visualize": ["nowhere.bin"],
    "voxelize": ["nowhere.bin", "--config", CONFIG],
}


def test_every_tool_is_tested_here() -> None:
    assert set(TOOLS) <= set(MISSING)


@pytest.mark.parametrize("tool", TOOLS)
def test_help(tool: str, run_tool) -> None:
    code, out, err = run_tool(tool, "--help")
    assert (code, err) == (0, "")
    assert f"Example: python tools/{tool}.py" in " ".join(out.split())
    for option in ("--quiet", "--verbose", "--debug"):
        assert option in out
    code, again, _ = run_tool(tool, "-h")
    assert (code, again) == (0, out)


@pytest.mark.parametrize("tool", TOOLS)
def test_an_unknown_file_is_one_line(tool: str, run_tool, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    before = sorted(path.name for path in tmp_path.rglob("*"))
    code, out, err = run_tool(tool, *MISSING[tool])
    assert code == 1
    if tool != "prepare_kitti":  # which lists all that is wrong
        assert out == ""
        assert err.startswith("error: ") and err.count("\n") == 1, err
        assert ("nowhere" in err) or ("file" in err)
    assert "Traceback" not in out + err
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("tool", TOOLS)
def test_docstrings_of_tools_are_lines_of_a_list(tool: str) -> None:
    text = ast.get_docstring(ast.parse((ROOT / "tools" / f"{tool}.py").read_text()))
    assert text and text.endswith(".") and "\n" not in text and len(text) < 95


def voxelize(tmp_path: Path, run_tool, *options: object) -> tuple[int, str, str]:
    sweep = tmp_path / "sweep.bin"
    write_sweep(sweep, np.random.default_rng(0).uniform(0, 1, (50, 4)) * [20, 2, 1, 1])
    return run_tool("voxelize", sweep, "--config", CONFIG, *options)


def test_quiet_and_json(tmp_path: Path, run_tool) -> None:
    assert voxelize(tmp_path, run_tool, "--quiet") == (0, "", "")
    code, out, err = voxelize(tmp_path, run_tool, "--json", "-")
    assert code == 0 and json.loads(out)["points"]["read"] == 50
    assert "points read" in err
    path = tmp_path / "voxels.json"
    code, out, err = voxelize(tmp_path, run_tool, "--json", path, "-q")
    assert (code, out, err) == (0, "", "")
    assert json.loads(path.read_text())["points"]["read"] == 50
    code, out, err = voxelize(tmp_path, run_tool, "--verbose")
    assert code == 0 and "points read" in out and err.startswith("took ")
    assert voxelize(tmp_path, run_tool, "-q", "-v")[0] == 2


def test_traceback_for_debugging_alone(run_tool, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("VOXELPOOL_DEBUG", "0")  # so that it is taken back
    with pytest.raises(OSError, match=r"nowhere\.bin"):
        run_tool("voxelize", "nowhere.bin", "--config", CONFIG, "--debug")
    monkeypatch.setenv("VOXELPOOL_DEBUG", "0")  # --debug set it
    monkeypatch.setattr("voxelpool.ops.voxelize", lambda *_, **__: 1 / 0)
    code, _, err = voxelize(tmp_path, run_tool)
    assert code == 1 and err.count("\n") == 1
    assert err.startswith("error: ZeroDivisionError: ") and "--debug shows where" in err


def interrupted(tmp_path: Path, arguments: list[str], ready: Path) -> subprocess.CompletedProcess:
    """Runs a tool and presses Ctrl-C once a path matching ``ready`` is there."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # Ctrl-C does nothing to what is started in the background, as these tests may be.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    until = time.monotonic() + 240
    while not list(ready.parent.glob(ready.name)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, f"{ready} did not come"
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=240)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def test_ctrl_c_leaves_nothing_of_a_data_set(tmp_path: Path) -> None:
    """`import_data` writes a folder, whole or not at all."""
    sweeps = tmp_path / "sweeps"
    sweeps.mkdir()
    np.save(sweeps / "0.npy", np.random.default_rng(0).normal(0, 10, (100_000, 4)))
    for number in range(1, 400):
        os.link(sweeps / "0.npy", sweeps / f"{number}.npy")
    (tmp_path / "boxes.json").write_text("[]")
    tool = str(ROOT / "tools" / "import_data.py")
    done = interrupted(
        tmp_path, [tool, "sweeps", "out", "--boxes", "boxes.json"], tmp_path / ".out.*.tmp"
    )
    assert done.returncode == 130, done
    assert done.stderr.splitlines()[-1] == "interrupted" and "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["boxes.json", "sweeps"]


def test_ctrl_c_leaves_whole_frames(tmp_path: Path) -> None:
    """`simulate` writes file by file; what is there is whole, and --resume goes on."""
    tool = str(ROOT / "tools" / "simulate.py")
    frames = tmp_path / "out" / "training" / "velodyne"
    done = interrupted(tmp_path, [tool, "out", "--frames", "50"], frames / "*.bin")
    assert done.returncode == 130, done
    assert done.stderr.splitlines()[-1] == "interrupted" and "Traceback" not in done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]
    assert all(path.stat().st_size % 16 == 0 for path in frames.iterdir())
