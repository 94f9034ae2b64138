"""The console command, and what importing the package brings with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from voxelpool import __main__ as console

ROOT = Path(__file__).parents[1]
HEAVY = set(
    "lightning pytorch_lightning torchmetrics open3d plotly dash tensorboard matplotlib pandas "  # noqa: SIM905
    "sklearn scipy PIL onnx onnxruntime onnxscript spconv laspy".split()
)


def modules_after(code: str) -> set[str]:
    """The top-level modules that a new interpreter holds once it has run ``code``."""
    script = f"import sys\n{code}\nimport json\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd="/"
    )
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_listing_imports_nothing_large() -> None:
    code = "from voxelpool.__main__ import main\nmain(['--help'])"
    loaded = modules_after(code)
    assert not loaded & (HEAVY | {"torch", "numpy", "typer", "rich", "pydantic", "yaml"})


@pytest.mark.parametrize(
    ("code", "light"),
    [
        ("import voxelpool", {"torch", "numpy", "pydantic", "yaml", "typer", "rich"}),
        (
            "import torch, voxelpool.ops, voxelpool.structures",
            {"pydantic", "yaml", "typer", "rich"},
        ),
        ("import torch; from voxelpool import Detector", {"typer", "rich"}),
    ],
)
def test_importing_brings_nothing_large(code: str, light: set[str]) -> None:
    """Nothing that torch does not bring by itself; "light" parts do not even bring these."""
    brought = modules_after(code)
    if "torch" in code:
        brought -= modules_after("import torch")
    assert not brought & (HEAVY | light)


def test_lists_every_tool(capsys: pytest.CaptureFixture[str]) -> None:
    console.main([])
    out = capsys.readouterr().out
    for path in (ROOT / "tools").glob("[!_]*.py"):
        assert f"\n  {path.stem.replace('_', '-')} " in out
    assert "Example" in out


def run_module(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "voxelpool", *arguments], capture_output=True, text=True
    )


def test_runs_a_tool() -> None:
    done = run_module("prepare-kitti", "--help")
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert "Usage: voxelpool prepare-kitti" in text and "Example: voxelpool prepare-kitti" in text
    assert "tools/" not in text
    done = run_module("prepare_kitti", "nowhere")
    assert done.returncode == 1


def test_version_and_what_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    console.main(["--version"])
    assert capsys.readouterr().out.startswith("voxelpool ")
    console.main(["config"])
    assert "packages:" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        console.main(["detekt"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
