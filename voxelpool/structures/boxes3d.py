"""Upright boxes in the LiDAR frame."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def wrap_angle(angle: Tensor) -> Tensor:
    """Wraps radians to [-pi, pi)."""
    wrapped = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
    return torch.where(wrapped >= math.pi, wrapped - 2 * math.pi, wrapped)


@dataclass(frozen=True)
class Boxes3D:
    """Boxes around objects; metres and radians, LiDAR frame (x forward, y left, z up).

    Args:
        tensor: (N, 7) floating point: x, y, z of the box centre, dx (length along the heading),
            dy (width), dz (height), yaw (0 along +x, counter-clockwise). Yaw is wrapped to
            [-pi, pi).

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: the shape is not (N, 7).
    """

    tensor: Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.tensor, Tensor) or not self.tensor.is_floating_point():
            kind = getattr(self.tensor, "dtype", type(self.tensor).__name__)
            raise TypeError(f"boxes must be a floating-point tensor, got {kind}")
        if self.tensor.dim() != 2 or self.tensor.shape[1] != 7:
            raise ValueError(f"boxes must have shape (N, 7), got {tuple(self.tensor.shape)}")
        wrapped = torch.cat([self.tensor[:, :6], wrap_angle(self.tensor[:, 6:])], dim=1)
        object.__setattr__(self, "tensor", wrapped)

    @classmethod
    def empty(
        cls, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Boxes3D:
        """No boxes."""
        return cls(torch.zeros((0, 7), dtype=dtype, device=device))

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __getitem__(self, index: Tensor | slice) -> Boxes3D:
        """The boxes at ``index``: a slice, a mask (N,) or rows."""
        return Boxes3D(self.tensor[index])

    @property
    def centers(self) -> Tensor:
        """(N, 3) x, y, z."""
        return self.tensor[:, :3]

    @property
    def sizes(self) -> Tensor:
        """(N, 3) dx, dy, dz."""
        return self.tensor[:, 3:6]

    @property
    def yaws(self) -> Tensor:
        """(N,) radians in [-pi, pi)."""
        return self.tensor[:, 6]

    def bev(self) -> Tensor:
        """(N, 5) x, y, dx, dy, yaw."""
        return self.tensor[:, [0, 1, 3, 4, 6]]

    def corners(self) -> Tensor:
        """(N, 8, 3) corners: the bottom face counter-clockwise from front left, then the top."""
        unit = self.tensor.new_tensor(
            [
                [0.5, 0.5, -0.5],
                [-0.5, 0.5, -0.5],
                [-0.5, -0.5, -0.5],
                [0.5, -0.5, -0.5],
                [0.5, 0.5, 0.5],
                [-0.5, 0.5, 0.5],
                [-0.5, -0.5, 0.5],
                [0.5, -0.5, 0.5],
            ]
        )
        local = unit * self.sizes.unsqueeze(1)
        cos, sin = self.yaws.cos().unsqueeze(1), self.yaws.sin().unsqueeze(1)
        x = local[..., 0] * cos - local[..., 1] * sin
        y = local[..., 0] * sin + local[..., 1] * cos
        return torch.stack([x, y, local[..., 2]], dim=-1) + self.centers.unsqueeze(1)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Boxes3D:
        """The same boxes on another device or with another dtype."""
        return Boxes3D(self.tensor.to(device=device, dtype=dtype))
