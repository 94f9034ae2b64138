"""Voxelization in pure PyTorch, to the bit what csrc/voxelize/voxelize.h says."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from voxelpool.ops.reference.cells import coords_of_cells

POINT_SALT = 0x706F696E74
VOXEL_SALT = 0x766F78656C
_MASK = (1 << 64) - 1


def _signed(value: int) -> int:
    """The int64 with the low 64 bits of ``value``."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix64(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift_right(x, 31)


def _mix64_int(x: int) -> int:
    x &= _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def random63(seed: int, salt: int, index: Tensor) -> Tensor:
    """Random numbers in [0, 2^63), one for each of ``index`` (int64), from SplitMix64."""
    stream = _signed(_mix64_int((seed & _MASK) ^ salt))
    return _shift_right(_mix64((index + 1) * _signed(0x9E3779B97F4A7C15) + stream), 1)


def point_keys(
    points: Tensor,
    batch: Tensor | None,
    batch_size: int,
    bounds: Sequence[float],
    voxel_size: Sequence[float],
    grid_shape: Sequence[int],
) -> Tensor:
    """(N,) int64: the number of each point's cell, or of all cells where the point is dropped."""
    depth, height, width = grid_shape
    per_frame = depth * height * width
    low, high = (
        torch.tensor(part, dtype=torch.float32, device=points.device)
        for part in (bounds[:3], bounds[3:])
    )
    size = torch.tensor(voxel_size, dtype=torch.float32, device=points.device)
    xyz = points[:, :3]
    inside = ((xyz >= low) & (xyz < high)).all(dim=1)
    quotient = torch.where(inside.unsqueeze(1), (xyz - low) / size, xyz.new_zeros(()))
    last = torch.tensor([width - 1, height - 1, depth - 1], device=points.device)
    x, y, z = torch.minimum(quotient.long(), last).unbind(1)
    key = (z * height + y) * width + x
    if batch is not None:
        key = key + batch * per_frame
        inside = inside & valid_frames(batch, batch_size)
    return torch.where(inside, key, batch_size * per_frame)


def valid_frames(batch: Tensor, batch_size: int) -> Tensor:
    """(N,) bool: which entries lie in [0, batch_size)."""
    return (batch >= 0) & (batch < batch_size)


def check_batch(batch: Tensor, batch_size: int) -> None:
    """Raises ValueError unless every entry lies in [0, batch_size)."""
    bad = (~valid_frames(batch, batch_size)).nonzero()
    if len(bad):
        raise_bad_batch(batch, batch_size, int(bad[0]))


def raise_bad_batch(batch: Tensor, batch_size: int, row: int) -> None:
    """Raises the ValueError for ``batch[row]``."""
    raise ValueError(
        f"batch[{row}] is {int(batch[row])}, expected 0 to {batch_size - 1} (batch_size - 1)"
    )


