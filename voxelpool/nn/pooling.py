"""Pooling over windows of a map, and over all of it.

Maps are dense, (B, C, H, W) or (B, C, D, H, W); `GlobalPool` reads packed voxels too.

The rules, the same for every layer here:

- max and min: what lies outside the map is -inf and +inf, and never wins. A NaN wins, a tie goes
  to the first cell in raster order (z, y, x), and the gradient goes to that one cell; where windows
  overlap, the gradients of all of them add up.
- median: of the cells inside the map; of an even number the lower one of the middle two, as
  `torch.median`. NaN, ties and the gradient as above.
- average: the gradient is spread evenly over the cells that were counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from voxelpool.ops import scatter_max, scatter_mean

WindowKind: TypeAlias = Literal["max", "average", "min", "median"]
GlobalKind: TypeAlias = Literal["max", "average", "both", "generalised"]

_MAX_POOLS = {2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE_POOLS = {2: F.avg_pool2d, 3: F.avg_pool3d}


class WindowPool(nn.Module):
    """Max, average, min or median of each window of a map.

    Args:
        dim: 2 or 3, the number of the map's dimensions beside batch and channel.
        kind: max, average, min or median. The median copies every window and sorts it: it costs
            kernel**dim times the map's memory.
        kernel: cells of a window along each dimension; one number, or ``dim`` of them.
        stride: cells from window to window; None: the kernel, so that windows do not overlap.
        padding: cells outside the map that windows may reach on each side, at most half a kernel.
        ceil_mode: let a last window reach further out, as long as it starts in the map or in the
            padding before it; otherwise cells that fill no window are left out.
        count_include_pad: average: count the padding as zeros. Cells beyond it, which ceil_mode
            reaches, are never counted.

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(
        self,
        dim: int,
        kind: WindowKind = "max",
        kernel: int | Sequence[int] = 2,
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
        ceil_mode: bool = False,
        *,
        count_include_pad: bool = True,
    ) -> None:
        super().__init__()
        check_dim(dim)
        check_kind(kind, ("max", "average", "min", "median"))
        self.dim = dim
        self.kind = kind
        self.kernel = _per_axis("kernel", kernel, dim, 1)
        self.stride = self.kernel if stride is None else _per_axis("stride", stride, dim, 1)
        self.padding = _per_axis("padding", padding, dim, 0)
        self.ceil_mode = ceil_mode
        self.count_include_pad = count_include_pad
        if any(2 * p > k for p, k in zip(self.padding, self.kernel, strict=True)):
            raise ValueError(
                f"padding must be at most half the kernel, got {self.padding} for {self.kernel}"
            )

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """The output's size along each dimension, for a map of this size."""
        sizes = []
        for n, k, s, p in zip(size, self.kernel, self.stride, self.padding, strict=True):
            room = n + 2 * p - k
            count = (room + s - 1) // s + 1 if self.ceil_mode else room // s + 1
            if self.ceil_mode and (count - 1) * s >= n + p:
                count -= 1
            sizes.append(count)
        return tuple(sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Pool a map.

        Args:
            x: (B, C, ...) floating point, with ``dim`` dimensions after the channels.

        Returns:
            (B, C, ...), of `output_size`.

        Raises:
            ValueError: another number of dimensions, or a map that is smaller than a window.
        """
        check_map(x, self.dim)
        size = self.output_size(x.shape[2:])
        if min(size) < 1:
            raise ValueError(
                f"a map of {tuple(x.shape[2:])} with padding {self.padding} holds no window of "
                f"{self.kernel}"
            )
        shape = (self.kernel, self.stride, self.padding)
        if self.kind == "max":
            return _MAX_POOLS[self.dim](x, *shape, ceil_mode=self.ceil_mode)
        if self.kind == "min":
            return -_MAX_POOLS[self.dim](-x, *shape, ceil_mode=self.ceil_mode)
        if self.kind == "average" and self.dim == 3 and self._exceeds(x):
            return self._average_of_few(x, size)
        if self.kind == "average":
            return _AVERAGE_POOLS[self.dim](x, *shape, self.ceil_mode, self.count_include_pad)
        return self._median(x, size)

    def _exceeds(self, x: Tensor) -> bool:
        return any(k > n for k, n in zip(self.kernel, x.shape[2:], strict=True))

    def _average_of_few(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        """The average, where windows are larger than the map: torch refuses that in 3D alone."""
        pads = [p for p in reversed(self.padding) for _ in range(2)]
        cells = torch.ones_like(x[:1, :1])
        counted = F.pad(cells, pads, value=float(self.count_include_pad))

        def total(values: Tensor) -> Tensor:
            shape = (self.kernel, self.stride, 0, self.ceil_mode)
            sums = F.avg_pool3d(values, *shape, divisor_override=1)
            return sums[:, :, : size[0], : size[1], : size[2]]

        return total(F.pad(x, pads)) / total(counted)

    def _median(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        pads: list[int] = []
        for n, o, k, s, p in zip(
            x.shape[2:], size, self.kernel, self.stride, self.padding, strict=True
        ):
            pads = [p, max((o - 1) * s + k - n - p, 0), *pads]
        windows = self._windows(F.pad(x, pads, value=torch.inf))
        map_cells = torch.ones(x.shape[2:], dtype=torch.bool, device=x.device)
        inside = self._windows(F.pad(map_cells, pads)[None, None])
        values = windows.detach()
        rank = (inside.sum(-1, keepdim=True) - 1) // 2  # padding is sorted to the end
        middle = values.sort(-1).values.gather(-1, rank.expand(*windows.shape[:-1], 1))
        holes = values.isnan()
        chosen = torch.where(holes.any(-1, keepdim=True), holes, (values == middle) & inside)
        first = chosen.to(torch.uint8).argmax(-1, keepdim=True)
        return windows.gather(-1, first).squeeze(-1)

    def _windows(self, x: Tensor) -> Tensor:
        """(B, C, ..., cells of a window) from a padded map."""
        for axis, (k, s) in enumerate(zip(self.kernel, self.stride, strict=True)):
            x = x.unfold(axis + 2, k, s)
        return x.flatten(-self.dim)

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"{self.dim}, {self.kind}, kernel={self.kernel}, stride={self.stride}, "
            f"padding={self.padding}, ceil_mode={self.ceil_mode}"
        )


class GlobalPool(nn.Module):
    """One vector for each element of a batch, from a map of any size or from its voxels.

    An element without a cell (or voxel) to pool gives zeros.

    Args:
        kind: max, average, both (maxima, then averages) or generalised: the mean
            ``mean(x**p)**(1/p)``, of max(x, eps), which goes from the average (p = 1) towards the
            maximum (Radenović et al., arXiv 1711.02512).
        power: generalised: the p to begin with.
        learn_power: generalised: whether p is a parameter.
        eps: generalised: smaller values count as this.

    Raises:
        ValueError: an unknown kind, or a power or eps that is not positive.
    """

    def __init__(
        self,
        kind: GlobalKind = "average",
        *,
        power: float = 3.0,
        learn_power: bool = True,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        check_kind(kind, ("max", "average", "both", "generalised"))
        if not (power > 0 and eps > 0):
            raise ValueError(f"power and eps must be positive, got {power} and {eps}")
        self.kind = kind
        self.eps = eps
        if kind == "generalised":
            start = torch.tensor(float(power))
            if learn_power:
                self.power = nn.Parameter(start)
            else:
                self.register_buffer("power", start)

    def out_channels(self, channels: int) -> int:
        """Columns of the output for a map of ``channels``."""
        return 2 * channels if self.kind == "both" else channels

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool maps.

        Args:
            x: (B, C, ...), any number of dimensions after the channels, at least one.
            mask: (B, ...) bool, the cells to pool; None: all.

        Returns:
            (B, `out_channels`).

        Raises:
            ValueError: shapes that do not fit.
        """
        if x.dim() < 3:
            raise ValueError(f"x must be (B, C, ...) with a cell dimension, got {tuple(x.shape)}")
        if mask is not None and mask.shape != (x.shape[0], *x.shape[2:]):
            raise ValueError(f"mask must be {(x.shape[0], *x.shape[2:])}, got {tuple(mask.shape)}")
        cells = x.flatten(2)
        if mask is None and cells.shape[2] == 0:
            mask = torch.ones_like(cells[:, 0], dtype=torch.bool)
        chosen = None if mask is None else mask.flatten(1)[:, None]
        return self._pool(
            cells,
            lambda values: _cells_max(values, chosen),
            lambda values: _cells_mean(values, chosen),
            None if chosen is None else chosen.any(2),
        )

    def forward_voxels(self, features: Tensor, coords: Tensor, batch_size: int) -> Tensor:
        """Pool occupied voxels; the average is that over them, not over the grid.

        Args:
            features: (K, C), K = 0 is ordinary.
            coords: (K, 4) integer (batch, z, y, x), in any order.
            batch_size: B.

        Returns:
            (B, `out_channels`).

        Raises:
            ValueError: shapes that do not fit, or a batch element outside 0 to B - 1 (on the CPU).
        """
        if features.dim() != 2 or coords.shape != (features.shape[0], 4):
            raise ValueError(
                "features must be (K, C) and coords (K, 4), got "
                f"{tuple(features.shape)} and {tuple(coords.shape)}"
            )
        element = coords[:, 0].long()
        occupied = None
        if self.kind == "generalised":
            ones = torch.ones_like(element)
            occupied = scatter_max(ones, element, 0, dim_size=batch_size)[0][:, None] > 0
        return self._pool(
            features,
            lambda values: scatter_max(values, element, 0, dim_size=batch_size)[0],
            lambda values: scatter_mean(values, element, 0, dim_size=batch_size),
            occupied,
        )

    def _pool(
        self,
        values: Tensor,
        maximum: Callable[[Tensor], Tensor],
        mean: Callable[[Tensor], Tensor],
        occupied: Tensor | None,
    ) -> Tensor:
        if self.kind == "max":
            return maximum(values)
        if self.kind == "average":
            return mean(values)
        if self.kind == "both":
            return torch.cat([maximum(values), mean(values)], dim=1)
        wide = values.to(_wide(values.dtype))
        power = self.power.to(wide.dtype)
        raised = mean(wide.clamp(min=self.eps) ** power)
        if occupied is not None:  # the root has no gradient at 0
            raised = raised.masked_fill(~occupied, 1)
        out = raised ** (1 / power)
        if occupied is not None:
            out = out.masked_fill(~occupied, 0)
        return out.to(values.dtype)

    def extra_repr(self) -> str:
        """The kind."""
        return self.kind


def _cells_max(cells: Tensor, chosen: Tensor | None) -> Tensor:
    """(B, C) from (B, C, cells); the gradient goes to the first of equal ones."""
    if chosen is None:
        return cells.max(dim=2).values
    if cells.shape[2] == 0:
        return cells.sum(dim=2)
    largest = cells.masked_fill(~chosen, -torch.inf).max(dim=2).values
    return largest.masked_fill(~chosen.any(2), 0)


def _cells_mean(cells: Tensor, chosen: Tensor | None) -> Tensor:
    if chosen is None:
        return cells.mean(dim=2)
    # In the sum of few cells, not in the mean of all: half types would lose it.
    total = cells.masked_fill(~chosen, 0).sum(dim=2, dtype=_wide(cells.dtype))
    return (total / chosen.sum(dim=2).clamp(min=1)).to(cells.dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def check_dim(dim: int) -> None:
    """Raise ValueError unless ``dim`` is 2 or 3."""
    if dim not in (2, 3):
        raise ValueError(f"dim must be 2 or 3, got {dim}")


def check_kind(kind: str, known: Sequence[str]) -> None:
    """Raise ValueError unless ``kind`` is one of ``known``."""
    if kind not in known:
        raise ValueError(f"kind must be {', '.join(known[:-1])} or {known[-1]}, got {kind!r}")


def check_map(x: Tensor, dim: int) -> None:
    """Raise ValueError unless ``x`` is (B, C, ...) with ``dim`` more dimensions."""
    if x.dim() != dim + 2:
        sizes = "H, W" if dim == 2 else "D, H, W"
        raise ValueError(f"x must have shape (B, C, {sizes}), got {tuple(x.shape)}")


def _per_axis(name: str, value: int | Sequence[int], dim: int, least: int) -> tuple[int, ...]:
    values = (value,) * dim if isinstance(value, int) else tuple(int(v) for v in value)
    if len(values) != dim or min(values) < least:
        raise ValueError(f"{name} must be one or {dim} numbers from {least} up, got {value}")
    return values
