"""The Lightning module: what one step of training and validation does."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import Tensor

from voxelpool.config import AnyConfig, Config
from voxelpool.datasets.kitti import KittiObjects
from voxelpool.errors import TrainingError
from voxelpool.evaluation import evaluate
from voxelpool.models import build_detector
from voxelpool.models.checkpoint import (
    checkpoint_config,
    config_entry,
    require_same_network,
)
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
}


class TrainedModule(lightning.LightningModule):
    """What detectors and classifiers have in common: optimizer, schedule and checkpoints.

    Args:
        config: the configuration; subclasses build ``model`` from it.

    Attributes:
        best_metric: what the best checkpoint has most of.
    """

    best_metric: str

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
        milestones = schedule.milestones if schedule.name == "step" else ()
        steps = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(milestones), schedule.gamma)
        return {"scheduler": steps, "interval": "epoch"}

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
        self._labels: list[KittiObjects] = []
        self._results: list[KittiObjects] = []

    def training_step(self, batch: SweepBatch, index: int) -> Tensor:
        """The loss of a batch; stops the training if it is not finite."""
        seed = self.config.seed + self.global_step
        voxels = self.model.voxelize(batch.points, batch.batch, batch.batch_size, seed=seed)
        predictions = self.model.predict(batch.points, voxels)
        counted = self.model.counted_anchors(voxels)
        parts = self.model.loss(predictions, batch.boxes, batch.classes, counted)
        if not all(torch.isfinite(value) for value in parts.values()):
            values = ", ".join(f"{name} {value.item():g}" for name, value in parts.items())
            raise TrainingError(
                f"the loss is not finite ({values}) in epoch {self.current_epoch}, step "
                f"{self.global_step}: frames {', '.join(batch.frame_ids)}"
            )
        for name, value in parts.items():
            self.log(f"train/{name}", value.detach().float(), batch_size=batch.batch_size)
            if name in _SHORT_NAMES:
                self.log(_SHORT_NAMES[name], value.detach(), prog_bar=True, logger=False)
        return parts["loss"]

    def validation_step(self, batch: SweepBatch, index: int) -> None:
        """Detects in a batch and keeps results and labels for the epoch's end."""
        found = self.model.detect(batch.points, batch.batch, batch.batch_size)
        for frame, detections in zip(batch.frames, found, strict=True):
            assert frame.objects is not None, "validation frames are read with their labels"
            self._labels.append(frame.objects)
            self._results.append(result_objects(detections, frame, self.config.classes))

    def on_validation_epoch_end(self) -> None:
        """AP over all validated frames."""
        result = evaluate(self._labels, self._results, classes=self.config.classes)
        self._labels, self._results = [], []
        values = result.scalars(self.config.classes)
        for name, value in values.items():
            self.log(f"val/{name}", value)
        moderate = [values[f"{name}/3d/moderate"] for name in self.config.classes]
        self.log(BEST_METRIC, sum(moderate) / len(moderate), prog_bar=True)
