"""Batches of sweeps for training and validation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from voxelpool.config import Config, DataConfig, SampleObjectsConfig
from voxelpool.datasets import augment
from voxelpool.datasets.kitti import Frame, KittiDataset
from voxelpool.datasets.object_database import ObjectDatabase, database_path
from voxelpool.errors import ConfigError, DataError
from voxelpool.training import distributed

_AUGMENTATIONS = {
    "flip": augment.Flip,
    "scale": augment.Scale,
    "rotate": augment.Rotate,
    "translate": augment.Translate,
    "tilt": augment.Tilt,
    "object_noise": augment.ObjectNoise,
    "object_scale": augment.ObjectScale,
    "thin_objects": augment.ThinObjects,
    "fade_tops": augment.FadeTops,
    "dent_objects": augment.DentObjects,
    "sample_objects": augment.SampleObjects,
    "shuffle": augment.Shuffle,
    "drop_points": augment.DropPoints,
    "drop_beams": augment.DropBeams,
    "jitter": augment.Jitter,
    "reflectance_noise": augment.ReflectanceNoise,
}


def augmentation_steps(
    data: DataConfig, frame_ids: Sequence[str]
) -> list[tuple[int, augment.Augmentation]]:
    """The augmentations of a configuration, in its order.

    Args:
        data: where they are listed.
        frame_ids: the frames that are trained on; the split's own database of objects gives no
            others.

    Returns:
        Each with the number of epochs at the end that it is left out of.

    Raises:
        DataError: a database of objects is not there or damaged; says how to write one.
    """
    steps = []
    for block in data.augment:
        options = block.model_dump(exclude={"name", "not_in_last_epochs"})
        if isinstance(block, SampleObjectsConfig):
            options["database"] = _object_database(block, data, frame_ids)
        steps.append((block.not_in_last_epochs, _AUGMENTATIONS[block.name](**options)))
    return steps


def _object_database(
    block: SampleObjectsConfig, data: DataConfig, frame_ids: Sequence[str]
) -> ObjectDatabase:
    path = Path(block.database or database_path(data.root, data.train_split))
    if not path.is_file():
        raise DataError(
            f"{path}: no such file, which data.augment: sample_objects needs; write it with "
            f"tools/prepare_kitti.py {data.root} --gt-database"
        )
    database = ObjectDatabase.load(path)
    return database if block.database else database.of_frames(frame_ids)


@dataclass(frozen=True)
class SweepBatch:
    """Sweeps with their objects.

    Attributes:
        points: (N, 4) float32 of all sweeps.
        batch: (N,) int64, the sweep of each point.
        boxes: for each sweep (n, 7) float32.
        classes: for each sweep (n,) int64, rows of the configuration's classes.
        frames: what was read, unchanged by augmentation.
        broken: frames that could not be used.
    """

    points: Tensor
    batch: Tensor
    boxes: list[Tensor]
    classes: list[Tensor]
    frames: list[Frame]
    broken: tuple[Broken, ...] = ()
    what: ClassVar[str] = "frames"

    @property
    def batch_size(self) -> int:
        """Sweeps in the batch."""
        return len(self.frames)

    @property
    def ids(self) -> list[str]:
        """Ids of the frames."""
        return [frame.frame_id for frame in self.frames]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> SweepBatch:
        """The same batch with its tensors on ``device``."""
        return replace(
            self,
            points=self.points.to(device, non_blocking=non_blocking),
            batch=self.batch.to(device, non_blocking=non_blocking),
            boxes=[boxes.to(device, non_blocking=non_blocking) for boxes in self.boxes],
            classes=[classes.to(device, non_blocking=non_blocking) for classes in self.classes],
        )


def collate(frames: Sequence[Frame], classes: Sequence[str]) -> SweepBatch:
    """Joins frames to a batch.

    Args:
        frames: their objects are all of ``classes``.
        classes: names of the classes to learn.
    """
    sizes = torch.tensor([len(frame.points) for frame in frames], dtype=torch.int64)
    return SweepBatch(
        points=torch.from_numpy(
            np.concatenate([frame.points for frame in frames])
            if frames
            else np.zeros((0, 4), np.float32)
        ),
        batch=torch.repeat_interleave(torch.arange(len(frames)), sizes),
        boxes=[torch.from_numpy(frame.boxes) for frame in frames],
        classes=[
            torch.tensor([classes.index(name) for name in frame.names], dtype=torch.int64)
            for frame in frames
        ],
        frames=list(frames),
    )


@dataclass(frozen=True)
class Position:
    """Where a training stands.

    Attributes:
        step: steps of the optimizer that are done.
        epoch: the epoch to go on with.
        batches: batches of that epoch that are done.
    """

    step: int = 0
    epoch: int = 0
    batches: int = 0

    @classmethod
    def of_checkpoint(cls, contents: Mapping[str, Any]) -> Position:
        """Where a checkpoint of Lightning's was written."""
        loop = contents["loops"]["fit_loop"]
        epochs = loop["epoch_progress"]["current"]
        amid = epochs["processed"] < epochs["ready"]
        batches = loop["epoch_loop.batch_progress"]["current"]["ready"] if amid else 0
        return cls(contents["global_step"], epochs["processed"], batches)


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Yields this process' part of each training batch, as (epoch, row) pairs.

    Seed and epoch alone decide which rows a batch has, in which order, and every row comes once an
    epoch. Each process takes every so many-th row of the batch. The epoch travels with each row,
    so that augmentation differs from epoch to epoch in workers that live on.

    What is left for the last batch may be too little to give each process a part: then it is added
    to the batch before.

    Args:
        length: rows.
        batch_size: rows of a batch, of all processes together.
        seed: of the run.
        least: rows that a process needs to have of a batch.
        drop_single: leave out a last batch of one row.
        start: where to go on; loaders with workers read ahead before Lightning sets the epoch.

    Raises:
        ConfigError: too few rows in a batch for so many processes.
        DataError: too few rows in all.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        *,
        least: int = 1,
        drop_single: bool = False,
        start: Position | None = None,
    ) -> None:
        self.rank, self.processes = distributed.rank(), distributed.size()
        needed = self.processes * least if self.processes > 1 else 1
        if batch_size < needed:
            raise ConfigError(
                f"train.batch_size: {batch_size} is too few for {self.processes} processes, each "
                f"of which needs {least} of a batch"
            )
        if length < needed:
            raise DataError(f"{length} training samples are too few for {self.processes} processes")
        self.length, self.seed = length, seed
        starts = list(range(0, length, batch_size))
        end = length
        if drop_single and len(starts) > 1 and length - starts[-1] == 1:
            end = starts.pop()
        if len(starts) > 1 and end - starts[-1] < needed:
            starts.pop()
        self.spans = list(zip(starts, [*starts[1:], end], strict=True))
        start = start or Position()
        self.epoch, self.done = start.epoch, start.batches

    @property
    def sampler(self) -> EpochBatches:
        """Where Lightning looks for what wants to know the epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Called by the training loop before each epoch."""
        if epoch != self.epoch:
            self.epoch, self.done = epoch, 0

    def __len__(self) -> int:
        return len(self.spans)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, done = self.epoch, self.done
        order = np.random.default_rng([self.seed, epoch]).permutation(self.length)
        for start, end in self.spans[done:]:
            rows = order[start:end][self.rank :: self.processes]
            yield [(epoch, int(row)) for row in rows]