def group_points(
    keys: Tensor,
    batch: Tensor | None,
    batch_size: int,
    per_frame: int,
    max_points: int,
    max_voxels: int,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Groups points by key and draws samples.

    Returns:
        cells (K,): the key of each voxel, ascending; offsets (K + 1,); point_index (M,).
    """
    sorted_keys, point_index = torch.sort(keys, stable=True)
    inside = int((keys < batch_size * per_frame).sum())
    point_index = point_index[:inside]
    cells, counts = torch.unique_consecutive(sorted_keys[:inside], return_counts=True)
    if max_voxels >= 0:
        numbers = random63(seed, VOXEL_SALT, cells % per_frame)
        kept = smallest(cells // per_frame, numbers, max_voxels)
        point_index = point_index[torch.repeat_interleave(kept, counts)]
        cells, counts = cells[kept], counts[kept]
    if max_points >= 0:
        place = point_index if batch is None else place_in_frame(batch)[point_index]
        voxel = torch.repeat_interleave(torch.arange(len(cells), device=keys.device), counts)
        kept = smallest(voxel, random63(seed, POINT_SALT, place), max_points)
        point_index = point_index[kept]
        counts = counts.clamp(max=max_points)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return cells, offsets, point_index


def place_in_frame(batch: Tensor) -> Tensor:
    """(N,) int64: how many points of the same frame come before each point."""
    order = torch.sort(batch, stable=True).indices
    return torch.empty_like(order).scatter(0, order, _rank_in_run(batch[order]))


def _rank_in_run(group: Tensor) -> Tensor:
    """(N,): the position of each entry in its run of equal ones; ``group`` ascends."""
    row = torch.arange(group.shape[0], device=group.device)
    return row - torch.searchsorted(group, group)


def smallest(group: Tensor, number: Tensor, most: int) -> Tensor:
    """(N,) bool: entries with the ``most`` smallest numbers of each group; ``group`` ascends."""
    order = torch.sort(number, stable=True).indices
    order = order[torch.sort(group[order], stable=True).indices]
    return torch.empty_like(group, dtype=torch.bool).scatter(0, order, _rank_in_run(group) < most)


def voxelize(
    points: Tensor,
    batch: Tensor | None,
    batch_size: int,
    bounds: Sequence[float],
    voxel_size: Sequence[float],
    grid_shape: Sequence[int],
    max_points: int,
    max_voxels: int,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Coords, offsets and point_index as ``voxelpool.ops.voxelize`` returns them.

    ``max_points`` and ``max_voxels`` set no limit where negative; ``batch`` is int64.
    """
    if batch is not None:
        check_batch(batch, batch_size)
    keys = point_keys(points, batch, batch_size, bounds, voxel_size, grid_shape)
    per_frame = grid_shape[0] * grid_shape[1] * grid_shape[2]
    cells, offsets, point_index = group_points(
        keys, batch, batch_size, per_frame, max_points, max_voxels, seed
    )
    return coords_of_cells(cells, grid_shape), offsets, point_index


def voxelize_static(
    points: Tensor,
    batch: Tensor | None,
    batch_size: int,
    bounds: Sequence[float],
    voxel_size: Sequence[float],
    grid_shape: Sequence[int],
    max_points: int,
    max_voxels: int,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Coords, offsets, point_index and num_voxels as ``voxelpool.ops.voxelize_static`` does.

    Every shape follows from the arguments, and nothing waits for the device. ``max_points`` sets no
    limit where negative; ``batch`` is int64.
    """
    n, capacity = points.shape[0], batch_size * max_voxels
    per_frame = grid_shape[0] * grid_shape[1] * grid_shape[2]
    keys = point_keys(points, batch, batch_size, bounds, voxel_size, grid_shape)
    keys, point = torch.sort(keys, stable=True)
    inside = keys < batch_size * per_frame
    first = torch.ones_like(inside)
    first[1:] = keys[1:] != keys[:-1]
    cell = first.cumsum(0) - 1  # of each point; those outside share the last one

    # Rows of cells: as many as points, those behind the last cell like points outside.
    cells = torch.full_like(keys, batch_size * per_frame).scatter(0, cell, keys)
    counts = torch.zeros_like(keys).scatter_add(0, cell, torch.ones_like(cell))
    numbers = random63(seed, VOXEL_SALT, cells % per_frame)
    kept = smallest(cells // per_frame, numbers, max_voxels) & (cells < batch_size * per_frame)
    if max_points >= 0:
        counts = counts.clamp(max=max_points)
    counts = torch.where(kept, counts, 0)

    stays = inside & kept[cell]
    if max_points >= 0:
        place = point
        if batch is not None:
            frames = torch.where(valid_frames(batch, batch_size), batch, batch_size)
            place = place_in_frame(frames)[point]
        stays = stays & smallest(cell, random63(seed, POINT_SALT, place), max_points)
    point_index = _pack(point, stays, n, 0)
    offsets = torch.cat([counts.new_zeros(1), _pack(counts, kept, capacity, 0).cumsum(0)])
    packed = _pack(cells, kept, capacity, -1).unsqueeze(1)
    coords = torch.where(packed >= 0, coords_of_cells(packed.squeeze(1), grid_shape), -1)
    return coords, offsets, point_index, kept.sum()


def _pack(values: Tensor, kept: Tensor, rows: int, padding: int) -> Tensor:
    """(rows,): the values that are kept, at most as many, in order; then ``padding``."""
    row = torch.where(kept, kept.cumsum(0) - 1, rows)
    return values.new_full((rows + 1,), padding).scatter(0, row, values)[:rows]
