"""The regular grid that space is cut into."""

from __future__ import annotations

import math
from dataclasses import dataclass

_WHOLE_CELLS_TOLERANCE = 1e-3


@dataclass(frozen=True)
class VoxelGrid:
    """An axis-aligned box of space and the size of its cells, in metres.

    Args:
        range: (x0, y0, z0, x1, y1, z1); the upper bounds are exclusive.
        voxel_size: (dx, dy, dz).

    Raises:
        ValueError: a value is not finite, a size or extent is not positive, or the range is no
            whole number of cells (tolerance: a thousandth of a cell).
    """

    range: tuple[float, float, float, float, float, float]
    voxel_size: tuple[float, float, float]

    def __post_init__(self) -> None:
        bounds = tuple(float(value) for value in self.range)
        size = tuple(float(value) for value in self.voxel_size)
        if len(bounds) != 6:
            raise ValueError(f"range must be (x0, y0, z0, x1, y1, z1), got {len(bounds)} values")
        if len(size) != 3:
            raise ValueError(f"voxel_size must be (dx, dy, dz), got {len(size)} values")
        if not all(map(math.isfinite, bounds + size)):
            raise ValueError(f"range and voxel_size must be finite, got {bounds} and {size}")
        for axis, low, high, step in zip("xyz", bounds[:3], bounds[3:], size, strict=True):
            if step <= 0:
                raise ValueError(f"voxel_size along {axis} must be positive, got {step}")
            if high <= low:
                raise ValueError(f"range along {axis} is empty: {low} to {high}")
            cells = (high - low) / step
            if abs(cells - round(cells)) > _WHOLE_CELLS_TOLERANCE or round(cells) < 1:
                raise ValueError(
                    f"range along {axis}, {low} to {high}, is {cells:g} cells of {step}: "
                    "it must be a whole number of cells"
                )
        object.__setattr__(self, "range", bounds)
        object.__setattr__(self, "voxel_size", size)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Cells along (z, y, x): (D, H, W)."""
        x, y, z = (
            round((high - low) / step)
            for low, high, step in zip(self.range[:3], self.range[3:], self.voxel_size, strict=True)
        )
        return z, y, x

    @property
    def num_cells(self) -> int:
        """D * H * W."""
        return math.prod(self.shape)
