"""Convolutions between lists of rows: the layers of a network whose maps are mostly alike.

A map is kept as the list of its distinct cells, and a table says which row each tap of each output
cell reads. What is written nowhere in the list (holes, padding, cells that a stride skips) costs
nothing; a row that stands for many cells is computed once. CPU and float32 or bfloat16 run
compiled kernels; the rest runs the PyTorch reference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from voxelpool.ops import _check, _native
from voxelpool.ops._library import register
from voxelpool.ops.reference import conv as reference


def conv_table(
    index: Tensor,
    cells: Tensor,
    shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """The table of a 3D convolution of a map whose cells are rows of a list.

    Args:
        index: (B, D, H, W) int32, the row of each cell of the input; -1: none.
        cells: (N,) int64, places in the output (B, D', H', W') in raster order.
        shape: (D', H', W').
        kernel: (z, y, x); the taps are in raster order.
        stride: (z, y, x).
        padding: (z, y, x).

    Returns:
        (N, T) int32 as `gather_conv` reads it, with -1 in the padding.

    Raises:
        TypeError: not a tensor, or another dtype.
        ValueError: shapes or devices that do not fit.
    """
    _check.tensor("index", index)
    _check.tensor("cells", cells)
    _check.same_device("index", index, "cells", cells)
    if index.dtype != torch.int32 or cells.dtype != torch.int64:
        raise TypeError(f"index must be int32 and cells int64, got {index.dtype} and {cells.dtype}")
    if index.dim() != 4 or cells.dim() != 1:
        raise ValueError(
            "index must have shape (B, D, H, W) and cells (N,), got "
            f"{tuple(index.shape)} and {tuple(cells.shape)}"
        )
    return torch.ops.voxelpool.conv_table.default(index, cells, shape, kernel, stride, padding)


def gather_conv(rows: Tensor, table: Tensor, weight: Tensor, *, shared: int = 0) -> Tensor:
    """Convolution of rows: ``out[n] = sum of rows[table[n, t]] @ weight[t] over the taps t``.

    Gradients flow to ``rows`` and ``weight``.

    Args:
        rows: (R, C) float. float16 and bfloat16 are added up in float32.
        table: (N, T) int32: the row that tap t of cell n reads; -1: none. Out of range is an
            error on the CPU; elsewhere it is undefined.
        weight: (T, C, O), of any strides.
        shared: so many of the last rows may be read by several cells with one tap; every other
            row by one cell at most (which the backward pass checks on the CPU).

    Returns:
        (N, O) in the dtype of ``rows``.

    Raises:
        TypeError: not a tensor, or a dtype other than those above.
        ValueError: shapes or devices that do not fit.
    """
    _check_arguments(rows, table, weight)
    if not 0 <= shared <= rows.shape[0]:
        raise ValueError(f"shared must be 0 to {rows.shape[0]}, the number of rows, got {shared}")
    return torch.ops.voxelpool.gather_conv.default(rows, table, weight, shared)


def gather_conv_affine(
    rows: Tensor, table: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, *, relu: bool
) -> Tensor:
    """`gather_conv`, then ``* scale + bias`` and ReLU in one pass, for inference: no gradient.

    Args:
        rows: (R, C); see `gather_conv`.
        table: (N, T) int32.
        weight: (T, C, O).
        scale: (O,).
        bias: (O,).
        relu: whether negative values become 0.

    Returns:
        (N, O) in the dtype of ``rows``.

    Raises:
        TypeError: as `gather_conv`.
        ValueError: as `gather_conv`.
    """
    _check_arguments(rows, table, weight)
    for name, value in (("scale", scale), ("bias", bias)):
        if value.shape != weight.shape[2:]:
            raise ValueError(
                f"{name} must have shape {tuple(weight.shape[2:])}, got {tuple(value.shape)}"
            )
    return torch.ops.voxelpool.gather_conv_affine.default(rows, table, weight, scale, bias, relu)


def _check_arguments(rows: Tensor, table: Tensor, weight: Tensor) -> None:
    for name, value in (("rows", rows), ("table", table), ("weight", weight)):
        _check.tensor(name, value)
        _check.same_device("rows", rows, name, value)
    if not rows.is_floating_point():
        raise TypeError(f"rows must be floating point, got {rows.dtype}")
    if table.dtype != torch.int32:
        raise TypeError(f"table must be int32, got {table.dtype}")
    if rows.dim() != 2 or table.dim() != 2:
        raise ValueError(
            "rows must have shape (R, C) and table (N, T), got "
            f"{tuple(rows.shape)} and {tuple(table.shape)}"
        )
    if weight.dim() != 3 or weight.shape[:2] != (table.shape[1], rows.shape[1]):
        raise ValueError(
            f"weight must have shape ({table.shape[1]}, {rows.shape[1]}, O) for the taps of the "
            f"table and the columns of the rows, got {tuple(weight.shape)}"
        )


# --- native --------------------------------------------------------------------------------------


def _runs_native(rows: Tensor) -> bool:
    if rows.device.type != "cpu":
        return False
    if rows.dtype == torch.bfloat16:
        native = _native.module()
        return native is not None and rows.shape[1] % 2 == 0 and native.gather_conv_bfloat16()
    return rows.dtype == torch.float32


def _convolve(
    rows: Tensor,
    table: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    relu: bool,
) -> Tensor:
    rows, table, weight = rows.contiguous(), table.contiguous(), weight.float()
    out = rows.new_empty((table.shape[0], weight.shape[2]))
    _native.call(
        "gather_conv",
        rows.device,
        _native.DTYPE_CODES[rows.dtype],
        rows,
        table,
        *table.shape,
        rows.shape[0],
        weight,
        *weight.stride(),
        *weight.shape[1:],
        None if scale is None else scale.float().contiguous(),
        None if bias is None else bias.float().contiguous(),
        relu,
        out,
    )
    return out


def _native_table(index: Tensor, cells: Tensor, *geometry: Sequence[int]) -> Tensor:
    if index.device.type != "cpu":
        return reference.conv_table(index, cells, *geometry)
    index, cells = index.contiguous(), cells.contiguous()
    table = _fake_table(index, cells, *geometry)
    _native.call(
        "conv_table",
        index.device,
        index,
        index.shape[0],
        cells,
        len(cells),
        tuple(index.shape[1:]),
        *(tuple(part) for part in geometry),
        table,
    )
    return table


def _native_conv(rows: Tensor, table: Tensor, weight: Tensor, shared: int) -> Tensor:
    if not _runs_native(rows):
        return reference.gather_conv(rows, table, weight, shared)
    return _convolve(rows, table, weight, None, None, False)


def _native_affine(
    rows: Tensor, table: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, relu: bool
) -> Tensor:
    if not _runs_native(rows):
        return reference.gather_conv_affine(rows, table, weight, scale, bias, relu)
    return _convolve(rows, table, weight, scale, bias, relu)


def _native_rows(grad: Tensor, table: Tensor, weight: Tensor, num_rows: int, shared: int) -> Tensor:
    if not _runs_native(grad):
        return reference.gather_conv_rows(grad, table, weight, num_rows, shared)
    table, taps = table.contiguous(), table.shape[1]
    inverse = table.new_empty((num_rows, taps))
    grads = grad.new_empty((len(grad) + shared * taps, grad.shape[1]), dtype=torch.float32)
    grads[: len(grad)] = grad
    sums = grads[len(grad) :]
    _native.call(
        "gather_conv_inverse",
        grad.device,
        table,
        *table.shape,
        num_rows,
        shared,
        grads,
        grads.shape[1],
        inverse,
        sums,
    )
    out = _convolve(grads, inverse, weight.transpose(1, 2), None, None, False)
    return out.to(grad.dtype)


def _native_weight(rows: Tensor, table: Tensor, grad: Tensor) -> Tensor:
    if not _runs_native(rows):
        return reference.gather_conv_weight(rows, table, grad)
    rows, table, grad = rows.float().contiguous(), table.contiguous(), grad.float().contiguous()
    out = rows.new_empty((table.shape[1], rows.shape[1], grad.shape[1]))
    _native.call(
        "gather_conv_weight",
        rows.device,
        rows,
        table,
        *table.shape,
        rows.shape[0],
        grad,
        *out.shape[1:],
        out,
    )
    return out


# --- registration --------------------------------------------------------------------------------


def _fake_table(
    index: Tensor,
    cells: Tensor,
    shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    return index.new_empty((cells.shape[0], math.prod(kernel)))


def _fake_conv(rows: Tensor, table: Tensor, weight: Tensor, shared: int) -> Tensor:
    return rows.new_empty((table.shape[0], weight.shape[2]))


def _fake_affine(
    rows: Tensor, table: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, relu: bool
) -> Tensor:
    return rows.new_empty((table.shape[0], weight.shape[2]))


def _fake_rows(grad: Tensor, table: Tensor, weight: Tensor, num_rows: int, shared: int) -> Tensor:
    return grad.new_empty((num_rows, weight.shape[1]))


def _fake_weight(rows: Tensor, table: Tensor, grad: Tensor) -> Tensor:
    half = rows.dtype in (torch.float16, torch.bfloat16)
    return rows.new_empty(
        (table.shape[1], rows.shape[1], grad.shape[1]),
        dtype=torch.float32 if half else rows.dtype,
    )


def _save_conv(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    rows, table, weight, ctx.shared = inputs
    ctx.save_for_backward(rows, table, weight)


def _conv_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
    rows, table, weight = ctx.saved_tensors
    ops = torch.ops.voxelpool
    to_rows = to_weight = None
    if ctx.needs_input_grad[0]:
        to_rows = ops.gather_conv_rows(grad, table, weight, rows.shape[0], ctx.shared)
    if ctx.needs_input_grad[2]:
        to_weight = ops.gather_conv_weight(rows, table, grad).to(weight.dtype)
    return to_rows, None, to_weight, None


register(
    "conv_table(Tensor index, Tensor cells, SymInt[] shape, SymInt[] kernel, SymInt[] stride,"
    " SymInt[] padding) -> Tensor",
    native=_native_table,
    reference=reference.conv_table,
    fake=_fake_table,
)
register(
    "gather_conv_rows(Tensor grad, Tensor table, Tensor weight, SymInt num_rows, SymInt shared)"
    " -> Tensor",
    native=_native_rows,
    reference=reference.gather_conv_rows,
    fake=_fake_rows,
)
register(
    "gather_conv_weight(Tensor rows, Tensor table, Tensor grad) -> Tensor",
    native=_native_weight,
    reference=reference.gather_conv_weight,
    fake=_fake_weight,
)
register(
    "gather_conv(Tensor rows, Tensor table, Tensor weight, SymInt shared) -> Tensor",
    native=_native_conv,
    reference=reference.gather_conv,
    fake=_fake_conv,
    backward=_conv_backward,
    setup_context=_save_conv,
)
register(
    "gather_conv_affine(Tensor rows, Tensor table, Tensor weight, Tensor scale, Tensor bias,"
    " bool relu) -> Tensor",
    native=_native_affine,
    reference=reference.gather_conv_affine,
    fake=_fake_affine,
)
