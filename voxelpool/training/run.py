"""One training: its folder, its trainer, how it begins and goes on."""

from __future__ import annotations

import csv
import logging
import os
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EMAWeightAveraging,
    LearningRateMonitor,
    ModelCheckpoint,
    RichProgressBar,
)
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy

from voxelpool.config import AnyConfig, ClassifierConfig, Config, load_config, save_config
from voxelpool.datasets.objects import Progress
from voxelpool.errors import CheckpointError, ConfigError
from voxelpool.files import refuse_existing
from voxelpool.models import load_checkpoint, load_classifier
from voxelpool.models.checkpoint import begin_with, first_difference
from voxelpool.models.weights import find_weights
from voxelpool.nn import synchronise_norms
from voxelpool.training import distributed
from voxelpool.training.callbacks import BrokenFrames, DrawnFrames
from voxelpool.training.checkpoints import (
    LAST,
    PREVIOUS,
    LastCheckpoint,
    WholeCheckpoints,
    newest_whole,
)
from voxelpool.training.classify import ClassifierModule, ObjectData
from voxelpool.training.data import Position, SweepData
from voxelpool.training.module import DetectorModule, TrainedModule

_PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


@dataclass(frozen=True)
class Run:
    """The folder of one training.

    It holds config.yaml, checkpoints/ (last.ckpt, previous.ckpt, best.ckpt), metrics.csv and
    TensorBoard's events.
    """

    folder: Path

    @property
    def config_path(self) -> Path:
        """The configuration that the run was begun with."""
        return self.folder / "config.yaml"

    @property
    def last(self) -> Path:
        """The newest checkpoint: after an epoch, or amid it if the configuration wants such."""
        return self.folder / "checkpoints" / LAST

    @property
    def previous(self) -> Path:
        """The checkpoint before the last one, in case that is damaged."""
        return self.folder / "checkpoints" / PREVIOUS

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is something to resume from."""
        return self.last.is_file() or self.previous.is_file()

    @property
    def best(self) -> Path:
        """The checkpoint with the best validation AP, or accuracy, so far."""
        return self.folder / "checkpoints" / "best.ckpt"

    def remove_unbegun(self) -> None:
        """Removes the folder if it holds no more than the configuration: nothing was trained."""
        if self.config_path.is_file() and len(list(self.folder.iterdir())) == 1:
            self.config_path.unlink()
            self.folder.rmdir()


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
            one cycle or polynomial, how long it trains.
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
        candidates = [path for path in candidates if Run(path).has_checkpoint]
        if not candidates:
            raise CheckpointError(
                f"runs/{config.name}: no run with a checkpoint; start one without --resume"
            )
        path = max(candidates, key=_newest_time)
    else:
        path = Path(folder)
    run = Run(path)
    if not run.has_checkpoint:
        raise CheckpointError(f"{run.last}: no checkpoint to resume from")
    begun = load_config(run.config_path)
    difference = config_difference(config, begun, _may_change(begun))
    if difference:
        raise ConfigError(f"{run.folder}: cannot resume with another configuration: {difference}")
    return run


def _newest_time(folder: Path) -> float:
    paths = (Run(folder).last, Run(folder).previous)
    return max(path.stat().st_mtime for path in paths if path.is_file())


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
    """The keys that a resumed run may change; some schedules are planned for their epochs."""
    planned = begun.train.schedule.name in ("one_cycle", "polynomial")
    epochs = set() if planned else {"epochs"}
    where = {
        "data": {"root", "num_workers", "on_broken_frame"},
        "objects": {"root", "cache", "num_workers", "votes"},
    }
    return {**where, "train": {"val_every", "drawn_frames", "checkpoint_every_steps", *epochs}}


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

    Where torchrun has started several processes, all call this with the same arguments; each
    computes its part of every batch, and the first one writes. What fails before anything was
    trained leaves no folder behind, so that the same command can be given again.

    Args:
        config: the configuration.
        run: the folder to write to.
        resume: continue from the run's last checkpoint or, if that is damaged, from the one
            before it. On one machine and device the result is that of an uninterrupted training.
        progress: show a progress bar with the parts of the loss.
        callbacks: further Lightning callbacks.
        reading: called while a classifier's objects are read.

    Returns:
        The trained module, with averaged weights if the configuration wants them.

    Raises:
        ConfigError: the precision is not for this machine, or the batch is too small for so many
            processes.
        DataError: the data set cannot be read.
        TrainingError: the loss became NaN or infinite; names the frames.
        CheckpointError: the checkpoint, or what the configuration wants to begin with, is
            unreadable or of another network.
    """
    with distributed.joined():
        try:
            return _fit(config, run, resume, progress, callbacks, reading)
        except BaseException:
            if not resume and distributed.rank() == 0:
                run.remove_unbegun()
            raise


