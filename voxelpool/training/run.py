"""One training: its folder, its trainer, how it begins and goes on."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import lightning
from lightning.pytorch.callbacks import (
    Callback,
    LearningRateMonitor,
    ModelCheckpoint,
    RichProgressBar,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from voxelpool.config import AnyConfig, ClassifierConfig, load_config, save_config
from voxelpool.datasets.objects import Progress
from voxelpool.errors import CheckpointError, ConfigError
from voxelpool.files import refuse_existing
from voxelpool.models import load_checkpoint
from voxelpool.models.checkpoint import first_difference
from voxelpool.training.classify import ClassifierModule, ObjectData
from voxelpool.training.data import SweepData
from voxelpool.training.module import DetectorModule, TrainedModule

_PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


@dataclass(frozen=True)
class Run:
    """The folder of one training.

    It holds config.yaml, checkpoints/ (last.ckpt, best.ckpt), metrics.csv and TensorBoard's
    events.
    """

    folder: Path

    @property
    def config_path(self) -> Path:
        """The configuration that the run was begun with."""
        return self.folder / "config.yaml"

    @property
    def last(self) -> Path:
        """The checkpoint after the last whole epoch."""
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint with the best validation AP, or accuracy, so far."""
        return self.folder / "checkpoints" / "best.ckpt"


def new_run(config: AnyConfig, folder: str | os.PathLike[str] | None = None) -> Run:
    """Makes the folder of a new training.

    Args:
        config: written to the folder.
        folder: where; None takes runs/NAME, or the first of runs/NAME_2, runs/NAME_3, … that is
            not there yet.

    Raises:
        FileExistsError: ``folder`` was given and is not empty.
        OSError: it cannot be written.
    """
    if folder is None:
        path = Path("runs") / config.name
        number = 2
        while path.exists():
            path = Path("runs") / f"{config.name}_{number}"
            number += 1
    else:
        path = Path(folder)
        refuse_existing(path)
    path.mkdir(parents=True, exist_ok=True)
    run = Run(path)
    save_config(config, run.config_path)
    return run


def find_run(config: AnyConfig, folder: str | os.PathLike[str] | None = None) -> Run:
    """Finds the training to go on with.

    Args:
        config: must equal the run's own, save where its data lies and, unless the schedule is
            one cycle, how long it trains.
        folder: the run; None takes the newest of runs/NAME, runs/NAME_2, ….

    Raises:
        CheckpointError: there is no such run, or it has no checkpoint yet.
        ConfigError: the run was begun with another configuration; names the first key.
    """
    if folder is None:
        candidates = [
            path
            for path in Path("runs").glob(f"{config.name}*")
            if path.name.removeprefix(config.name).lstrip("_").isdigit() or path.name == config.name
        ]
        candidates = [path for path in candidates if Run(path).last.is_file()]
        if not candidates:
            raise CheckpointError(
                f"runs/{config.name}: no run with a checkpoint; start one without --resume"
            )
        path = max(candidates, key=lambda candidate: Run(candidate).last.stat().st_mtime)
    else:
        path = Path(folder)
    run = Run(path)
    if not run.last.is_file():
        raise CheckpointError(f"{run.last}: no checkpoint to resume from")
    begun = load_config(run.config_path)
    difference = config_difference(config, begun, _may_change(begun))
    if difference:
        raise ConfigError(f"{run.folder}: cannot resume with another configuration: {difference}")
    return run


def config_difference(
    config: AnyConfig, begun: AnyConfig, ignored: Mapping[str, Collection[str]]
) -> str:
    """Says where a configuration differs from the one that a run was begun with.

    Args:
        config: what is asked for.
        begun: the run's own.
        ignored: keys of each block that may differ.

    Returns:
        The first key and both values, or nothing if they agree.
    """
    if type(begun) is not type(config):
        return f"model is {begun.model} there and {config.model} here"
    for key in type(config).model_fields:
        asked, has = getattr(config, key), getattr(begun, key)
        changing = {name: getattr(asked, name) for name in ignored.get(key, ())}
        if changing:
            has = has.model_copy(update=changing)
        difference = first_difference(asked, has, key)
        if difference:
            return difference
    return ""


def _may_change(begun: AnyConfig) -> dict[str, set[str]]:
    """The keys that a resumed run may change; one cycle is planned for its number of epochs."""
    epochs = set() if begun.train.schedule.name == "one_cycle" else {"epochs"}
    where = {
        "data": {"root", "num_workers"},
        "objects": {"root", "cache", "num_workers", "votes"},
    }
    return {**where, "train": {"val_every", *epochs}}


def fit(
    config: AnyConfig,
    run: Run,
    *,
    resume: bool = False,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    reading: Progress | None = None,
) -> TrainedModule:
    """Trains the configuration's detector or classifier to its last epoch.

    Args:
        config: the configuration.
        run: the folder to write to.
        resume: continue from the run's last checkpoint. On one machine and device the result is
            that of an uninterrupted training.
        progress: show a progress bar with the parts of the loss.
        callbacks: further Lightning callbacks.
        reading: called while a classifier's objects are read.

    Returns:
        The trained module.

    Raises:
        DataError: the data set cannot be read.
        TrainingError: the loss became NaN or infinite; names the frames.
        CheckpointError: the checkpoint is unreadable or of another network.
    """
    data: SweepData | ObjectData
    if isinstance(config, ClassifierConfig):
        data = ObjectData(config, progress=reading)
    else:
        data = SweepData(config)
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    module: TrainedModule
    if isinstance(config, ClassifierConfig):
        module = ClassifierModule(config, data.class_weights())
    else:
        module = DetectorModule(config)
    if resume:
        load_checkpoint(run.last)
    train = config.train
    checkpoints = run.folder / "checkpoints"
    with _quiet_lightning():
        trainer = lightning.Trainer(
            accelerator="auto",
            devices=1,
            precision=_PRECISIONS[train.precision],
            max_epochs=train.epochs,
            check_val_every_n_epoch=min(train.val_every, train.epochs),
            accumulate_grad_batches=train.accumulate_batches,
            gradient_clip_val=train.gradient_clip,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            deterministic="warn",
            enable_progress_bar=progress,
            enable_model_summary=False,
            logger=[
                CSVLogger(run.folder, name="", version="", flush_logs_every_n_steps=20),
                TensorBoardLogger(run.folder, name="", version=""),
            ],
            callbacks=[
                ModelCheckpoint(
                    checkpoints,
                    filename="best",
                    monitor=module.best_metric,
                    mode="max",
                    save_top_k=1,
                    enable_version_counter=False,
                ),
                ModelCheckpoint(
                    checkpoints,
                    filename="last",
                    every_n_epochs=1,
                    save_top_k=1,
                    save_on_train_epoch_end=True,
                    enable_version_counter=False,
                ),
                LearningRateMonitor("step"),
                *([RichProgressBar(leave=True)] if progress else []),
                *callbacks,
            ],
        )
        trainer.fit(module, data, ckpt_path=run.last if resume else None, weights_only=True)
    return module


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keeps Lightning's hints about hardware and workers out of the way."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", ".*does not have many workers.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