class ValidationBatches(Sampler[list[int]]):
    """Yields this process' batches of a split: every so many-th, so that all are as with one."""

    def __init__(self, length: int, batch_size: int) -> None:
        starts = range(0, length, batch_size)
        self.batches = [list(range(start, min(start + batch_size, length))) for start in starts]
        self.batches = self.batches[distributed.rank() :: distributed.size()]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


@dataclass(frozen=True)
class Broken:
    """A frame that cannot be used.

    Attributes:
        frame_id: such as "000042".
        message: names the file and what is wrong with it.
    """

    frame_id: str
    message: str


@dataclass(frozen=True)
class FrameRead:
    """What came of reading a frame: the frame, or another, and those that were broken."""

    frame: Frame | None
    broken: tuple[Broken, ...] = ()


class CheckedFrames(Dataset[FrameRead]):
    """Frames of which some may be broken.

    Args:
        frames: the frames; by rows, or in training by (epoch, row).
        frame_ids: their ids.
        skip: put the next whole frame of the split in the place of a broken one, in training, and
            leave it out otherwise; or else raise.
    """

    def __init__(self, frames: Dataset[Frame], frame_ids: Sequence[str], skip: bool) -> None:
        self.frames = frames
        self.frame_ids = frame_ids
        self.skip = skip

    def __len__(self) -> int:
        return len(self.frame_ids)

    def __getitem__(self, key: int | tuple[int, int]) -> FrameRead:
        """Reads a frame.

        Raises:
            DataError: it is broken, and not to be skipped, or so are all others.
        """
        broken: list[Broken] = []
        row = key[1] if isinstance(key, tuple) else key
        for step in range(len(self)):
            at = (row + step) % len(self)
            try:
                frame = self.frames[(key[0], at) if isinstance(key, tuple) else at]
                return FrameRead(frame, tuple(broken))
            except (DataError, OSError) as error:
                if not self.skip:
                    raise
                broken.append(Broken(self.frame_ids[at], str(error)))
            if not isinstance(key, tuple):
                return FrameRead(None, tuple(broken))
        raise DataError(f"none of {len(self)} frames can be used; the first: {broken[0].message}")


