"""Schedules, averaged weights, precision and what TensorBoard is given."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from voxelpool.config import ClassifierConfig, Config, ScheduleConfig
from voxelpool.errors import ConfigError
from voxelpool.models import load_classifier, load_detector
from voxelpool.training import Run, fit, new_run


def with_train(config: Any, **changes: object) -> Any:
    return config.model_copy(update={"train": config.train.model_copy(update=changes)})


def column(run: Run, name: str) -> list[float]:
    with open(run.folder / "metrics.csv") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


class StopAtStep(lightning.Callback):
    """Ends the training after so many steps and their checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


class Recorder(lightning.Callback):
    """Keeps the weights after each step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        state = module.model.state_dict()
        self.weights.append({name: value.clone() for name, value in state.items()})


def test_polynomial_schedule(tiny_config: Config, tmp_path: Path) -> None:
    schedule = ScheduleConfig(name="polynomial", power=2.0)
    config = with_train(tiny_config, schedule=schedule, lr=0.3, epochs=3)
    run = new_run(config, tmp_path / "run")
    fit(config, run, progress=False)
    expected = [0.3 * (1 - step / 6) ** 2 for step in range(6)]
    assert column(run, "lr-SGD") == pytest.approx(expected)


@pytest.mark.parametrize("which", ["detector", "classifier"])
def test_checkpoints_hold_the_moving_average(
    which: str, tiny_config: Config, tiny_classifier: ClassifierConfig, tmp_path: Path
) -> None:
    """Against the average computed from the weights after each step, which it does not change."""
    plain: Any = tiny_config if which == "detector" else tiny_classifier
    plain = with_train(plain, epochs=2, val_every=1)
    config, load = with_train(plain, ema=0.8), load_detector
    if which == "classifier":
        load = load_classifier  # type: ignore[assignment]
    recorder, without = Recorder(), Recorder()
    run = new_run(config, tmp_path / "run")
    module = fit(config, run, progress=False, callbacks=[recorder])
    fit(plain, new_run(plain, tmp_path / "plain"), progress=False, callbacks=[without])
    average = {name: value.double() for name, value in recorder.weights[0].items()}
    for weights in recorder.weights[1:]:
        average = {name: 0.8 * average[name] + 0.2 * weights[name] for name in average}
    loaded = load(run.last).state_dict()
    for name, value in average.items():
        if value.ndim:
            assert torch.allclose(loaded[name].double(), value, atol=1e-5), name
            assert torch.equal(module.model.state_dict()[name], loaded[name])
        assert torch.equal(recorder.weights[-1][name], without.weights[-1][name]), name
    load(run.best)


def test_float16_is_refused_without_cuda(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = with_train(tiny_config, precision="16")
    with pytest.raises(ConfigError, match=r"train\.precision: 16 needs CUDA; bf16"):
        fit(config, new_run(config, tmp_path / "run"), progress=False)


@pytest.mark.parametrize("drawn", [0, 1, 3])
def test_tensorboard_is_given_curves_and_pictures(
    drawn: int, tiny_config: Config, tmp_path: Path
) -> None:
    config = with_train(tiny_config, epochs=2, val_every=1, drawn_frames=drawn)
    run = new_run(config, tmp_path / "run")
    module = fit(config, run, progress=False)
    events = EventAccumulator(str(run.folder))
    events.Reload()
    tags = events.Tags()
    assert {"val/3d", "val/Car/3d/moderate", "lr-SGD", "train/loss"} <= set(tags["scalars"])
    frames = ["val/000004", "val/000005"][: min(drawn, 2)]
    assert sorted(tags["images"]) == frames
    for frame in frames:
        assert [image.step for image in events.Images(frame)] == [2, 4]
    assert module.best_value == max(column(run, "val/3d"))


def test_a_resumed_run_keeps_its_curves(tiny_config: Config, tmp_path: Path) -> None:
    whole = new_run(tiny_config, tmp_path / "whole")
    fit(tiny_config, whole, progress=False)
    run = new_run(tiny_config, tmp_path / "run")
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(tiny_config, run, progress=False, callbacks=[StopAtStep(5)])
    fit(tiny_config, run, resume=True, progress=False)
    for name in ("train/loss", "val/3d", "lr-SGD", "step"):
        assert column(run, name) == column(whole, name), name


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("resumed", [False, True])
def test_each_epoch_has_an_order_of_its_own(
    resumed: bool, workers: int, tiny_config: Config, tmp_path: Path
) -> None:
    """Also the epoch that a training is resumed with, which loaders begin to read ahead of."""

    class Watch(lightning.Callback):
        def __init__(self) -> None:
            self.ids: list[tuple[int, list[str]]] = []

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            self.ids.append((trainer.current_epoch, batch.ids))

    data = tiny_config.data.model_copy(update={"num_workers": workers})
    config = with_train(
        tiny_config.model_copy(update={"data": data}), checkpoint_every_steps=1, epochs=3
    )
    run, watch = new_run(config, tmp_path / "run"), Watch()
    if resumed:
        stop = StopAtStep(3)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            fit(config, run, progress=False, callbacks=[stop, watch])
    fit(config, run, resume=resumed, progress=False, callbacks=[watch])
    expected = []
    for epoch in range(3):
        rows = np.random.default_rng([config.seed, epoch]).permutation(4)
        frames = [f"{row:06d}" for row in rows]
        expected += [(epoch, frames[:2]), (epoch, frames[2:])]
    assert watch.ids == expected
