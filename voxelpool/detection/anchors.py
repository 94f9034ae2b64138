"""Anchors: the boxes that every cell of the bird's-eye-view map starts from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor, nn

BOX_PARAMETERS = 7
Placement: TypeAlias = Literal["centers", "edges"]


class Predictions(NamedTuple):
    """What a network says of the N anchors of B frames.

    Attributes:
        scores: (B, N) logits of each anchor's own class, or (B, N, K) of all classes.
        residuals: (B, N, 7); see `box_coder.encode`.
        directions: (B, N, 2) logits of the two ways round, or None.
    """

    scores: Tensor
    residuals: Tensor
    directions: Tensor | None = None


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
    """Places anchors over the map.

    The anchors of one cell are ordered by spec, then by rotation; class id c is the c-th spec.

    Args:
        specs: the anchors of each class.
        point_range: x0, y0, z0, x1, y1, z1 of the voxel grid, metres.
        map_size: (H, W), cells of the output map along y and x.
        placement: centers of the map's cells, or spread evenly from edge to edge of the range, both
            included, as OpenPCDet does: its first and last anchors lie on the edges.

    Attributes:
        specs: as given.
        map_size: as given.
        per_location: A, anchors at each cell.
        class_names: class of each class id.

    Raises:
        ValueError: if there is no spec, the map has no cell, the range is empty or the placement
            is unknown.
    """

    def __init__(
        self,
        specs: Sequence[AnchorSpec],
        point_range: Sequence[float],
        map_size: tuple[int, int],
        placement: Placement = "centers",
    ) -> None:
        if placement not in get_args(Placement):
            raise ValueError(f"placement must be centers or edges, got {placement!r}")
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
        self.placement: Placement = placement
        self.class_names = tuple(spec.class_name for spec in self.specs)
        self.per_location = sum(len(spec.rotations) for spec in self.specs)

    def anchors(
        self, *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> Tensor:
        """All anchors, (H, W, A, 7): x, y, z, length, width, height, yaw."""
        height, width = self.map_size
        x0, y0, _, x1, y1, _ = self.point_range
        x = self._places(x0, x1, width)
        y = self._places(y0, y1, height)
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

    def _places(self, low: float, high: float, count: int) -> Tensor:
        # In float64, so that the step carries no rounding over hundreds of cells.
        if self.placement == "edges":
            return torch.linspace(low, high, count, dtype=torch.float64)
        steps = torch.arange(count, dtype=torch.float64) + 0.5
        return low + steps * ((high - low) / count)

    def class_ids(self, *, device: torch.device | str | None = None) -> Tensor:
        """Class id of each of a cell's anchors, (A,) int64."""
        ids = [c for c, spec in enumerate(self.specs) for _ in spec.rotations]
        return torch.tensor(ids, dtype=torch.int64, device=device)


class VoxelsUnderAnchors(nn.Module):
    """Counts the voxels that each anchor stands over, by sums over rectangles.

    An anchor stands over the cells that the axis-aligned rectangle around it touches.

    Args:
        anchors: (..., 7), N in all.
        point_range: x0, y0, z0, x1, y1, z1 of the voxel grid, metres.
        cells: (H, W), cells of the grid along y and x.
    """

    windows: Tensor

    def __init__(
        self, anchors: Tensor, point_range: Sequence[float], cells: tuple[int, int]
    ) -> None:
        super().__init__()
        self.cells = cells
        x, y, _, length, width, _, yaw = anchors.reshape(-1, 7).double().unbind(1)
        cos, sin = yaw.cos().abs(), yaw.sin().abs()
        half = {0: (length * sin + width * cos) / 2, 1: (length * cos + width * sin) / 2}
        edges = []
        for axis, center in enumerate((y, x)):
            low, high = point_range[1 - axis], point_range[4 - axis]
            count = cells[axis]
            place, reach = ((value * count / (high - low)) for value in (center - low, half[axis]))
            # An anchor that ends at a cell's edge must not touch the next by rounding.
            edges.append((place - reach + 1e-3).floor().clamp(0, count))
            edges.append((place + reach - 1e-3).ceil().clamp(0, count))
        y0, y1, x0, x1 = edges
        windows = torch.stack([y0, x0, y1, x1], dim=1).long()
        self.register_buffer("windows", windows, persistent=False)

    def forward(self, coords: Tensor, batch_size: int) -> Tensor:
        """Counts.

        Args:
            coords: (K, 4) integer, voxels as batch, z, y, x.
            batch_size: B.

        Returns:
            (B, N) int64.
        """
        height, width = self.cells
        batch, _, y, x = coords.long().unbind(1)
        flat = (batch * (height + 1) + y + 1) * (width + 1) + x + 1
        size = batch_size * (height + 1) * (width + 1)
        counts = torch.zeros(size, dtype=torch.int64, device=coords.device)
        counts = counts.index_add(0, flat, torch.ones_like(flat))
        sums = counts.view(batch_size, height + 1, width + 1).cumsum(1).cumsum(2)
        y0, x0, y1, x1 = self.windows.unbind(1)
        return sums[:, y1, x1] - sums[:, y0, x1] - sums[:, y1, x0] + sums[:, y0, x0]


def flatten_maps(
    score_map: Tensor, residual_map: Tensor, direction_map: Tensor | None = None
) -> Predictions:
    """Bring the RPN's maps into the anchors' order.

    Args:
        score_map: (B, A * K, H, W), channel ``a * K + k`` being class k of anchor a; or with one
            score each (B, A, H, W).
        residual_map: (B, A * 7, H, W), channel ``a * 7 + i`` being parameter i of anchor a.
        direction_map: (B, A * 2, H, W), channel ``a * 2 + i`` being direction i of anchor a.

    Returns:
        Predictions for N = H * W * A anchors in the order of
        ``AnchorGenerator.anchors().view(-1, 7)``.
    """
    per_location = residual_map.shape[1] // BOX_PARAMETERS
    scores = _flat(score_map, score_map.shape[1] // per_location)
    return Predictions(
        scores.squeeze(-1) if scores.shape[-1] == 1 else scores,
        _flat(residual_map, BOX_PARAMETERS),
        None if direction_map is None else _flat(direction_map, 2),
    )


def _flat(maps: Tensor, values: int) -> Tensor:
    """(B, A * values, H, W) -> (B, H * W * A, values)."""
    batch, channels, height, width = maps.shape
    by_anchor = maps.view(batch, channels // values, values, height, width)
    return by_anchor.permute(0, 3, 4, 1, 2).reshape(batch, -1, values)
