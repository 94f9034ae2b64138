"""Anchors: the boxes that every cell of the bird's-eye-view map starts from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AnchorSpec:
    """The anchors of one class.

    Attributes:
        class_name: the class they stand for.
        size: length, width, height in metres.
        z_center: height of the box centre in the LiDAR frame, metres.
        matched_threshold: an anchor is positive above this IoU with a box of its class.
        unmatched_threshold: an anchor is negative below this IoU with every box of its class.
        rotations: yaw of each anchor, radians.

    Raises:
        ValueError: if a size is not positive, no rotation is given, or the thresholds are not
            0 <= unmatched <= matched <= 1.
    """

    class_name: str
    size: tuple[float, float, float]
    z_center: float
    matched_threshold: float
    unmatched_threshold: float
    rotations: tuple[float, ...] = (0.0, math.pi / 2)

    def __post_init__(self) -> None:
        if len(self.size) != 3 or not all(s > 0 and math.isfinite(s) for s in self.size):
            raise ValueError(
                f"anchor of {self.class_name}: size must be three positive lengths (length, width, "
                f"height), got {self.size}"
            )
        if not self.rotations:
            raise ValueError(f"anchor of {self.class_name}: no rotation given")
        if not 0 <= self.unmatched_threshold <= self.matched_threshold <= 1:
            raise ValueError(
                f"anchor of {self.class_name}: 0 <= unmatched_threshold <= matched_threshold <= 1 "
                f"must hold, got {self.unmatched_threshold} and {self.matched_threshold}"
            )


class AnchorGenerator:
    """Places anchors at the centres of the map's cells.

    The anchors of one cell are ordered by spec, then by rotation; class id c is the c-th spec.

    Args:
        specs: the anchors of each class.
        point_range: x0, y0, z0, x1, y1, z1 of the voxel grid, metres.
        map_size: (H, W), cells of the output map along y and x.

    Attributes:
        specs: as given.
        map_size: as given.
        per_location: A, anchors at each cell.
        class_names: class of each class id.

    Raises:
        ValueError: if there is no spec, the map has no cell or the range is empty.
    """

    def __init__(
        self,
        specs: Sequence[AnchorSpec],
        point_range: Sequence[float],
        map_size: tuple[int, int],
    ) -> None:
        if not specs:
            raise ValueError("no anchor spec given")
        if len(point_range) != 6 or not (
            point_range[0] < point_range[3] and point_range[1] < point_range[4]
        ):
            raise ValueError(f"point_range must be x0, y0, z0, x1, y1, z1, got {point_range}")
        if min(map_size) < 1:
            raise ValueError(f"map_size must be at least 1 x 1, got {map_size}")
        self.specs = tuple(specs)
        self.point_range = tuple(float(v) for v in point_range)
        self.map_size = (int(map_size[0]), int(map_size[1]))
        self.class_names = tuple(spec.class_name for spec in self.specs)
        self.per_location = sum(len(spec.rotations) for spec in self.specs)

    def anchors(
        self, *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> Tensor:
        """All anchors, (H, W, A, 7): x, y, z, length, width, height, yaw."""
        height, width = self.map_size
        x0, y0, _, x1, y1, _ = self.point_range
        # Centres in float64, so that the cell size carries no rounding over 352 cells.
        x = x0 + (torch.arange(width, dtype=torch.float64) + 0.5) * ((x1 - x0) / width)
        y = y0 + (torch.arange(height, dtype=torch.float64) + 0.5) * ((y1 - y0) / height)
        shapes = torch.tensor(
            [
                [spec.z_center, *spec.size, rotation]
                for spec in self.specs
                for rotation in spec.rotations
            ],
            dtype=torch.float64,
        )
        anchors = torch.empty(height, width, self.per_location, 7, dtype=torch.float64)
        anchors[..., 0] = x[None, :, None]
        anchors[..., 1] = y[:, None, None]
        anchors[..., 2:] = shapes
        return anchors.to(dtype=dtype, device=device)

    def class_ids(self, *, device: torch.device | str | None = None) -> Tensor:
        """Class id of each of a cell's anchors, (A,) int64."""
        ids = [c for c, spec in enumerate(self.specs) for _ in spec.rotations]
        return torch.tensor(ids, dtype=torch.int64, device=device)


def flatten_maps(score_map: Tensor, residual_map: Tensor) -> tuple[Tensor, Tensor]:
    """Bring the RPN's maps into the anchors' order.

    Args:
        score_map: (B, A, H, W).
        residual_map: (B, A * 7, H, W), channel ``a * 7 + i`` being parameter i of anchor a.

    Returns:
        Scores (B, N) and residuals (B, N, 7) with N = H * W * A, in the order of
        ``AnchorGenerator.anchors().view(-1, 7)``.
    """
    batch, per_location, height, width = score_map.shape
    scores = score_map.permute(0, 2, 3, 1).reshape(batch, -1)
    residuals = residual_map.view(batch, per_location, -1, height, width)
    return scores, residuals.permute(0, 3, 4, 1, 2).reshape(batch, scores.shape[1], -1)
