"""What a trained network is worth and costs: scores, of perturbed input too, time and memory."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import voxelpool
from voxelpool.config import AnyConfig, ClassifierConfig, Config
from voxelpool.datasets.kitti import KittiDataset, spread_rows
from voxelpool.datasets.objects import Progress
from voxelpool.datasets.perturb import (
    ON_GRIDS,
    ON_POINTS,
    ON_SWEEPS,
    Perturbation,
    PerturbedFrames,
    perturb_objects,
)
from voxelpool.evaluation import classification_scores, evaluate
from voxelpool.machine import cpu_name
from voxelpool.models import build_detector, classifier_of, load_classifier, load_detector
from voxelpool.training.classify import (
    ObjectBatches,
    ObjectData,
    class_probabilities,
    network_inputs,
    object_extent,
)
from voxelpool.training.data import SweepData, collate
from voxelpool.training.results import detect_frames

FORWARD_PASSES = 10
FORWARD_OBJECTS = 32

Step = Callable[[], Any]
"""One forward or training step."""


class Meter(Protocol):
    """A trained network and its data.

    Attributes:
        main: the score that variants are compared by.
        perturbations: those that its input can have.
        batch: objects or sweeps of a `forward`.
        parameters: numbers that were learnt.
    """

    main: str
    perturbations: tuple[Perturbation, ...]
    batch: int
    parameters: int

    def scores(
        self, change: Perturbation | None = None, *, training: bool = False
    ) -> dict[str, float]:
        """Scores in percent: of the validation split, of it perturbed, or of as much training data.

        Training data is taken without augmentation and spread over its split.
        """
        ...

    def forward(self) -> Step:
        """What runs the network on a batch of validation data, on the CPU."""
        ...

    def training_batch(self) -> dict[str, np.ndarray]:
        """What `training_step` takes."""
        ...


class ClassifierMeter:
    """Measures a classifier: accuracy over all objects and the mean over classes, percent.

    Args:
        config: the configuration.
        checkpoint: its weights.
        reading: called while objects are read.
    """

    main = "accuracy"

    def __init__(
        self, config: ClassifierConfig, checkpoint: Path, reading: Progress | None = None
    ) -> None:
        self.config = config
        self.network = load_classifier(checkpoint, config)
        self.parameters = _parameters(self.network)
        data = ObjectData(config, progress=reading)
        assert data.train_objects is not None
        self.train_objects, self.val_objects = data.train_objects, data.val_objects
        self.perturbations = ON_POINTS if self.val_objects.grids is None else ON_GRIDS
        self.batch = min(FORWARD_OBJECTS, len(self.val_objects))

    def scores(
        self, change: Perturbation | None = None, *, training: bool = False
    ) -> dict[str, float]:
        """See `Meter`."""
        objects = self.val_objects
        if training:
            rows = spread_rows(len(self.train_objects), len(objects))
            objects = self.train_objects.take(rows)
        if change is not None:
            cell = object_extent(self.config) / self.config.classifier.grid_size
            objects = perturb_objects(objects, change, cell)
        device = _device()
        labels, found = [], []
        for probabilities, truth in class_probabilities(
            self.network.to(device), objects, self.config, device=device
        ):
            labels.append(truth)
            found.append(probabilities.argmax(1))
        result = classification_scores(
            torch.cat(labels).numpy(), torch.cat(found).numpy(), self.config.classes
        )
        return {"accuracy": 100 * result.accuracy, "class_mean": 100 * result.class_mean}

    def forward(self) -> Step:
        """See `Meter`."""
        batches = ObjectBatches(self.val_objects, self.config)
        rows = spread_rows(len(self.val_objects), self.batch)
        inputs = network_inputs(batches.__getitems__(rows), self.config)
        network = self.network.cpu().eval()
        return lambda: network(inputs)

    def training_batch(self) -> dict[str, np.ndarray]:
        """See `Meter`."""
        rows = spread_rows(len(self.train_objects), self.config.train.batch_size)
        batch = ObjectBatches(self.train_objects, self.config).__getitems__(rows)
        inputs = network_inputs(batch, self.config)
        return {"inputs": inputs.numpy(), "labels": batch.labels.numpy()}


class DetectorMeter:
    """Measures a detector: AP in 3D and bird's-eye view, moderate, R40, mean over classes, percent.

    Args:
        config: the configuration.
        checkpoint: its weights.
    """

    main = "3d"
    perturbations = ON_SWEEPS
    batch = 1

    def __init__(self, config: Config, checkpoint: Path) -> None:
        self.config = config
        self.network = load_detector(checkpoint, config)
        self.parameters = _parameters(self.network)
        data = SweepData(config)
        self.train_frames: KittiDataset = data.train_frames
        self.val_frames: KittiDataset = data.val_frames

    def scores(
        self, change: Perturbation | None = None, *, training: bool = False
    ) -> dict[str, float]:
        """See `Meter`."""
        frames, rows = self.val_frames, None
        if training:
            frames = self.train_frames
            rows = spread_rows(len(frames), len(self.val_frames))
        labels, results = [], []
        for frame, found in detect_frames(
            self.network.to(_device()).eval(),
            PerturbedFrames(frames, change, rows),
            num_workers=min(self.config.data.num_workers, 1),
        ):
            labels.append(frame.objects)
            results.append(found)
        classes = self.config.classes
        values = evaluate(labels, results, classes=classes).scalars(classes)
        return {
            metric: statistics.fmean(values[f"{name}/{metric}/moderate"] for name in classes)
            for metric in ("3d", "bev")
        }

    def forward(self) -> Step:
        """See `Meter`."""
        points = torch.from_numpy(self.val_frames[0].points)
        network = self.network.cpu().eval()
        return lambda: network(points)

    def training_batch(self) -> dict[str, np.ndarray]:
        """See `Meter`."""
        rows = spread_rows(len(self.train_frames), self.config.train.batch_size)
        batch = collate([self.train_frames[row] for row in rows], self.config.classes)
        return {
            "points": batch.points.numpy(),
            "batch": batch.batch.numpy(),
            "boxes": torch.cat(batch.boxes).numpy(),
            "classes": torch.cat(batch.classes).numpy(),
            "counts": np.array([len(boxes) for boxes in batch.boxes]),
        }


def meter_of(config: AnyConfig, checkpoint: Path, reading: Progress | None = None) -> Meter:
    """The meter of a configuration's detector or classifier."""
    if isinstance(config, ClassifierConfig):
        return ClassifierMeter(config, checkpoint, reading)
    return DetectorMeter(config, checkpoint)


def _parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def training_step(config: AnyConfig, batch: dict[str, np.ndarray]) -> Step:
    """A forward and backward pass on the CPU, untrained, of a batch that a `Meter` gave."""
    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
    if isinstance(config, ClassifierConfig):
        classifier = classifier_of(config).train()
        inputs, labels = tensors["inputs"], tensors["labels"]
        return lambda: F.cross_entropy(classifier(inputs), labels).backward()
    detector = build_detector(config).train()
    counts = batch["counts"].tolist()

    def step() -> None:
        predictions = detector(tensors["points"], tensors["batch"], len(counts))
        boxes, classes = tensors["boxes"].split(counts), tensors["classes"].split(counts)
        loss: Tensor = detector.loss(predictions, boxes, classes)["loss"]
        loss.backward()

    return step


@torch.inference_mode()
def milliseconds(step: Step, passes: int = FORWARD_PASSES) -> float:
    """Median time of a step, after one that does not count."""
    step()
    times = []
    for _ in range(passes):
        started = time.perf_counter()
        step()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


def machine() -> dict[str, Any]:
    """Where and with what something was measured, and when."""
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "voxelpool": voxelpool.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }
