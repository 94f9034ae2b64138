"""compare_pooling on a tiny experiment."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from voxelpool.config import ClassifierConfig, save_config
from voxelpool.training import comparison

RunTool = Callable[..., tuple[int, str, str]]


@pytest.fixture
def experiments(tiny_classifier: ClassifierConfig, tmp_path: Path) -> Path:
    folder = tmp_path / "compare"
    folder.mkdir()
    save_config(tiny_classifier, tmp_path / "tiny.yaml")
    for name, key in (("heads", "head"), ("windows", "window_pool")):
        (folder / f"{name}.yaml").write_text(
            f"""
            name: {name}
            title: Tiny {name}
            config: ../tiny.yaml
            variants: {{average: [classifier.{key}=average], max: [classifier.{key}=max]}}
            baseline: max
            short: {{overrides: [train.epochs=1]}}
            """
        )
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(comparison, "peak_memory", lambda *_: math.nan)
    monkeypatch.delenv("MODELNET10", raising=False)
    monkeypatch.chdir(tmp_path)


def test_compare_then_go_on_then_sum_up(
    run_tool: RunTool, experiments: Path, tmp_path: Path
) -> None:
    options = ("--experiments", experiments, "--short", "--only", "heads")
    code, out, err = run_tool("compare_pooling", *options)
    assert code == 0, err
    folder = Path("runs/compare_pooling_short")
    assert "Tiny heads (seeds 0" in out and "accuracy, %" in out and "against max" in out
    assert str(folder / "heads.png") in out and (folder / "heads.png").is_file()
    assert not (folder / "windows").exists()
    cell = folder / "heads" / "max-seed0" / "cell.json"
    before = cell.stat().st_mtime_ns
    code, out, err = run_tool(
        "compare_pooling", *options, "windows", "--seeds", "0", "1", "--json", tmp_path / "all.json"
    )
    assert code == 0, err
    assert "Tiny heads (seeds 0, 1" in out and "Tiny windows (seeds 0, 1" in out
    assert cell.stat().st_mtime_ns == before
    kept = json.loads((folder / "summary.json").read_text())
    assert kept == json.loads((tmp_path / "all.json").read_text())
    assert set(kept["experiments"]) == {"heads", "windows"} and kept["machines"][0]["cores"]
    (folder / "summary.json").unlink()
    code, out, err = run_tool("compare_pooling", "--summary", "--out", folder)
    assert code == 0, err
    assert "Tiny windows (seeds 0, 1" in out
    assert json.loads((folder / "summary.json").read_text()) == kept


def test_bad_input(run_tool: RunTool, experiments: Path, tmp_path: Path) -> None:
    def fails(*arguments: object) -> str:
        code, _, err = run_tool("compare_pooling", *arguments)
        assert code == 1 and "Traceback" not in err, err
        return err.splitlines()[-1]

    here = ("--experiments", experiments)
    assert "no experiment head; there are heads, windows" in fails(*here, "--only", "head")
    assert "holds no experiment" in fails("--experiments", tmp_path / "none")
    assert "holds no measured cell" in fails("--summary", "--out", tmp_path / "none")
    gone = ("--modelnet", tmp_path / "gone.npz", "--short", "--only", "heads")
    assert "all 2 cells failed" in fails(*here, *gone)
