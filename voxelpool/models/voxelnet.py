"""VoxelNet (Zhou and Tuzel, CVPR 2018): sweeps in, boxes out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from voxelpool.config import Config
from voxelpool.detection import (
    AnchorGenerator,
    AnchorSpec,
    DetectionLoss,
    Detections,
    Postprocessor,
    TargetAssigner,
    flatten_maps,
)
from voxelpool.nn import RPN, VFE, DenseMiddle
from voxelpool.ops import voxelize
from voxelpool.structures import Voxels

#: What the convolutions compute in when detecting; of the names that `train.precision` has.
Precision: TypeAlias = Literal["32", "bf16"]


class VoxelNet(nn.Module):
    """The whole network: voxelization, VFE stack, middle layers, RPN.

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
        depth, height, width = self.grid.shape
        code_dims = point_dims + (6 if config.vfe.center_offsets else 3)
        self.vfe = VFE(
            code_dims, config.vfe.channels, config.vfe.out_channels, pool=config.vfe.pool
        )
        self.vfe.scale_inputs(self._input_scales())
        self.middle = DenseMiddle(
            config.vfe.out_channels, config.middle.channels, grid_shape=(depth, height, width)
        )
        specs = [AnchorSpec(**anchor.model_dump()) for anchor in config.anchors]
        self.rpn = RPN(
            self.middle.out_channels,
            layers=config.rpn.layers,
            strides=config.rpn.strides,
            channels=config.rpn.channels,
            upsample_channels=config.rpn.upsample_channels,
            anchors_per_location=sum(len(spec.rotations) for spec in specs),
            neck=config.rpn.neck,
            attention=config.rpn.attention,
            squeeze=config.rpn.squeeze,
            input_size=(height, width),
        )
        generator = AnchorGenerator(specs, self.grid.range, self.rpn.output_size(height, width))
        self.register_buffer("anchors", generator.anchors(), persistent=False)
        self.register_buffer("anchor_classes", generator.class_ids(), persistent=False)
        self.assign_targets = TargetAssigner(generator, iou=config.loss.matching_iou)
        self.detection_loss = DetectionLoss(
            positive_weight=config.loss.positive_weight,
            negative_weight=config.loss.negative_weight,
            residual_weight=config.loss.residual_weight,
            code_weights=config.loss.code_weights,
            smooth_l1_beta=config.loss.smooth_l1_beta,
            angle=config.loss.angle,
        )
        self.postprocess = Postprocessor(
            score_threshold=config.postprocess.score_threshold,
            nms_iou=config.postprocess.nms_iou,
            nms_pre=config.postprocess.nms_pre,
            max_detections=config.postprocess.max_detections,
        )

    def _input_scales(self) -> list[float]:
        """Roughly the spread of each column of the point code, metres or reflectance.

        Heights spread less than their range: most points lie near the ground, and centimetres
        decide over a box.
        """
        low, high, size = self.grid.range[:3], self.grid.range[3:], self.grid.voxel_size
        coordinates = [(above - below) / 4 for below, above in zip(low, high, strict=True)]
        coordinates[2] *= 0.3
        offsets = [length / 4 for length in size]
        scales = coordinates + [0.3] * (self.point_dims - 3) + offsets
        return scales + offsets if self.config.vfe.center_offsets else scales

    def forward(
        self, points: Tensor, batch: Tensor | None = None, batch_size: int = 1, *, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Predicts a score and a residual for every anchor.

        Args:
            points: (N, point_dims) float32, metres, LiDAR frame.
            batch: (N,) integer, the sweep of each point; None: one sweep.
            batch_size: B.
            seed: decides which points a full voxel keeps.

        Returns:
            scores: (B, N) logits of the N anchors.
            residuals: (B, N, 7).

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
        if points.dim() != 2 or points.shape[1] != self.point_dims:
            raise ValueError(
                f"points must have shape (N, {self.point_dims}), got {tuple(points.shape)}"
            )
        return voxelize(
            points,
            self.grid,
            batch=batch,
            batch_size=batch_size,
            max_points=self.config.vfe.max_points,
            max_voxels=self.config.vfe.max_voxels,
            seed=seed,
        )

    def predict(self, points: Tensor, voxels: Voxels) -> tuple[Tensor, Tensor]:
        """Scores and residuals, as `forward`, from points that are grouped already.

        On the CPU the layers after the VFE compute only what voxels reach, exactly, up to the
        first neck or attention; setting ``middle.use_reach`` to False turns this off.
        ``torch.autocast("cpu", torch.bfloat16)`` around the call is the fastest way there: those
        layers then take bfloat16 and add up in float32, and the VFE stays in float32, since
        bfloat16 is too coarse for coordinates.
        """
        on_rows = self.middle.runs_on_rows(points)
        with torch.autocast("cpu", enabled=False) if on_rows else nullcontext():
            features = self.vfe.encode(
                points, voxels, center_offsets=self.config.vfe.center_offsets
            )
        inputs = (features, voxels.coords, voxels.batch_size)
        occupied = self._occupied(voxels) if self.rpn.needs_occupied else None
        if on_rows:
            maps = self.rpn.forward_rows(*self.middle.forward_rows(*inputs), occupied)
        else:
            maps = self.rpn(self.middle(*inputs), occupied)
        return flatten_maps(*maps)

    def _occupied(self, voxels: Voxels) -> Tensor:
        """(B, H, W) bool: the cells of the bird's-eye view that hold voxels."""
        _, height, width = self.grid.shape
        batch, _, y, x = voxels.coords.long().unbind(1)
        shape = (voxels.batch_size, height, width)
        occupied = torch.zeros(shape, dtype=torch.bool, device=voxels.device)
        occupied[batch, y, x] = True
        return occupied

    def loss(
        self,
        scores: Tensor,
        residuals: Tensor,
        boxes: Sequence[Tensor],
        classes: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """The loss of a batch and its parts.

        Args:
            scores: (B, N) logits.
            residuals: (B, N, 7).
            boxes: for each sweep (n, 7), the objects in it.
            classes: for each sweep (n,) int64, rows of ``config.classes``.

        Returns:
            "loss" and its weighted parts, scalars.
        """
        return self.detection_loss(
            scores, residuals, self.assign_targets(self.anchors, boxes, classes)
        )

    @torch.no_grad()
    def detect(
        self,
        points: Tensor,
        batch: Tensor | None = None,
        batch_size: int = 1,
        *,
        seed: int = 0,
        precision: Precision = "32",
    ) -> list[Detections]:
        """Finds objects; arguments as `forward`, one result a sweep.

        A sweep gives the same boxes alone and in any batch, up to rounding in the convolutions;
        one without a point in the grid has none. With ``precision="bf16"`` the convolutions take
        bfloat16: faster, and boxes differ by a centimetre or so.
        """
        voxels = self.voxelize(points, batch, batch_size, seed=seed)
        half = torch.autocast(points.device.type, torch.bfloat16)
        with half if precision == "bf16" else nullcontext():
            scores, residuals = self.predict(points, voxels)
        occupied = voxels.coords[:, 0].long().bincount(minlength=batch_size) > 0
        scores = scores.masked_fill(~occupied[:, None], -torch.inf)
        return self.postprocess(scores, residuals, self.anchors, self.anchor_classes)


def build_detector(config: Config) -> VoxelNet:
    """The detector that a configuration names."""
    return VoxelNet(config)
