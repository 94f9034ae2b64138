"""The Lightning module: what one step of training and validation does."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

import lightning
import numpy as np
import torch
from torch import Tensor

from voxelpool.config import AnyConfig, Config
from voxelpool.datasets.kitti import KittiObjects
from voxelpool.detection import Detections
from voxelpool.errors import TrainingError
from voxelpool.evaluation import evaluate
from voxelpool.models import build_detector
from voxelpool.models.checkpoint import (
    checkpoint_config,
    config_entry,
    require_same_network,
)
from voxelpool.training import distributed
from voxelpool.training.data import SweepBatch
from voxelpool.training.results import result_objects

BEST_METRIC = "val/3d"
"""3D AP, moderate, R40, the mean over the classes: the best checkpoint is the one that has most."""

_SHORT_NAMES = {
    "loss": "loss",
    "score_positive": "pos",
    "score_negative": "neg",
    "residual": "box",
    "direction": "dir",
    "accuracy": "accuracy",
}


class Batch(Protocol):
    """What a step is told of its samples."""

    what: str
    """What they are called."""

    @property
    def batch_size(self) -> int:
        """How many there are."""

    @property
    def ids(self) -> list[str]:
        """Their names."""


class TrainedModule(lightning.LightningModule):
    """What detectors and classifiers have in common: optimizer, schedule and checkpoints.

    Args:
        config: the configuration; subclasses build ``model`` from it.

    Attributes:
        best_metric: what the best checkpoint has most of.
        best_value: the most that a validation gave, once trained; None without a validation.
    """

    best_metric: str
    best_value: float | None = None

    def __init__(self, config: AnyConfig) -> None:
        super().__init__()
        self.config = config

    def configure_optimizers(self) -> dict[str, Any]:
        """Optimizer and schedule of the configuration."""
        train = self.config.train
        parameters = self.model.parameters()
        optimizer: torch.optim.Optimizer
        if train.optimizer == "sgd":
            optimizer = torch.optim.SGD(
                parameters, lr=train.lr, momentum=train.momentum, weight_decay=train.weight_decay
            )
        else:
            optimizer = torch.optim.AdamW(parameters, lr=train.lr, weight_decay=train.weight_decay)
        return {"optimizer": optimizer, "lr_scheduler": self._schedule(optimizer)}

    def _schedule(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        schedule = self.config.train.schedule
        if schedule.name == "one_cycle":
            cycle = torch.optim.lr_scheduler.OneCycleLR(
                optimizer,
                max_lr=self.config.train.lr,
                total_steps=int(self.trainer.estimated_stepping_batches),
                pct_start=schedule.warmup,
            )
            return {"scheduler": cycle, "interval": "step"}
        if schedule.name == "polynomial":
            falling = torch.optim.lr_scheduler.PolynomialLR(
                optimizer, int(self.trainer.estimated_stepping_batches), schedule.power
            )
            return {"scheduler": falling, "interval": "step"}
        milestones = schedule.milestones if schedule.name == "step" else ()
        steps = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(milestones), schedule.gamma)
        return {"scheduler": steps, "interval": "epoch"}

    def on_train_batch_start(self, batch: Any, index: int) -> None:
        """Lets what is random in the network depend on where the training stands, and no more."""
        place = [self.config.seed, self.current_epoch, index, distributed.rank()]
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))

    def on_after_backward(self) -> None:
        """Before the step: what averages and saves weights comes after it."""
        if not self.config.train.sync_batchnorm:
            distributed.average_statistics(self.model)

    def _log_parts(
        self, parts: Mapping[str, Tensor], batch: Batch, counts: Collection[str] = ()
    ) -> None:
        """Logs a step's figures, over all processes, or stops the training if one is not finite.

        Args:
            parts: scalars, of which those of all processes have the mean.
            batch: what they were computed from.
            counts: the parts that are to be added up instead.
        """
        own = torch.stack([value.detach().float() for value in parts.values()])
        whole = distributed.total(own)
        figures = {
            name: value if name in counts else value / distributed.size()
            for name, value in zip(parts, whole, strict=True)
        }
        if not torch.isfinite(whole).all():
            values = ", ".join(f"{name} {value.item():g}" for name, value in figures.items())
            here = not torch.isfinite(own).all()
            raise TrainingError(
                f"the loss is not finite ({values}) in epoch {self.current_epoch}, step "
                f"{self.global_step}: {batch.what} "
                + (", ".join(batch.ids) if here else "of another process")
            )
        for name, value in figures.items():
            self.log(f"train/{name}", value, batch_size=batch.batch_size)
            if name in _SHORT_NAMES:
                self.log(_SHORT_NAMES[name], value, prog_bar=True, logger=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Puts the configuration beside the weights."""
        checkpoint.update(config_entry(self.config))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of another network."""
        trained = checkpoint_config(checkpoint, "checkpoint")
        require_same_network(self.config, trained, "checkpoint")


class DetectorModule(TrainedModule):
    """Trains the detector of a configuration and measures its AP.

    Args:
        config: the configuration.

    Logs "train/<part of the loss>" each step and "val/<class>/<metric>/<difficulty>" (AP, R40,
    percent) each validation.
    """

    best_metric = BEST_METRIC

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.config: Config = config
        self.model = build_detector(config)
        self._validated: list[tuple[int, list[KittiObjects], list[KittiObjects]]] = []

    def training_step(self, batch: SweepBatch, index: int) -> Tensor:
        """The loss of a batch; stops the training if it is not finite."""
        seed = self.config.seed + self.global_step
        voxels = self.model.voxelize(batch.points, batch.batch, batch.batch_size, seed=seed)
        predictions = self.model.predict(batch.points, voxels)
        counted = self.model.counted_anchors(voxels)
        parts = self.model.loss(
            predictions, batch.boxes, batch.classes, counted, divisors=distributed.divisors
        )
        self._log_parts(parts, batch, counts=("num_positive",))
        return parts["loss"]

    def validation_step(self, batch: SweepBatch, index: int) -> list[Detections]:
        """Detects in a batch and keeps results and labels for the epoch's end."""
        if not batch.frames:
            return []
        found = self.model.detect(batch.points, batch.batch, batch.batch_size, votes=1)
        labels = []
        for frame in batch.frames:
            assert frame.objects is not None, "validation frames are read with their labels"
            labels.append(frame.objects)
        results = [
            result_objects(detections, frame)
            for frame, detections in zip(batch.frames, found, strict=True)
        ]
        self._validated.append((distributed.rank() + index * distributed.size(), labels, results))
        return found

    def on_validation_epoch_end(self) -> None:
        """AP over the validated frames of all processes, in the split's order."""
        batches = distributed.in_order(self._validated)
        self._validated = []
        labels = [objects for _, own, _ in batches for objects in own]
        results = [objects for _, _, own in batches for objects in own]
        classes = self.config.classes
        values = distributed.on_first(
            lambda: evaluate(labels, results, classes=classes).scalars(classes)
        )
        for name, value in values.items():
            self.log(f"val/{name}", value)
        moderate = [values[f"{name}/3d/moderate"] for name in classes]
        self.log(BEST_METRIC, sum(moderate) / len(moderate), prog_bar=True)
