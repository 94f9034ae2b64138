"""Convolutions between lists of rows in pure PyTorch, by the rules of ``voxelpool.ops.conv``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_HALF = (torch.float16, torch.bfloat16)


def conv_table(
    index: Tensor,
    cells: Tensor,
    shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """As the op ``voxelpool::conv_table``."""
    index = F.pad(index, [p for p in reversed(padding) for _ in range(2)], value=-1)
    _, depth, height, width = index.shape
    x, rest = cells % shape[2], cells // shape[2]
    y, rest = rest % shape[1], rest // shape[1]
    z, batch = rest % shape[0], rest // shape[0]
    corner = ((batch * depth + z * stride[0]) * height + y * stride[1]) * width + x * stride[2]
    kz, ky, kx = (torch.arange(k, device=cells.device) for k in kernel)
    taps = ((kz[:, None, None] * height + ky[:, None]) * width + kx).flatten()
    return index.flatten()[corner[:, None] + taps]


def gather_conv(rows: Tensor, table: Tensor, weight: Tensor, shared: int) -> Tensor:
    """As the op ``voxelpool::gather_conv``; memory for one tap at a time."""
    wide = torch.float32 if rows.dtype in _HALF else rows.dtype
    padded = torch.cat([rows, rows.new_zeros((1, rows.shape[1]))]).to(wide)
    out = padded.new_zeros((table.shape[0], weight.shape[2]))
    for tap, matrix in zip(table.long().unbind(1), weight.to(wide), strict=True):
        out += padded[tap] @ matrix
    return out.to(rows.dtype)


def gather_conv_affine(
    rows: Tensor, table: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, relu: bool
) -> Tensor:
    """As the op ``voxelpool::gather_conv_affine``."""
    wide = torch.float32 if rows.dtype in _HALF else rows.dtype
    out = gather_conv(rows.to(wide), table, weight.to(wide), 0) * scale + bias
    return (torch.relu(out) if relu else out).to(rows.dtype)


def gather_conv_rows(
    grad: Tensor, table: Tensor, weight: Tensor, num_rows: int, shared: int
) -> Tensor:
    """As the op ``voxelpool::gather_conv_rows``."""
    wide = torch.float32 if grad.dtype in _HALF else grad.dtype
    out = grad.new_zeros((num_rows + 1, weight.shape[1]), dtype=wide)
    for tap, matrix in zip(table.long().unbind(1), weight.to(wide), strict=True):
        out.index_add_(0, tap % (num_rows + 1), grad.to(wide) @ matrix.T)
    return out[:num_rows].to(grad.dtype)


def gather_conv_weight(rows: Tensor, table: Tensor, grad: Tensor) -> Tensor:
    """As the op ``voxelpool::gather_conv_weight``."""
    wide = torch.float32 if rows.dtype in _HALF else rows.dtype
    padded = torch.cat([rows, rows.new_zeros((1, rows.shape[1]))]).to(wide)
    grad = grad.to(wide)
    grads = [padded[tap].T @ grad for tap in table.long().unbind(1)]
    return torch.stack(grads)
