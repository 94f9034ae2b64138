"""What a training of a detector reports beside its figures: drawn frames, broken files."""

from __future__ import annotations

import warnings
from typing import Any

import lightning
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger

from voxelpool.config import Config
from voxelpool.datasets.kitti import Frame, spread_rows
from voxelpool.detection import Detections
from voxelpool.training import distributed
from voxelpool.training.data import SweepBatch
from voxelpool.visualization import FOUND, LABELLED, BoxGroup, Scene, draw_bev


class DrawnFrames(lightning.Callback):
    """Draws a few validation frames with what is labelled and what was found.

    The pictures go to TensorBoard as "val/ID". The first process draws, from its part of the
    split: the same frames each time.

    Args:
        config: the configuration.
        score: detections below it are not drawn.
        size: of a picture, pixels.
    """

    def __init__(self, config: Config, *, score: float = 0.3, size: int = 480) -> None:
        self.config = config
        self.score = score
        self.size = size

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        outputs: list[Detections],
        batch: SweepBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draws the first frame of batches that are spread over the split."""
        if not trainer.is_global_zero or not batch.frames:
            return
        if batch_idx not in spread_rows(int(trainer.num_val_batches[0]), self._wanted):
            return
        picture = self._picture(batch.frames[0], outputs[0])
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                name = f"val/{batch.frames[0].frame_id}"
                step = trainer.global_step
                logger.experiment.add_image(name, picture, step, dataformats="HWC")

    @property
    def _wanted(self) -> int:
        return self.config.train.drawn_frames

    def _picture(self, frame: Frame, found: Detections) -> np.ndarray:
        shown = found[found.scores >= self.score]
        groups = [
            BoxGroup(frame.boxes, "labelled", LABELLED, names=frame.names),
            BoxGroup(
                shown.boxes,
                f"found, {self.score:g} or surer",
                FOUND,
                scores=shown.scores,
                names=shown.names,
            ),
        ]
        x0, y0, _, x1, y1, _ = self.config.grid.range
        scene = Scene(frame.points, groups, frame.frame_id)
        size = (self.size, self.size)
        return np.asarray(draw_bev(scene, bounds=(x0, y0, x1, y1), size=size))


class BrokenFrames(lightning.Callback):
    """Warns of each frame that could not be used, once, and counts them at the epoch's end."""

    def __init__(self) -> None:
        self.told: set[str] = set()
        self.met: set[str] = set()

    def _look(self, batch: SweepBatch) -> None:
        for broken in batch.broken:
            self.met.add(broken.frame_id)
            if broken.frame_id not in self.told:
                self.told.add(broken.frame_id)
                warnings.warn(f"skipped frame {broken.frame_id}: {broken.message}", stacklevel=1)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: SweepBatch, index: int
    ) -> None:
        """Training frames."""
        self._look(batch)

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        module: Any,
        outputs: Any,
        batch: SweepBatch,
        index: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Validation frames."""
        self._look(batch)

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Counts those of all processes."""
        met = set().union(*distributed.gathered(self.met))
        self.told |= met
        self.met = set()
        if met and distributed.rank() == 0:
            count = f"{len(met)} broken frame{'s' if len(met) > 1 else ''}"
            warnings.warn(f"epoch {trainer.current_epoch}: {count} skipped", stacklevel=1)
