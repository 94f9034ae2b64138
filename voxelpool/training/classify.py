"""Training of classifiers: objects in memory, moved at random, and what a step does."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import lightning
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from voxelpool.config import ClassifierConfig, ObjectAugmentConfig
from voxelpool.datasets.augment import frame_generator
from voxelpool.datasets.kitti import spread_rows
from voxelpool.datasets.objects import ObjectSet, Progress, load_objects, sample_rows
from voxelpool.errors import DataError
from voxelpool.evaluation.classification import ClassificationScores, classification_scores
from voxelpool.models import classifier_of, load_classifier
from voxelpool.ops import occupancy_grid
from voxelpool.structures import VoxelGrid
from voxelpool.training import distributed
from voxelpool.training.data import EpochBatches, Position, ValidationBatches
from voxelpool.training.module import TrainedModule
from voxelpool.training.teachers import Teachers


@dataclass(frozen=True)
class Moves:
    """How each object of a batch is stretched, then turned about the vertical, then shifted.

    Attributes:
        stretch: (B, 3) float64, what x, y and z are multiplied by; negative: mirrored.
        turn: (B, 2) float64, cosine and sine of the angle, counter-clockwise from above.
        shift: (B, 3) int64, cells along x, y, z.
    """

    stretch: Tensor
    turn: Tensor
    shift: Tensor

    @classmethod
    def turned(cls, count: int, angle: float) -> Moves:
        """All objects turned by one angle, radians."""
        return cls(
            torch.ones(count, 3, dtype=torch.float64),
            _turns(torch.full((count,), angle, dtype=torch.float64)),
            torch.zeros(count, 3, dtype=torch.int64),
        )

    @classmethod
    def drawn(cls, config: ObjectAugmentConfig, rngs: Sequence[np.random.Generator]) -> Moves:
        """One random move from each generator."""
        stretch, angle, shift = [], [], []
        for rng in rngs:
            mirror = np.where(rng.random(2) < config.mirror, -1.0, 1.0)
            angle.append(2 * math.pi * rng.integers(config.rotations) / config.rotations)
            shift.append(rng.integers(-config.jitter, config.jitter + 1, 3))
            stretch.append(rng.uniform(1 - config.scale, 1 + config.scale, 3) * [*mirror, 1.0])
        return cls(
            torch.from_numpy(np.array(stretch).reshape(-1, 3)),
            _turns(torch.tensor(angle, dtype=torch.float64)),
            torch.from_numpy(np.array(shift, np.int64).reshape(-1, 3)),
        )

    def turn_index(self, turns: int) -> Tensor:
        """(B,) int64: each turn as a multiple of a ``turns``-th, 0 to turns - 1."""
        angle = torch.atan2(self.turn[:, 1], self.turn[:, 0])
        return (angle * turns / (2 * math.pi)).round().long() % turns

    def to(self, device: torch.device | str) -> Moves:
        """The same moves on ``device``."""
        return Moves(self.stretch.to(device), self.turn.to(device), self.shift.to(device))

    def on_points(self, points: Tensor, rows: Tensor, cell: float) -> Tensor:
        """Moves (..., 3) points whose objects are ``rows`` (...); ``cell`` is a cell's edge."""
        x, y, z = (points.double() * self.stretch[rows]).unbind(-1)
        cos, sin = self.turn[rows].unbind(-1)
        turned = torch.stack([cos * x - sin * y, sin * x + cos * y, z], dim=-1)
        return (turned + cell * self.shift[rows]).to(points.dtype)

    def on_grids(self, grids: Tensor, linear: bool = False) -> Tensor:
        """Moves grids about their middle.

        Args:
            grids: (B, D, H, W), axes z, y, x.
            linear: weigh the four cells around the place where the middle of a cell came from;
                otherwise take the nearest. Turns by quarters lose nothing but corners either way.

        Returns:
            (B, D, H, W), float32 if linear, otherwise of the type of ``grids``; 0 where nothing
            came from.
        """
        grids = self._raised(grids)
        height, width = grids.shape[2:]
        y = torch.arange(height, device=grids.device, dtype=torch.float64) - (height - 1) / 2
        x = torch.arange(width, device=grids.device, dtype=torch.float64) - (width - 1) / 2
        v = y[None, :, None] - self.shift[:, 1, None, None]
        u = x[None, None, :] - self.shift[:, 0, None, None]
        cos, sin = (part[:, None, None] for part in self.turn.unbind(-1))
        # The way back: unshifted, turned the other way, as wide as before.
        column = (cos * u + sin * v) / self.stretch[:, 0, None, None] + (width - 1) / 2
        row = (cos * v - sin * u) / self.stretch[:, 1, None, None] + (height - 1) / 2
        if not linear:
            return _take(grids, row.round().long(), column.round().long())
        grids = grids.float()
        top, left = (row + 1e-9).floor(), (column + 1e-9).floor()
        moved = torch.zeros_like(grids)
        for down in (0, 1):
            for right in (0, 1):
                weight = (1 - (row - top - down).abs()) * (1 - (column - left - right).abs())
                cells = _take(grids, top.long() + down, left.long() + right)
                moved += weight.clamp(0, 1).float()[:, None] * cells
        return moved

    def _raised(self, grids: Tensor) -> Tensor:
        """Stretched and shifted along z, always to the nearest level."""
        depth = grids.shape[1]
        z = torch.arange(depth, device=grids.device, dtype=torch.float64) - (depth - 1) / 2
        back = (z[None] - self.shift[:, 2, None]) / self.stretch[:, 2, None] + (depth - 1) / 2
        level = back.round().long()
        inside = (level >= 0) & (level < depth)
        places = torch.where(inside, level, 0)[:, :, None, None].expand_as(grids)
        return grids.gather(1, places) * inside[:, :, None, None].to(grids.dtype)


