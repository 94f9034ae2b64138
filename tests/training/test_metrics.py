"""Reading a run's metrics.csv."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from voxelpool.config import Config
from voxelpool.errors import DataError
from voxelpool.training import fit, new_run
from voxelpool.training.metrics import read_metrics


def test_figures_by_name(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step,train/loss,lr\n,0,,0.1\n0,0,5,\n0,1,4,\n,1,,0.2\n1,2,nan,\n")
    found = read_metrics(path)
    assert found.keys() == {"train/loss", "lr"}
    loss, rate = found["train/loss"], found["lr"]
    assert loss.step.tolist() == [0, 1, 2] and loss.epoch.tolist() == [0, 0, 1]
    np.testing.assert_array_equal(loss.value, [5, 4, np.nan])
    assert rate.value.tolist() == [0.1, 0.2] and np.isnan(rate.epoch).all()


def test_what_a_training_writes(tiny_config: Config, tmp_path: Path) -> None:
    train = tiny_config.train.model_copy(update={"epochs": 2, "val_every": 1})
    config = tiny_config.model_copy(update={"train": train})
    run = new_run(config, tmp_path / "run")
    fit(config, run, progress=False)
    found = read_metrics(run.folder / "metrics.csv")
    with open(run.folder / "metrics.csv") as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert found["train/loss"].value.tolist() == losses
    assert found["train/loss"].step.tolist() == list(range(len(losses)))
    assert found["val/3d"].epoch.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("", "has no column 'step'"),
        ("a,b\n1,2\n", "has no column 'step'"),
        ("step,loss\n0,1\n1,x\n", r"csv:3: loss is 'x'"),
    ],
)
def test_bad_files(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "metrics.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_metrics(path)


def test_an_empty_run(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step,train/loss\n")
    assert read_metrics(path) == {}
