"""Convolutions between lists of rows in pure PyTorch, by the rules of ``voxelpool.ops.conv``."""

from __future__ import annotations

import torch
from torch import Tensor

_HALF = (torch.float16, torch.bfloat16)


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
