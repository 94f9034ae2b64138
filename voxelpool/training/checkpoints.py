"""Checkpoints that survive: written whole, the one before kept, damaged ones passed over."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import CSVLogger

from voxelpool.errors import CheckpointError
from voxelpool.files import atomic_write
from voxelpool.models import load_checkpoint

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all, and keeps the last one as the previous."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Writes and forces to the disk; there is a whole last checkpoint at any moment."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, "wb", durable=True) as file:
            torch.save(checkpoint, file)
            if path.name == LAST:
                _keep_previous(path)
        _sync_folder(path.parent)


def _keep_previous(last: Path) -> None:
    """Gives the last checkpoint a second name, or where a file cannot have two, another one."""
    if not last.is_file():
        return
    previous = last.with_name(PREVIOUS)
    name = last.with_name(f".{PREVIOUS}.tmp")
    with suppress(FileNotFoundError):
        name.unlink()
    try:
        os.link(last, name)
        os.replace(name, previous)
    except OSError:
        os.replace(last, previous)


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # not every system can
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def newest_whole(folder: Path) -> Path:
    """The last checkpoint of a folder or, where it is damaged or gone, the one before it.

    Warns:
        UserWarning: the last one is passed over; names it.

    Raises:
        CheckpointError: neither is whole; or one holds more than data, which is not passed over.
    """
    paths = [folder / LAST, folder / PREVIOUS]
    there = [path for path in paths if path.is_file()]
    if not there:
        raise CheckpointError(f"{paths[0]}: no checkpoint to resume from")
    for path, others in zip(there, (there[1:], []), strict=False):
        try:
            load_checkpoint(path)
            _require_checksums(path)
        except CheckpointError as error:
            if not others or _holds_code(path, error):
                raise
            warnings.warn(f"{error}; resuming from {others[0].name}, the one before", stacklevel=2)
        else:
            return path
    raise AssertionError("the loop returns or raises")


def _require_checksums(path: Path) -> None:
    """Raises CheckpointError if a bit of a readable checkpoint is lost, which torch passes over."""
    if not zipfile.is_zipfile(path):  # as torch wrote them once: without checksums
        return
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise CheckpointError(f"{path}: is damaged in {damaged}")


def _holds_code(path: Path, error: CheckpointError) -> bool:
    """Whether a checkpoint was refused for what its bytes say, not for bytes that are lost."""
    if not isinstance(error.__cause__, pickle.UnpicklingError):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError):
        return False


class LastCheckpoint(Checkpoint):
    """Writes last.ckpt, and the figures until then, after each epoch and every so many steps.

    Args:
        folder: where.
        every_steps: None writes after epochs alone.
    """

    def __init__(self, folder: Path, every_steps: int | None) -> None:
        self.path = folder / LAST
        self.every_steps = every_steps
        self.saved_step = -1

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """The step that a run was resumed at has been saved: gradients may be added up since."""
        self.saved_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, *_: Any
    ) -> None:
        """Within an epoch: its last batch is still to be validated."""
        step = trainer.global_step
        if self.every_steps is None or step % self.every_steps or step == self.saved_step:
            return
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._save(trainer)

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule
    ) -> None:
        """After validation, if there is one."""
        self._save(trainer)

    def _save(self, trainer: lightning.Trainer) -> None:
        self.saved_step = trainer.global_step
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                logger.save()
        trainer.save_checkpoint(self.path)
