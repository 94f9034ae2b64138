"""Trainings that are killed, checkpoints that are damaged: what is resumed ends as the whole."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import lightning
import numpy as np
import pytest
import torch

from voxelpool.config import AnyConfig, ClassifierConfig, Config, ScheduleConfig
from voxelpool.errors import CheckpointError
from voxelpool.models import load_checkpoint
from voxelpool.training import Run, find_run, fit, new_run
from voxelpool.training.checkpoints import newest_whole


def with_train(config: AnyConfig, **changes: object) -> AnyConfig:
    return config.model_copy(update={"train": config.train.model_copy(update=changes)})


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DieAt(lightning.Callback):
    """Kills its process at one of its steps: in the step, before its checkpoint, or after it."""

    def __init__(self, step: int, amid: bool) -> None:
        self.steps_left = step
        self.amid = amid

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.steps_left -= 1
        if self.steps_left < 0 and self.amid:
            die()

    def on_train_batch_start(self, *_: Any) -> None:
        if self.steps_left < 0 and not self.amid:
            die()


def in_another_process(function: Callable[[], Any]) -> int:
    """Calls it in a process that may die; returns its exit code."""
    child = multiprocessing.get_context("fork").Process(target=function)
    child.start()
    child.join(timeout=300)
    assert child.exitcode is not None
    return child.exitcode


def state(run: Run) -> dict[str, Any]:
    contents = torch.load(run.last, weights_only=True)
    parts = {"averaged or raw": contents["state_dict"], **contents["optimizer_states"][0]["state"]}
    if "current_model_state" in contents:
        parts["raw"] = contents["current_model_state"]
    return {f"{part} {key}": v for part, values in parts.items() for key, v in values.items()}


def assert_same(run: Run, whole: Run) -> None:
    expected, got = state(whole), state(run)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        same = torch.equal(value, got[name]) if torch.is_tensor(value) else value == got[name]
        assert same, name


def variant(kind: str, detector: Config, classifier: ClassifierConfig) -> AnyConfig:
    if kind == "averaged, amid epochs, with a worker":
        data = detector.data.model_copy(update={"num_workers": 1})
        return with_train(
            detector.model_copy(update={"data": data}),
            ema=0.9,
            batch_size=1,
            checkpoint_every_steps=3,
            epochs=3,
            schedule=ScheduleConfig(name="polynomial"),
        )
    if kind == "accumulated, rate in steps":
        return with_train(
            detector,
            accumulate_batches=2,
            batch_size=1,
            checkpoint_every_steps=1,
            schedule=ScheduleConfig(name="step", milestones=(1, 3), gamma=0.5),
        )
    if kind == "classifier with dropout":
        block = classifier.classifier.model_copy(update={"dropout": 0.5})
        return with_train(
            classifier.model_copy(update={"classifier": block}), checkpoint_every_steps=3, ema=0.5
        )
    return detector


@pytest.mark.parametrize(
    "kind",
    [
        "after epochs",
        "averaged, amid epochs, with a worker",
        "accumulated, rate in steps",
        "classifier with dropout",
    ],
)
def test_a_killed_training_ends_as_an_uninterrupted_one(
    kind: str, tiny_config: Config, tiny_classifier: ClassifierConfig, tmp_path: Path
) -> None:
    config = variant(kind, tiny_config, tiny_classifier)
    whole = new_run(config, tmp_path / "whole")
    fit(config, whole, progress=False)
    rng = np.random.default_rng(1)
    run, kills = new_run(config, tmp_path / "run0"), 0
    while kills < 12:
        step, amid = int(rng.integers(2, 7)), bool(rng.integers(2))
        resume = run.has_checkpoint
        if not resume and kills:
            run = new_run(config, tmp_path / f"run{kills}")

        go_on = partial(fit, config, run, resume=resume, progress=False)
        code = in_another_process(partial(go_on, callbacks=[DieAt(step, amid)]))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
    assert kills and code == 0
    assert_same(run, whole)
    assert {path.name for path in run.last.parent.iterdir()} == {
        path.name for path in whole.last.parent.iterdir()
    }


def test_killed_while_a_checkpoint_is_written(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write of the third epoch's checkpoint ends in its middle, or just before its renaming."""
    config = tiny_config
    whole = new_run(config, tmp_path / "whole")
    fit(config, whole, progress=False)
    save, replace = torch.save, os.replace

    def half(contents: dict[str, Any], file: BinaryIO) -> None:
        if contents["epoch"] < 2:
            return save(contents, file)
        buffer = io.BytesIO()
        save(contents, buffer)
        file.write(buffer.getvalue()[: buffer.tell() // 2])
        file.flush()
        return die()

    def never(source: str, target: str) -> None:
        if Path(target).name == "last.ckpt" and Path(target).exists():
            die()
        replace(source, target)

    for name, patch in (("half", ("torch.save", half)), ("never", ("os.replace", never))):
        run = new_run(config, tmp_path / name)

        def go(run: Run = run, patch: Any = patch) -> None:
            monkeypatch.setattr(*patch)
            fit(config, run, progress=False)

        assert in_another_process(go) == -signal.SIGKILL
        load_checkpoint(run.last)
        fit(config, find_run(config, run.folder), resume=True, progress=False)
        assert_same(run, whole)


def stop_before_last_epoch(config: Config, folder: Path) -> Run:
    class Stop(lightning.Callback):
        def on_train_epoch_start(self, trainer: lightning.Trainer, module: object) -> None:
            if trainer.current_epoch == config.train.epochs - 1:
                raise KeyboardInterrupt

    run = new_run(config, folder)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(config, run, progress=False, callbacks=[Stop()])
    return run


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    tiny_config: Config, tmp_path: Path
) -> None:
    config = tiny_config
    whole = new_run(config, tmp_path / "whole")
    fit(config, whole, progress=False)
    run = stop_before_last_epoch(config, tmp_path / "run")
    good = run.last.read_bytes()
    assert load_checkpoint(run.previous)["epoch"] == load_checkpoint(run.last)["epoch"] - 1
    flipped = bytearray(good)
    largest = max(load_checkpoint(run.last)["state_dict"].values(), key=torch.numel)
    flipped[good.index(largest.numpy().tobytes()) + largest.numel()] ^= 16
    for damaged in (b"", good[: len(good) // 2], b"x" * len(good), bytes(flipped)):
        run.last.write_bytes(damaged)
        with pytest.warns(UserWarning, match=r"last\.ckpt: .*resuming from previous\.ckpt"):
            assert newest_whole(run.last.parent) == run.previous
    with pytest.warns(UserWarning, match=r"last\.ckpt: .*resuming from previous\.ckpt"):
        fit(config, find_run(config, run.folder), resume=True, progress=False)
    assert_same(run, whole)
    assert run.last.with_suffix(".damaged").read_bytes() == bytes(flipped)
    load_checkpoint(run.previous)


def test_nothing_whole_to_resume_from(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"last\.ckpt: no checkpoint to resume from"):
        newest_whole(tmp_path)
    for name in ("last.ckpt", "previous.ckpt"):
        (tmp_path / name).write_bytes(b"lost")
    with (
        pytest.warns(UserWarning, match=r"last\.ckpt"),
        pytest.raises(CheckpointError, match=r"previous\.ckpt: "),
    ):
        newest_whole(tmp_path)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("evil_was_here"),))


def test_a_checkpoint_with_code_is_no_damaged_one(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused, though there is a whole one before it."""
    monkeypatch.chdir(tmp_path)
    run = stop_before_last_epoch(tiny_config, tmp_path / "run")
    contents = load_checkpoint(run.last) | {"callbacks": Evil()}
    torch.save(contents, run.last)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(CheckpointError, match=r"last\.ckpt: holds more than weights"):
            fit(tiny_config, find_run(tiny_config, run.folder), resume=True, progress=False)
    assert not Path("evil_was_here").exists()