def collate_read(reads: Sequence[FrameRead], classes: Sequence[str]) -> SweepBatch:
    """`collate` of what was read; a batch may have no frame."""
    batch = collate([read.frame for read in reads if read.frame is not None], classes)
    return replace(batch, broken=tuple(broken for read in reads for broken in read.broken))


class TrainingFrames(Dataset[Frame]):
    """Frames of a data set, augmented; ``difficulty`` and ``objects`` stay what was read."""

    def __init__(self, frames: KittiDataset, config: Config) -> None:
        self.frames = frames
        self.seed = config.seed
        self.epochs = config.train.epochs
        self.steps = augmentation_steps(config.data, frames.frame_ids)

    def __len__(self) -> int:
        return len(self.frames)

    def augmentation(self, epoch: int) -> augment.Compose:
        """What is done to a frame in an epoch; beyond the training's last, what is done in that."""
        left = max(self.epochs - epoch, 1)
        return augment.Compose([step for leave_out, step in self.steps if leave_out < left])

    def __getitem__(self, key: tuple[int, int]) -> Frame:
        epoch, row = key
        frame = self.frames[row]
        rng = augment.frame_generator(self.seed, epoch, frame.frame_id)
        sweep = augment.LabelledSweep(frame.points, frame.boxes, frame.names)
        sweep = self.augmentation(epoch)(sweep, rng)
        return replace(frame, points=sweep.points, boxes=sweep.boxes, names=list(sweep.names))


class SweepData(lightning.LightningDataModule):
    """The training and validation sweeps that a configuration names.

    Attributes:
        position: where the training goes on.

    Raises:
        DataError: the data set, or a database of objects that augmentation needs, is not there;
            raised when this is built, before any training.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.position = Position()
        data = config.data
        self.train_frames, self.val_frames = (
            KittiDataset(
                data.root,
                split,
                classes=config.classes,
                crop_to_image=data.crop_to_image,
                require_labels=True,
                nonfinite="raise",
                odd_labels="raise",
                limit=limit,
            )
            for split, limit in (
                (data.train_split, data.train_limit),
                (data.val_split, data.val_limit),
            )
        )

        self.augmented_frames = TrainingFrames(self.train_frames, config)

    def train_dataloader(self) -> DataLoader[SweepBatch]:
        """Augmented sweeps in an order of their own each epoch."""
        batches = EpochBatches(
            len(self.train_frames),
            self.config.train.batch_size,
            self.config.seed,
            start=self.position,
        )
        return self._loader(self.augmented_frames, self.train_frames, batches)

    def val_dataloader(self) -> DataLoader[SweepBatch]:
        """Sweeps as they are, in the split's order."""
        batches = ValidationBatches(len(self.val_frames), self.config.train.val_batch_size)
        return self._loader(self.val_frames, self.val_frames, batches)

    def _loader(
        self, frames: Dataset[Frame], split: KittiDataset, batches: Sampler[Any]
    ) -> DataLoader[SweepBatch]:
        workers = self.config.data.num_workers
        skip = self.config.data.on_broken_frame == "skip"
        return DataLoader(
            CheckedFrames(frames, split.frame_ids, skip),
            batch_sampler=batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=partial(collate_read, classes=self.config.classes),
        )