def _take(grids: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """What each level of (B, D, H, W) holds at (B, H, W) rows and columns; 0 outside."""
    height, width = grids.shape[2:]
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    place = torch.where(inside, row * width + column, 0).flatten(1)[:, None]
    found = grids.flatten(2).gather(2, place.expand(-1, grids.shape[1], -1)).view(grids.shape)
    return found * inside[:, None].to(grids.dtype)


def _turns(angle: Tensor) -> Tensor:
    """(B, 2) cosine and sine, exact for quarters of a turn."""
    return torch.stack([angle.cos(), angle.sin()], dim=-1).mul(2**40).round().div(2**40)


@dataclass(frozen=True)
class ObjectBatch:
    """Objects of a batch: grids, or packed points, or as many points of each.

    Attributes:
        objects: (B, D, H, W) uint8, or (P, 3) or (B, N, 3) float32.
        rows: (P,) int64, the object of each packed point; otherwise None.
        origins: (B, 3) float32, the sensor in each object's frame.
        labels: (B,) int64.
        moves: of training objects; otherwise None.
        ids: B names.
    """

    objects: Tensor
    rows: Tensor | None
    origins: Tensor
    labels: Tensor
    moves: Moves | None
    ids: list[str]
    what: ClassVar[str] = "objects"

    @property
    def batch_size(self) -> int:
        """Objects in the batch."""
        return len(self.ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ObjectBatch:
        """The same batch with its tensors on ``device``."""
        moved = {
            field.name: value.to(device)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor | Moves)
        }
        return replace(self, **moved)


class ObjectBatches(Dataset[ObjectBatch]):
    """Batches of a set's objects, by lists of rows or, in training, of (epoch, row).

    Args:
        objects: the set.
        config: the configuration.
    """

    def __init__(self, objects: ObjectSet, config: ClassifierConfig) -> None:
        self.objects = objects
        self.config = config

    def __len__(self) -> int:
        return len(self.objects)

    def __getitem__(self, key: int | tuple[int, int]) -> ObjectBatch:
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> ObjectBatch:
        """The objects of ``keys`` as one batch."""
        objects, config = self.objects, self.config
        training = isinstance(keys[0], tuple)
        rows = np.array([key[1] if isinstance(key, tuple) else key for key in keys])
        ids = [objects.ids[row] for row in rows]
        rngs = [
            frame_generator(config.seed, key[0] if isinstance(key, tuple) else 0, object_id)
            for key, object_id in zip(keys, ids, strict=True)
        ]
        augment = config.objects.augment if training else None
        moves = Moves.drawn(augment, rngs) if augment else None
        inputs, packed_rows = self._inputs(rows, rngs, augment.drop if augment else 0.0)
        return ObjectBatch(
            inputs,
            packed_rows,
            torch.from_numpy(objects.origins[rows]),
            torch.from_numpy(objects.labels[rows]),
            moves,
            ids,
        )

    def _inputs(
        self, rows: np.ndarray, rngs: list[np.random.Generator], drop: float
    ) -> tuple[Tensor, Tensor | None]:
        objects = self.objects
        if objects.grids is not None:
            grids = objects.grids[rows]
            if drop:
                for grid, rng in zip(grids, rngs, strict=True):
                    grid[_dropped(grid.shape, drop, rng)] = 0
            return torch.from_numpy(grids), None
        assert objects.points is not None
        spans = [slice(objects.offsets[row], objects.offsets[row + 1]) for row in rows]
        parts = [objects.points[span] for span in spans]
        if drop:
            parts = [
                part[~_dropped(part.shape[:1], drop, rng)]
                for part, rng in zip(parts, rngs, strict=True)
            ]
        if not self.config.takes_points:
            sizes = torch.tensor([len(part) for part in parts])
            packed = torch.repeat_interleave(torch.arange(len(parts)), sizes)
            return torch.from_numpy(np.concatenate(parts)), packed
        wanted = self.config.classifier.points
        chosen = [
            part[sample_rows(len(part), wanted, rng)]
            if len(part)
            else np.zeros((wanted, 3), np.float32)
            for part, rng in zip(parts, rngs, strict=True)
        ]
        return torch.from_numpy(np.stack(chosen)), None


def _dropped(shape: tuple[int, ...], most: float, rng: np.random.Generator) -> np.ndarray:
    """Which of so many cells or points to leave out: a random share of at most ``most``."""
    share = most * rng.random()
    return rng.random(shape, dtype=np.float32) < share


class ObjectData(lightning.LightningDataModule):
    """The training and validation objects that a configuration names, in memory.

    Args:
        config: the configuration.
        progress: called while they are read.
        training: also read the training split.

    Attributes:
        position: where the training goes on.

    Raises:
        DataError: they are not there, or a class has no training object.
    """

    def __init__(
        self,
        config: ClassifierConfig,
        *,
        progress: Progress | None = None,
        training: bool = True,
    ) -> None:
        super().__init__()
        self.config = config
        self.position = Position()
        self.train_objects: ObjectSet | None = None
        if training:
            self.train_objects = self._load(
                config.objects.train_split, config.objects.train_limit, progress
            )
            without = [name for name, n in self.train_objects.counts().items() if not n]
            if without:
                raise DataError(
                    f"{config.objects.root}: split {config.objects.train_split!r} holds no "
                    f"{' and no '.join(without)}"
                )
        self.val_objects = self._load(
            config.objects.val_split_name, config.objects.val_limit, progress
        )

    def _load(self, split: str, limit: int | None, progress: Progress | None) -> ObjectSet:
        size = None if self.config.takes_points else self.config.classifier.grid_size
        objects = load_objects(self.config.objects, split, grid_size=size, progress=progress)
        return objects if limit is None else objects.take(spread_rows(len(objects), limit))

    def class_weights(self) -> Tensor | None:
        """(K,) weights of the loss: for balanced ones, inverse to how often a class comes."""
        if self.config.loss.class_weights == "none" or self.train_objects is None:
            return None
        counts = torch.tensor(list(self.train_objects.counts().values()), dtype=torch.float64)
        return (counts.sum() / (len(counts) * counts)).float()

    def train_dataloader(self) -> DataLoader[ObjectBatch]:
        """Moved objects in an order of their own each epoch."""
        assert self.train_objects is not None
        batches = EpochBatches(
            len(self.train_objects),
            self.config.train.batch_size,
            self.config.seed,
            least=2,  # batch normalization cannot learn from one object
            drop_single=True,
            start=self.position,
        )
        return DataLoader(
            ObjectBatches(self.train_objects, self.config),
            batch_sampler=batches,
            collate_fn=_identity,
        )

    def val_dataloader(self) -> DataLoader[ObjectBatch]:
        """Objects as they are, in the split's order."""
        return DataLoader(
            ObjectBatches(self.val_objects, self.config),
            batch_sampler=ValidationBatches(
                len(self.val_objects),
                max(self.config.train.val_batch_size, self.config.train.batch_size),
            ),
            collate_fn=_identity,
        )


def _identity(batch: ObjectBatch) -> ObjectBatch:
    return batch


def network_inputs(
    batch: ObjectBatch, config: ClassifierConfig, moves: Moves | None = None
) -> Tensor:
    """What the network is given of a batch.

    Args:
        batch: objects, on any device.
        config: the configuration.
        moves: how they are moved; None leaves them.

    Returns:
        (B, 1, D, H, W) float32 as `occupancy_grid` gives it, or for networks on points (B, N, 3)
        float32, where a grid would reach from -1 to 1.
    """
    objects, origins = batch.objects, batch.origins
    if objects.dtype == torch.uint8:
        if moves is not None:
            objects = moves.on_grids(objects, config.objects.turning == "linear")
        return objects[:, None].float()
    size, extent = config.classifier.grid_size, object_extent(config)
    cell = extent / size
    every = torch.arange(batch.batch_size, device=origins.device)
    rows = every[:, None].expand(objects.shape[:2]) if batch.rows is None else batch.rows
    if moves is not None:
        objects = moves.on_points(objects, rows, cell)
        origins = moves.on_points(origins, every, cell)
    if config.takes_points:
        return objects / (extent / 2)
    half = extent / 2
    grid = VoxelGrid((-half, -half, -half, half, half, half), (cell, cell, cell))
    occupancy = config.classifier.occupancy
    grids = occupancy_grid(
        objects,
        grid,
        occupancy,
        origin=None if occupancy == "hit" else origins,
        batch=rows,
        batch_size=batch.batch_size,
    )
    return grids[:, None]


def object_extent(config: ClassifierConfig) -> float:
    """Edge of the cube that a network sees: metres, or of a ModelNet shape's -1 to 1."""
    return config.objects.extent if config.objects.source == "crops" else 2.0


class ClassifierModule(TrainedModule):
    """Trains the classifier of a configuration and measures its accuracy.

    Args:
        config: the configuration.
        class_weights: (K,) of the loss; None weighs all alike.

    Logs "train/loss" and "train/accuracy" each step and "val/loss", "val/accuracy" and
    "val/class_mean" (shares, without votes) each validation.
    """

    best_metric = "val/accuracy"

    def __init__(self, config: ClassifierConfig, class_weights: Tensor | None = None) -> None:
        super().__init__(config)
        self.config: ClassifierConfig = config
        self.model = classifier_of(config)
        self.register_buffer("class_weights", class_weights, persistent=False)
        teachers = config.loss.teachers
        self.teachers = None if teachers is None else Teachers(teachers, config)
        self._validated: list[tuple[int, Tensor, Tensor]] = []

    def on_fit_start(self) -> None:
        """Brings the teachers to the device of what is trained."""
        if self.teachers is not None:
            self.teachers.to(self.device)

    def training_step(self, batch: ObjectBatch, index: int) -> Tensor:
        """The loss of a batch; stops the training if it is not finite."""
        inputs = network_inputs(batch, self.config, batch.moves)
        turns = None
        if self.config.classifier.turns:
            logits, turns = (part.float() for part in self.model.forward_turns(inputs))
        else:
            logits = self.model(inputs).float()
        loss = self._loss(logits, batch.labels)
        if self.teachers is not None:
            apart = self.teachers.divergences(logits, inputs)
            apart = apart.sum() / distributed.divisors(apart.new_tensor(len(apart)))
            loss = torch.lerp(loss, apart, self.teachers.weight)
        if turns is not None:
            loss = loss + self._turn_loss(turns, batch)
        right = (logits.argmax(1) == batch.labels).float()
        accuracy = right.sum() / distributed.divisors(right.new_tensor(len(right)))
        self._log_parts({"loss": loss, "accuracy": accuracy}, batch)
        return loss

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of this process' part of the batch; the mean over the processes is the batch's."""
        weights = self.class_weights
        loss = F.cross_entropy(
            logits,
            labels,
            weight=weights,
            label_smoothing=self.config.loss.label_smoothing,
            reduction="sum",
        )
        weight = logits.new_tensor(len(labels)) if weights is None else weights[labels].sum()
        return loss / (distributed.total(weight) / distributed.size())

    def _turn_loss(self, turns: Tensor, batch: ObjectBatch) -> Tensor:
        """Cross entropy of the turns (B, K, T) that the objects' own classes are given."""
        assert batch.moves is not None
        own = turns[torch.arange(batch.batch_size, device=turns.device), batch.labels]
        entropy = F.cross_entropy(own, batch.moves.turn_index(turns.shape[2]), reduction="none")
        plain = (batch.moves.stretch > 0).all(dim=1)
        divisor = distributed.divisors(plain.sum())
        return self.config.loss.turn_weight * (entropy * plain).sum() / divisor

    def validation_step(self, batch: ObjectBatch, index: int) -> None:
        """Keeps logits and labels for the epoch's end."""
        logits = self.model(network_inputs(batch, self.config)).float()
        number = distributed.rank() + index * distributed.size()
        self._validated.append((number, logits.cpu(), batch.labels.cpu()))

    def on_validation_epoch_end(self) -> None:
        """Accuracy over the validated objects of all processes."""
        batches = distributed.in_order(self._validated)
        self._validated = []
        logits, labels = (torch.cat(parts) for parts in list(zip(*batches, strict=True))[1:])
        scores = classification_scores(
            labels.numpy(), logits.argmax(1).numpy(), self.config.classes
        )
        self.log("val/loss", F.cross_entropy(logits, labels))
        self.log("val/accuracy", scores.accuracy, prog_bar=True)
        self.log("val/class_mean", scores.class_mean)


@torch.inference_mode()
def class_probabilities(
    classifier: nn.Module,
    objects: ObjectSet,
    config: ClassifierConfig,
    *,
    votes: int | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Tensor, Tensor]]:
    """Classifies the objects of a set, batch by batch.

    Args:
        classifier: in evaluation mode, on ``device``.
        objects: grids or points as `ObjectData` reads them for ``config``.
        config: the configuration.
        votes: equal turns about the vertical whose probabilities are averaged; None takes
            ``objects.votes``.
        device: where to compute.

    Yields:
        probabilities (B, K) float32 and labels (B,) int64, on the CPU.
    """
    votes = config.objects.votes if votes is None else votes
    batches = ObjectBatches(objects, config)
    size = max(config.train.batch_size, config.train.val_batch_size)
    for start in range(0, len(objects), size):
        batch = batches.__getitems__(range(start, min(start + size, len(objects)))).to(device)
        total: Any = 0
        for vote in range(votes):
            moves = Moves.turned(batch.batch_size, 2 * math.pi * vote / votes).to(device)
            inputs = network_inputs(batch, config, moves if vote else None)
            total = total + classifier(inputs).float().softmax(1)
        yield (total / votes).cpu(), batch.labels.cpu()


def classify_split(
    config: ClassifierConfig,
    checkpoint: str | os.PathLike[str],
    *,
    split: str | os.PathLike[str] | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> ClassificationScores:
    """Classifies every object of a split with a trained classifier.

    Args:
        config: what it must fit, and the data.
        checkpoint: its weights.
        split: another one than its objects.val_split, without its objects.val_limit.
        device: where it computes.
        progress: called while objects are read, and with "classifying", objects done and in all.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or of another network.
        DataError: the objects cannot be read.
    """
    if split is not None:
        changed = config.objects.model_copy(update={"val_split": str(split), "val_limit": None})
        config = config.model_copy(update={"objects": changed})
    classifier = load_classifier(checkpoint, config).to(device)
    objects = ObjectData(config, progress=progress, training=False).val_objects
    labels, predicted = [], []
    done = 0
    for probabilities, truth in class_probabilities(classifier, objects, config, device=device):
        labels.append(truth)
        predicted.append(probabilities.argmax(1))
        done += len(truth)
        if progress is not None:
            progress("classifying", done, len(objects))
    return classification_scores(
        torch.cat(labels).numpy(), torch.cat(predicted).numpy(), config.classes
    )
