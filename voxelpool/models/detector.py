"""The detectors, sweeps in and boxes out: one class, of which a configuration makes the network.

VoxelNet (Zhou and Tuzel, CVPR 2018), SECOND (Yan, Mao and Li, Sensors 2018) and PointPillars (Lang
et al., CVPR 2019) are the same but for how voxels are encoded and what brings them to the
bird's-eye view.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from voxelpool.config import (
    Config,
    DenseMiddleConfig,
    MeanVFEConfig,
    PillarVFEConfig,
    SparseMiddleConfig,
)
from voxelpool.detection import (
    AnchorGenerator,
    AnchorSpec,
    DetectionLoss,
    Detections,
    Postprocessor,
    Predictions,
    TargetAssigner,
    VoxelsUnderAnchors,
    flatten_maps,
    looks,
    merge,
)
from voxelpool.detection.targets import IGNORED
from voxelpool.nn import RPN, VFE, DenseMiddle, MeanVFE, ScatterMiddle, SparseMiddle
from voxelpool.nn.sparse import STAGES
from voxelpool.nn.vfe import CenterOffsets
from voxelpool.ops import voxelize
from voxelpool.structures import Voxels

#: What the convolutions compute in when detecting; of the names that `train.precision` has.
Precision: TypeAlias = Literal["32", "bf16"]


class VoxelDetector(nn.Module):
    """The whole network: voxelization, encoder, middle layers, RPN.

    Args:
        config: the configuration; `voxelpool.config.Config`.
        point_dims: columns of a point: x, y, z and features (KITTI: reflectance).
    """

    anchors: Tensor
    anchor_classes: Tensor

    def __init__(self, config: Config, point_dims: int = 4) -> None:
        super().__init__()
        self.config = config
        self.point_dims = point_dims
        self.grid = config.grid.to_grid()
        self.vfe = self._encoder()
        self.middle = self._middle()
        specs = [AnchorSpec(**anchor.model_dump()) for anchor in config.anchors]
        height, width = self.middle.out_size
        self.rpn = RPN(
            self.middle.out_channels,
            layers=config.rpn.layers,
            strides=config.rpn.strides,
            channels=config.rpn.channels,
            upsample_channels=config.rpn.upsample_channels,
            anchors_per_location=sum(len(spec.rotations) for spec in specs),
            classes_per_anchor=len(specs) if config.head.scores == "all" else 1,
            directions=config.head.direction,
            unit_upsample_kernel=config.rpn.unit_upsample_kernel,
            score_prior=0.01 if config.loss.classification == "focal" else None,
            neck=config.rpn.neck,
            attention=config.rpn.attention,
            squeeze=config.rpn.squeeze,
            norm_eps=config.norm.eps,
            norm_momentum=config.norm.momentum,
            input_size=(height, width),
        )
        generator = AnchorGenerator(
            specs,
            self.grid.range,
            self.rpn.output_size(height, width),
            config.head.anchor_placement,
        )
        self.register_buffer("anchors", generator.anchors(), persistent=False)
        self.register_buffer("anchor_classes", generator.class_ids(), persistent=False)
        self.voxels_under_anchors = VoxelsUnderAnchors(
            self.anchors, self.grid.range, self.grid.shape[1:]
        )
        self.assign_targets = TargetAssigner(generator, iou=config.loss.matching_iou)
        self.detection_loss = DetectionLoss(
            direction_offset=config.head.direction_offset,
            **config.loss.model_dump(exclude={"matching_iou"}),
        )
        self.postprocess = Postprocessor(
            direction_offset=config.head.direction_offset,
            classes=config.classes,
            **config.postprocess.model_dump(exclude={"votes"}),
        )
        self.looks = looks(config.postprocess.votes)

    def _encoder(self) -> VFE | MeanVFE:
        block, norm = self.config.vfe, self.config.norm
        if isinstance(block, MeanVFEConfig):
            return MeanVFE(self.point_dims)
        offsets: CenterOffsets
        if isinstance(block, PillarVFEConfig):
            channels, offsets = (), block.offsets
            padded_to = block.max_points if block.padded_max else None
        else:
            channels, offsets = block.channels, "xyz" if block.center_offsets else ""
            padded_to = None
        encoder = VFE(
            self.point_dims + 3 + len(offsets),
            channels,
            block.out_channels,
            pool=block.pool,
            center_offsets=offsets,
            padded_to=padded_to,
            norm_eps=norm.eps,
            norm_momentum=norm.momentum,
        )
        encoder.scale_inputs(self._input_scales(len(offsets)))
        return encoder

    def _middle(self) -> DenseMiddle | SparseMiddle | ScatterMiddle:
        block, norm = self.config.middle, self.config.norm
        width, shape = self.vfe.out_channels, self.grid.shape
        norms = {"norm_eps": norm.eps, "norm_momentum": norm.momentum}
        if isinstance(block, DenseMiddleConfig):
            return DenseMiddle(width, block.channels, grid_shape=shape, **norms)
        if isinstance(block, SparseMiddleConfig):
            stages = STAGES[block.layout]
            if block.channels is not None:
                pairs = zip(stages, block.channels, strict=True)
                stages = tuple(replace(stage, channels=count) for stage, count in pairs)
            return SparseMiddle(width, stages, grid_shape=shape, backend=block.backend, **norms)
        return ScatterMiddle(width, grid_shape=shape)

    def _input_scales(self, center_offsets: int) -> list[float]:
        """Roughly the spread of each column of the point code, metres or reflectance.

        Heights spread less than their range: most points lie near the ground, and centimetres
        decide over a box.
        """
        low, high, size = self.grid.range[:3], self.grid.range[3:], self.grid.voxel_size
        coordinates = [(above - below) / 4 for below, above in zip(low, high, strict=True)]
        coordinates[2] *= 0.3
        offsets = [length / 4 for length in size]
        scales = coordinates + [0.3] * (self.point_dims - 3) + offsets
        return scales + offsets[:center_offsets]

    def forward(
        self, points: Tensor, batch: Tensor | None = None, batch_size: int = 1, *, seed: int = 0
    ) -> Predictions:
        """Predicts scores, a residual and perhaps a direction for every anchor.

        Args:
            points: (N, point_dims) float32, metres, LiDAR frame.
            batch: (N,) integer, the sweep of each point; None: one sweep.
            batch_size: B.
            seed: decides which points a full voxel keeps.

        Returns:
            For the N anchors: scores (B, N), or (B, N, K) for K classes; residuals (B, N, 7);
            directions (B, N, 2) or None.

        Raises:
            ValueError: points of another width.
        """
        voxels = self.voxelize(points, batch, batch_size, seed=seed)
        return self.predict(points, voxels)

    def voxelize(
        self, points: Tensor, batch: Tensor | None = None, batch_size: int = 1, *, seed: int = 0
    ) -> Voxels:
        """Groups points by voxel as the configuration says; arguments as `forward`.

        Raises:
            ValueError: points of another width.
        """
        self._check_width(points)
        block = self.config.vfe
        if self.config.grid.open:
            low = points.new_tensor(self.grid.range[:3])
            points = points.masked_fill((points[:, :3] <= low).any(dim=1, keepdim=True), torch.nan)
        voxels = voxelize(
            points,
            self.grid,
            batch=batch,
            batch_size=batch_size,
            max_points=block.max_points if block.keep == "random" else None,
            max_voxels=block.max_voxels,
            seed=seed,
        )
        return voxels if block.keep == "random" else voxels.first(block.max_points)

    def _check_width(self, points: Tensor) -> None:
        if points.dim() != 2 or points.shape[1] != self.point_dims:
            raise ValueError(
                f"points must have shape (N, {self.point_dims}), got {tuple(points.shape)}"
            )

    def predict(self, points: Tensor, voxels: Voxels) -> Predictions:
        """As `forward`, from points that are grouped already.

        On the CPU the layers after the encoder compute only what voxels reach, exactly, up to the
        first neck or attention; setting ``middle.use_reach`` to False turns this off.
        ``torch.autocast("cpu", torch.bfloat16)`` around the call is the fastest way there: those
        layers then take bfloat16 and add up in float32, and the encoder stays in float32, since
        bfloat16 is too coarse for coordinates.
        """
        on_rows = self.middle.runs_on_rows(points)
        with torch.autocast("cpu", enabled=False) if on_rows else nullcontext():
            features = self.vfe.encode(points, voxels)
        inputs = (features, voxels.coords, voxels.batch_size)
        occupied = self._occupied(voxels) if self.rpn.needs_occupied else None
        if on_rows:
            maps = self.rpn.forward_rows(*self.middle.forward_rows(*inputs), occupied)
        else:
            maps = self.rpn(self.middle(*inputs), occupied)
        return flatten_maps(*maps)

    def counted_anchors(self, voxels: Voxels) -> Tensor | None:
        """The anchors that take part in loss and detection: (B, N) bool, or None for all.

        They are those over ``head.min_voxels`` voxels or more, as SECOND has it.
        """
        least = self.config.head.min_voxels
        if not least:
            return None
        return self.voxels_under_anchors(voxels.coords, voxels.batch_size) >= least

    def _occupied(self, voxels: Voxels) -> Tensor:
        """(B, H, W) bool: the cells of the middle's map over which voxels stand."""
        height, width = self.middle.out_size
        batch, _, y, x = voxels.coords.long().unbind(1)
        shape = (voxels.batch_size, height, width)
        occupied = torch.zeros(shape, dtype=torch.bool, device=voxels.device)
        cell_height, cell_width = self.grid.shape[1] // height, self.grid.shape[2] // width
        occupied[batch, y // cell_height, x // cell_width] = True
        return occupied

    def loss(
        self,
        predictions: Predictions,
        boxes: Sequence[Tensor],
        classes: Sequence[Tensor],
        counted: Tensor | None = None,
        **options: Any,
    ) -> dict[str, Tensor]:
        """The loss of a batch and its parts.

        Args:
            predictions: what `forward` gives.
            boxes: for each sweep (n, 7), the objects in it.
            classes: for each sweep (n,) int64, rows of ``config.classes``.
            counted: what `counted_anchors` gives; the other anchors learn nothing.
            **options: of `DetectionLoss.forward`.

        Returns:
            "loss" and its weighted parts, scalars.
        """
        targets = self.assign_targets(self.anchors, boxes, classes)
        if counted is not None:
            labels = targets.labels.masked_fill(~counted, IGNORED)
            targets = replace(targets, labels=labels)
        return self.detection_loss(predictions, targets, **options)

    @torch.no_grad()
    def detect(
        self,
        points: Tensor,
        batch: Tensor | None = None,
        batch_size: int = 1,
        *,
        seed: int = 0,
        precision: Precision = "32",
        votes: int | None = None,
    ) -> list[Detections]:
        """Finds objects; arguments as `forward`, one result a sweep.

        A sweep gives the same boxes alone and in any batch, up to rounding in the convolutions;
        one without a point in the grid has none. With ``precision="bf16"`` the convolutions take
        bfloat16: faster, and boxes differ by a centimetre or so.

        With ``votes`` above 1 it looks at each sweep so many times, at the sweep itself first and
        then at it mirrored, turned and scaled, and merges what it found: see
        `voxelpool.detection.votes`. Boxes that a single look finds take part from half the score
        threshold on; the threshold is for what they become. None: ``config.postprocess.votes``.
        This is for networks that learned from sweeps flipped, rotated and scaled.
        """
        views = self.looks if votes is None else looks(votes)
        if len(views) == 1:
            return self._detect(points, batch, batch_size, seed, precision, self.postprocess)
        self._check_width(points)
        lenient = self.postprocess.changed(score_threshold=self.postprocess.score_threshold / 2)
        found = []
        for look in views:
            seen = look.points(points)
            in_look = self._detect(seen, batch, batch_size, seed, precision, lenient)
            found.append([replace(one, boxes=look.boxes_back(one.boxes)) for one in in_look])
        return [
            self.postprocess.suppress(merge(of_sweep, views, self.grid.range))
            for of_sweep in zip(*found, strict=True)
        ]

    def _detect(
        self,
        points: Tensor,
        batch: Tensor | None,
        batch_size: int,
        seed: int,
        precision: Precision,
        postprocess: Postprocessor,
    ) -> list[Detections]:
        voxels = self.voxelize(points, batch, batch_size, seed=seed)
        half = torch.autocast(points.device.type, torch.bfloat16)
        with half if precision == "bf16" else nullcontext():
            predictions = self.predict(points, voxels)
        scores = self.counted_scores(predictions.scores, voxels)
        return postprocess(predictions._replace(scores=scores), self.anchors, self.anchor_classes)

    def counted_scores(self, scores: Tensor, voxels: Voxels) -> Tensor:
        """Scores (B, N) or (B, N, classes); NaN, below any threshold, where no anchor counts.

        Those are the anchors that `counted_anchors` leaves out, and all of a sweep without voxels.
        """
        present = voxels.coords[:, 0].long().bincount(minlength=voxels.batch_size)
        left_out = present[:, None] == 0
        counted = self.counted_anchors(voxels)
        if counted is not None:
            left_out = left_out | ~counted
        return scores.masked_fill(
            left_out.view(*left_out.shape, *[1] * (scores.dim() - 2)), torch.nan
        )


def build_detector(config: Config) -> VoxelDetector:
    """The detector that a configuration names."""
    return VoxelDetector(config)