def _fit(
    config: AnyConfig,
    run: Run,
    resume: bool,
    progress: bool,
    callbacks: Sequence[Callback],
    reading: Progress | None,
) -> TrainedModule:
    if config.train.precision == "16" and not torch.cuda.is_available():
        raise ConfigError("train.precision: 16 needs CUDA; bf16 is the half precision for the CPU")
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
    train = config.train
    if train.weights is not None and not resume:
        _begin_with(module, find_weights(train.weights))
    if train.sync_batchnorm:
        synchronise_norms(module.model)
    folder = run.last.parent
    start = distributed.on_first(lambda: _starting_point(run)) if resume else None
    if start is not None:
        data.position = Position.of_checkpoint(load_checkpoint(start))
    first = distributed.rank() == 0
    best = ModelCheckpoint(
        folder,
        filename="best",
        monitor=module.best_metric,
        mode="max",
        save_top_k=1,
        enable_version_counter=False,
    )
    with _quiet_lightning():
        trainer = lightning.Trainer(
            **_processes(),
            precision=_PRECISIONS[train.precision],
            max_epochs=train.epochs,
            check_val_every_n_epoch=min(train.val_every, train.epochs),
            accumulate_grad_batches=train.accumulate_batches,
            gradient_clip_val=train.gradient_clip,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            deterministic="warn",
            enable_progress_bar=progress and first,
            enable_model_summary=False,
            use_distributed_sampler=False,
            plugins=[WholeCheckpoints()],
            logger=_loggers(run, data.position.step if resume else None),
            callbacks=[
                *([_averaging(train.ema)] if train.ema is not None else []),
                *([DrawnFrames(config), BrokenFrames()] if isinstance(config, Config) else []),
                best,
                LastCheckpoint(folder, train.checkpoint_every_steps),
                LearningRateMonitor("step"),
                *([RichProgressBar(leave=True)] if progress and first else []),
                *callbacks,
            ],
        )
        trainer.fit(module, data, ckpt_path=start, weights_only=True)
    if best.best_model_score is not None:
        module.best_value = float(best.best_model_score)
    return module


def _begin_with(module: TrainedModule, path: Path) -> None:
    """Gives an untrained network the weights of one that was trained."""
    config = module.config
    if isinstance(config, ClassifierConfig):
        module.model.load_state_dict(load_classifier(path, config).state_dict())
    else:
        begin_with(module.model, path)


def _averaging(decay: float) -> Callback:
    """The moving average, kept where the weights will be: they are on the CPU when it begins."""
    cuda = torch.cuda.is_available()
    place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else None
    return EMAWeightAveraging(place, decay=decay)


def _starting_point(run: Run) -> Path:
    """The checkpoint to resume from; a damaged one is put aside, lest it be kept as previous."""
    start = newest_whole(run.last.parent)
    for unfinished in run.last.parent.glob(".*.ckpt.*.tmp"):
        unfinished.unlink()
    if start != run.last and run.last.is_file():
        os.replace(run.last, run.last.with_suffix(".damaged"))
    return start


def _processes() -> dict[str, Any]:
    """Where the trainer computes, alone or together with others."""
    processes = distributed.size()
    if processes == 1:
        return {"accelerator": "auto", "devices": 1}
    return {
        "accelerator": "cuda" if torch.cuda.is_available() else "cpu",
        "devices": distributed.local_size(),
        "num_nodes": processes // distributed.local_size(),
        # Running statistics are all that changes in buffers; the module sees to them.
        "strategy": DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True),
    }


def _loggers(run: Run, step: int | None) -> list[Logger]:
    """Of a run that is resumed at ``step``, they keep what was logged before."""
    path = run.folder / "metrics.csv"
    kept: list[dict[str, Any]] = []
    if step is not None and distributed.rank() == 0 and path.is_file():
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["step"]) < step]
        kept = [{key: value for key, value in row.items() if value} for row in rows]
    metrics = CSVLogger(run.folder, name="", version="", flush_logs_every_n_steps=20)
    if kept:  # Lightning's begins anew
        metrics.experiment.metrics.extend(kept)
        metrics.save()
    return [metrics, TensorBoardLogger(run.folder, name="", version="", purge_step=step)]


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
