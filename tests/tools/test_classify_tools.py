"""train and evaluate with classifiers, and what they say to bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from voxelpool.config import ClassifierConfig, save_config
from voxelpool.training import fit, new_run

RunTool = Callable[..., tuple[int, str, str]]


@pytest.fixture
def config_path(tiny_classifier: ClassifierConfig, tmp_path: Path) -> Path:
    save_config(tiny_classifier, tmp_path / "tiny_classifier.yaml")
    return tmp_path / "tiny_classifier.yaml"


@pytest.fixture
def checkpoint(tiny_classifier: ClassifierConfig, tmp_path: Path) -> Path:
    train = tiny_classifier.train.model_copy(update={"epochs": 1})
    config = tiny_classifier.model_copy(update={"train": train})
    run = new_run(config, tmp_path / "trained")
    fit(config, run, progress=False)
    return run.last


def error(code: int, err: str) -> str:
    assert code == 1, err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in err
    return line


def test_train_and_evaluate(run_tool: RunTool, config_path: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, out, err = run_tool("train", config_path, "train.epochs=1", "--run", run)
    assert code == 0, err
    assert "best accuracy" in out
    best = run / "checkpoints" / "best.ckpt"
    scores = tmp_path / "scores.json"
    code, out, err = run_tool("evaluate", config_path, "--checkpoint", best, "--json", scores)
    assert code == 0, err
    assert "overall accuracy" in out and "class mean" in out and "20 objects, 4 votes" in out
    picture = best.with_name("confusion.png")
    assert str(picture) in out and Image.open(picture).width > 10 * 64
    figures = json.loads(scores.read_text())
    table = np.array(figures["confusion"])
    assert table.sum(axis=1).tolist() == [2] * 10 and figures["votes"] == 4
    assert figures["accuracy"] == pytest.approx(table.trace() / 20)
    assert f"overall accuracy {100 * table.trace() / 20:.2f} %" in out
    elsewhere = tmp_path / "elsewhere.png"
    code, out, _ = run_tool(
        "evaluate", config_path, "objects.votes=1", "--checkpoint", best, "--split", "train",
        "--picture", elsewhere,
    )  # fmt: skip
    assert code == 0 and "60 objects, 1 vote" in out and elsewhere.is_file()


def test_bad_input(
    run_tool: RunTool, config_path: Path, checkpoint: Path, tiny_config: object, tmp_path: Path
) -> None:
    def fails(name: str, *arguments: object) -> str:
        code, _, err = run_tool(name, *arguments)
        return error(code, err)

    missing = f"objects.root={tmp_path / 'none.npz'}"
    run = ("--run", tmp_path / "other")
    assert "none.npz: no such archive" in fails("train", config_path, missing, *run)
    bad = "model=voxnett"
    assert "model: must be one of" in fails("train", config_path, bad, *run)
    with_checkpoint = ("--checkpoint", checkpoint)
    assert "none.npz: no such archive" in fails("evaluate", config_path, missing, *with_checkpoint)
    assert "train and test, not 'val'" in fails(
        "evaluate", config_path, *with_checkpoint, "--split", "val"
    )
    assert "classifier.width is 4 there and 6 here" in fails(
        "evaluate", config_path, "classifier.width=6", *with_checkpoint
    )
    assert "--classes, --min-iou and --precision are for detectors" in fails(
        "evaluate", config_path, *with_checkpoint, "--precision", "bf16"
    )
    sweep = tmp_path / "000000.bin"
    sweep.write_bytes(b"")
    assert "small_cnn is a classifier; this takes a detector" in fails(
        "detect", config_path, sweep, *with_checkpoint
    )
    assert "small_cnn is a classifier" in fails("voxelize", sweep, "--config", config_path)
    save_config(tiny_config, tmp_path / "tiny.yaml")  # type: ignore[arg-type]
    assert "model is small_cnn there and voxelnet here" in fails(
        "evaluate", tmp_path / "tiny.yaml", *with_checkpoint
    )


def test_a_cache_that_cannot_be_written(
    run_tool: RunTool, config_path: Path, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    code, _, err = run_tool(
        "train", config_path, f"objects.cache={blocked}", "--run", tmp_path / "r"
    )
    assert str(blocked) in error(code, err)
