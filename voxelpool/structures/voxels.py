"""The occupied voxels of a batch of sweeps, packed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from voxelpool.structures.voxel_grid import VoxelGrid


@dataclass(frozen=True)
class Voxels:
    """Occupied voxels and the points in each, addressed by CSR offsets instead of padding.

    Attributes:
        coords: (K, 4) int32, (batch, z, y, x) of each voxel, sorted lexicographically.
        offsets: (K + 1,) int64; voxel k holds packed points offsets[k] to offsets[k + 1].
        point_index: (M,) int64, the input row of each packed point: grouped by voxel, input
            order kept inside one.
        grid: the grid that coords refer to.
        batch_size: number of sweeps, occupied or not.
    """

    coords: Tensor
    offsets: Tensor
    point_index: Tensor
    grid: VoxelGrid
    batch_size: int = 1

    @property
    def num_voxels(self) -> int:
        """K."""
        return self.coords.shape[0]

    @property
    def num_points(self) -> int:
        """M, the points kept."""
        return self.point_index.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.coords.device

    def counts(self) -> Tensor:
        """Points kept in each voxel, (K,) int64."""
        return self.offsets.diff()

    def voxel_of_point(self) -> Tensor:
        """The voxel (row of ``coords``) of each packed point, (M,) int64."""
        rows = torch.arange(self.num_voxels, device=self.device)
        return torch.repeat_interleave(rows, self.counts(), output_size=self.num_points)

    def pad(self, features: Tensor, max_points: int) -> tuple[Tensor, Tensor]:
        """The paper's padded buffer.

        Args:
            features: (N, C) of the input points, or anything indexed by ``point_index``.
            max_points: T, slots per voxel; a voxel that holds more keeps its first T.

        Returns:
            padded: (K, T, C), zero where there is no point.
            mask: (K, T) bool, true where there is one.

        Raises:
            ValueError: ``max_points`` is below 1.
        """
        if max_points < 1:
            raise ValueError(f"max_points must be at least 1, got {max_points}")
        slot = torch.arange(max_points, device=self.device)
        mask = slot < self.counts().unsqueeze(1)
        packed_row = (self.offsets[:-1].unsqueeze(1) + slot)[mask]
        padded = features.new_zeros((self.num_voxels, max_points, *features.shape[1:]))
        padded[mask] = features[self.point_index[packed_row]]
        return padded, mask

    def first(self, max_points: int) -> Voxels:
        """The same voxels with at most their first ``max_points`` points, in input order.

        Raises:
            ValueError: ``max_points`` is below 1.
        """
        if max_points < 1:
            raise ValueError(f"max_points must be at least 1, got {max_points}")
        rows = torch.arange(self.num_points, device=self.device)
        kept = rows - self.offsets[self.voxel_of_point()] < max_points
        ends = self.counts().clamp_max(max_points).cumsum(0)
        offsets = torch.cat([self.offsets[:1], ends])
        return replace(self, offsets=offsets, point_index=self.point_index[kept])

    def to(self, device: torch.device | str) -> Voxels:
        """The same voxels on ``device``."""
        return replace(
            self,
            coords=self.coords.to(device),
            offsets=self.offsets.to(device),
            point_index=self.point_index.to(device),
        )


@dataclass(frozen=True)
class StaticVoxels:
    """Voxels in tensors whose sizes do not depend on the points, for CUDA graphs and static shapes.

    The voxels come first, as in :class:`Voxels`; what is left of each tensor is padding: voxels
    without points, and points in no voxel. To pool features of all rows of ``point_index``, pass
    :meth:`closed_offsets` and drop the last row of the result.

    Attributes:
        coords: (capacity, 4) int32, (batch, z, y, x) of each voxel, then -1.
        offsets: (capacity + 1,) int64, then the number of points kept.
        point_index: (N,) int64 for N input points, then 0.
        num_voxels: () int64, on the device.
        grid: the grid that coords refer to.
        batch_size: number of sweeps, occupied or not.
    """

    coords: Tensor
    offsets: Tensor
    point_index: Tensor
    num_voxels: Tensor
    grid: VoxelGrid
    batch_size: int = 1

    @property
    def capacity(self) -> int:
        """Rows for voxels."""
        return self.coords.shape[0]

    def voxel_of_point(self) -> Tensor:
        """The voxel of each packed point, (N,) int64; ``capacity`` for padding."""
        rows = torch.arange(self.point_index.shape[0], device=self.coords.device)
        return torch.searchsorted(self.offsets[1:], rows, right=True)

    def closed_offsets(self) -> Tensor:
        """(capacity + 2,) int64: ``offsets`` and a last group that takes the padding points."""
        end = self.offsets.new_full((1,), self.point_index.shape[0])
        return torch.cat([self.offsets, end])

    def trim(self) -> Voxels:
        """The voxels without padding; waits for a CUDA device."""
        voxels = int(self.num_voxels)
        return Voxels(
            self.coords[:voxels],
            self.offsets[: voxels + 1],
            self.point_index[: int(self.offsets[-1])],
            self.grid,
            self.batch_size,
        )
