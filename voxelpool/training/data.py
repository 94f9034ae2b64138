"""Batches of sweeps for training and validation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from voxelpool.config import Config, DataConfig, SampleObjectsConfig
from voxelpool.datasets import augment
from voxelpool.datasets.kitti import Frame, KittiDataset
from voxelpool.datasets.object_database import ObjectDatabase, database_path
from voxelpool.errors import DataError

_AUGMENTATIONS = {
    "flip": augment.Flip,
    "scale": augment.Scale,
    "rotate": augment.Rotate,
    "translate": augment.Translate,
    "object_noise": augment.ObjectNoise,
    "object_scale": augment.ObjectScale,
    "sample_objects": augment.SampleObjects,
    "shuffle": augment.Shuffle,
    "drop_points": augment.DropPoints,
    "drop_beams": augment.DropBeams,
    "jitter": augment.Jitter,
    "reflectance_noise": augment.ReflectanceNoise,
}


def build_augmentation(data: DataConfig, frame_ids: Sequence[str]) -> augment.Compose:
    """The augmentations of a configuration, in its order.

    Args:
        data: where they are listed.
        frame_ids: the frames that are trained on; the split's own database of objects gives no
            others.

    Raises:
        DataError: a database of objects is not there or damaged; says how to write one.
    """
    steps = []
    for block in data.augment:
        options = block.model_dump(exclude={"name"})
        if isinstance(block, SampleObjectsConfig):
            options["database"] = _object_database(block, data, frame_ids)
        steps.append(_AUGMENTATIONS[block.name](**options))
    return augment.Compose(steps)


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
    """

    points: Tensor
    batch: Tensor
    boxes: list[Tensor]
    classes: list[Tensor]
    frames: list[Frame]

    @property
    def batch_size(self) -> int:
        """Sweeps in the batch."""
        return len(self.frames)

    @property
    def frame_ids(self) -> list[str]:
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
    sizes = torch.tensor([len(frame.points) for frame in frames])
    return SweepBatch(
        points=torch.from_numpy(np.concatenate([frame.points for frame in frames])),
        batch=torch.repeat_interleave(torch.arange(len(frames)), sizes),
        boxes=[torch.from_numpy(frame.boxes) for frame in frames],
        classes=[
            torch.tensor([classes.index(name) for name in frame.names], dtype=torch.int64)
            for frame in frames
        ],
        frames=list(frames),
    )


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, row) pairs in an order that seed and epoch alone decide.

    The epoch travels with each row, so that augmentation differs from epoch to epoch in workers
    that live on.
    """

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the training loop before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        return iter([(self.epoch, int(row)) for row in order])


class TrainingFrames(Dataset[Frame]):
    """Frames of a data set, augmented; ``difficulty`` and ``objects`` stay what was read."""

    def __init__(self, frames: KittiDataset, config: Config) -> None:
        self.frames = frames
        self.seed = config.seed
        self.augment = build_augmentation(config.data, frames.frame_ids)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, key: tuple[int, int]) -> Frame:
        epoch, row = key
        frame = self.frames[row]
        rng = augment.frame_generator(self.seed, epoch, frame.frame_id)
        sweep = self.augment(augment.LabelledSweep(frame.points, frame.boxes, frame.names), rng)
        return replace(frame, points=sweep.points, boxes=sweep.boxes, names=list(sweep.names))


class SweepData(lightning.LightningDataModule):
    """The training and validation sweeps that a configuration names.

    Raises:
        DataError: the data set, or a database of objects that augmentation needs, is not there;
            raised when this is built, before any training.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        data = config.data
        self.train_frames, self.val_frames = (
            KittiDataset(
                data.root,
                split,
                classes=config.classes,
                crop_to_image=data.crop_to_image,
                require_labels=True,
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
        return self._loader(
            self.augmented_frames,
            batch_size=self.config.train.batch_size,
            sampler=EpochSampler(len(self.augmented_frames), self.config.seed),
        )

    def val_dataloader(self) -> DataLoader[SweepBatch]:
        """Sweeps as they are, in the split's order."""
        return self._loader(self.val_frames, batch_size=self.config.train.val_batch_size)

    def _loader(self, frames: Dataset[Frame], **options: object) -> DataLoader[SweepBatch]:
        workers = self.config.data.num_workers
        return DataLoader(
            frames,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=partial(collate, classes=self.config.classes),
            **options,
        )
