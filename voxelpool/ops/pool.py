"""Pooling over sorted groups of rows: the max, min, sum or mean of each voxel's points.

The rules, the same on every device and for any number of threads:

- NaN propagates; a tie goes to the lowest row (0.0 and -0.0 are equal).
- An empty group gives 0, and ``arg`` = the number of rows.
- Sums are taken in the order of the rows; float16 and bfloat16 accumulate in float32, integers in
  int64 (the result wraps to the dtype of ``src``). The mean of integers is rounded down.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from voxelpool.ops import _check, _native
from voxelpool.ops._library import register
from voxelpool.ops.reference import pool as reference


def segment_max(src: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Largest value of each group.

    Args:
        src: (M, C) rows sorted by group: float16, bfloat16, float32, float64, int8, uint8, int16,
            int32 or int64.
        offsets: (K + 1,) integers from 0 up to M: group k is rows ``offsets[k]`` to
            ``offsets[k + 1]``. On CUDA their values are not checked (it would stall the device);
            rows out of range are then ignored.

    Returns:
        ``out`` (K, C) in the dtype of ``src``, and ``arg`` (K, C) int64, the row in ``src`` that
        each value came from. The gradient goes to that row alone.

    Raises:
        TypeError: not a tensor, or a dtype other than those above.
        ValueError: shapes, devices or offsets that do not fit.
    """
    return torch.ops.voxelpool.segment_max.default(*checked(src, offsets))


def segment_min(src: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest value of each group; otherwise as :func:`segment_max`."""
    return torch.ops.voxelpool.segment_min.default(*checked(src, offsets))


def segment_sum(src: Tensor, offsets: Tensor) -> Tensor:
    """Sum of each group, (K, C); arguments as of :func:`segment_max`."""
    return torch.ops.voxelpool.segment_sum.default(*checked(src, offsets))


def segment_mean(src: Tensor, offsets: Tensor) -> Tensor:
    """Mean of each group, (K, C); arguments as of :func:`segment_max`."""
    return torch.ops.voxelpool.segment_mean.default(*checked(src, offsets))


def checked(src: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Both, checked; ``offsets`` as int64."""
    _check.poolable(src, "offsets", offsets)
    if src.dim() != 2:
        raise ValueError(f"src must have shape (M, C), got {tuple(src.shape)}")
    _check.integer_vector("offsets", offsets)
    if offsets.shape[0] < 1:
        raise ValueError("offsets must have shape (K + 1,), got (0,): no groups are offsets [0]")
    return src, offsets.long()


# --- native --------------------------------------------------------------------------------------


FOLDS = {"sum": 0, "mean": 1, "mul": 2}


def reduce_extreme(
    largest: bool,
    src: Tensor,
    offsets: Tensor,
    order: Tensor | None = None,
    partial: bool = False,
) -> tuple[Tensor, Tensor]:
    """Runs the kernel of max and min: rows in place, or in ``order`` (R,) int32."""
    src, offsets = src.contiguous(), offsets.contiguous()
    groups, channels = offsets.shape[0] - 1, src.shape[1]
    out = src.new_empty((groups, channels))
    arg = offsets.new_empty((groups, channels))
    code = _native.DTYPE_CODES[src.dtype]
    shape = (groups, src.shape[0], channels, partial)
    _native.call("segment_extreme", src.device, largest, code, src, offsets, order, shape, out, arg)
    return out, arg


def reduce_fold(
    how: str,
    src: Tensor,
    offsets: Tensor,
    order: Tensor | None = None,
    partial: bool = False,
) -> Tensor:
    """Runs the kernel of sum, mean and mul; arguments as of :func:`reduce_extreme`."""
    src, offsets = src.contiguous(), offsets.contiguous()
    groups, channels = offsets.shape[0] - 1, src.shape[1]
    out = src.new_empty((groups, channels))
    code = _native.DTYPE_CODES[src.dtype]
    shape = (groups, src.shape[0], channels, partial)
    _native.call("segment_fold", src.device, FOLDS[how], code, src, offsets, order, shape, out)
    return out


def _native_spread(src: Tensor, offsets: Tensor, rows: int, mean: bool) -> Tensor:
    src, offsets = src.contiguous(), offsets.contiguous()
    out = src.new_empty((rows, src.shape[1]))
    code = _native.DTYPE_CODES[src.dtype]
    shape = (offsets.shape[0] - 1, *out.shape, True)
    _native.call("segment_spread", src.device, mean, code, src, offsets, shape, out)
    return out


def _native_place(src: Tensor, arg: Tensor, offsets: Tensor, rows: int) -> Tensor:
    src, arg, offsets = src.contiguous(), arg.contiguous(), offsets.contiguous()
    out = src.new_empty((rows, src.shape[1]))
    code = _native.DTYPE_CODES[src.dtype]
    shape = (offsets.shape[0] - 1, *out.shape, True)
    _native.call("segment_place", src.device, code, src, arg, offsets, shape, out)
    return out


# --- registration --------------------------------------------------------------------------------


def _fake_reduce(src: Tensor, offsets: Tensor, partial: bool = False) -> Tensor:
    return src.new_empty((offsets.shape[0] - 1, src.shape[1]))


def _fake_extreme(src: Tensor, offsets: Tensor, partial: bool = False) -> tuple[Tensor, Tensor]:
    out = _fake_reduce(src, offsets)
    return out, offsets.new_empty(out.shape)


def _fake_spread(src: Tensor, offsets: Tensor, rows: int, mean: bool) -> Tensor:
    return src.new_empty((rows, src.shape[1]))


def _fake_place(src: Tensor, arg: Tensor, offsets: Tensor, rows: int) -> Tensor:
    return src.new_empty((rows, src.shape[1]))


def _save_extreme(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    src, offsets, _ = inputs
    ctx.rows = src.shape[0]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # no zeros for the second output
    ctx.save_for_backward(output[1], offsets)


def _extreme_backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, None, None]:
    if grad is None:
        return None, None, None
    arg, offsets = ctx.saved_tensors
    return torch.ops.voxelpool.segment_place.default(grad, arg, offsets, ctx.rows), None, None


def save_second(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keeps the second input."""
    ctx.save_for_backward(inputs[1])


def gather_arg(grad: Tensor, arg: Tensor) -> Tensor:
    """(K, C): the entry of ``grad`` (R, C) at row ``arg`` of each channel, 0 for row R."""
    return torch.cat([grad, grad.new_zeros((1, grad.shape[1]))]).gather(0, arg)


def _place_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    return gather_arg(grad, *ctx.saved_tensors), None, None, None


def _save_sum(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    src, offsets, _ = inputs
    ctx.rows = src.shape[0]
    ctx.save_for_backward(offsets)


def _sum_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (offsets,) = ctx.saved_tensors
    return torch.ops.voxelpool.segment_spread.default(grad, offsets, ctx.rows, False), None, None


def _mean_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (offsets,) = ctx.saved_tensors
    return torch.ops.voxelpool.segment_spread.default(grad, offsets, ctx.rows, True), None, None


def _save_spread(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.mean = inputs[3]
    ctx.save_for_backward(inputs[1])


def _spread_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    reduce = (
        torch.ops.voxelpool.segment_mean if ctx.mean else torch.ops.voxelpool.segment_sum.default
    )
    return reduce(grad, ctx.saved_tensors[0], True), None, None, None


register(
    "segment_place(Tensor src, Tensor arg, Tensor offsets, SymInt rows) -> Tensor",
    native=_native_place,
    reference=reference.segment_place,
    fake=_fake_place,
    backward=_place_backward,
    setup_context=save_second,
)
register(
    "segment_spread(Tensor src, Tensor offsets, SymInt rows, bool mean) -> Tensor",
    native=_native_spread,
    reference=reference.segment_spread,
    fake=_fake_spread,
    backward=_spread_backward,
    setup_context=_save_spread,
)
register(
    "segment_max(Tensor src, Tensor offsets, bool partial=False) -> (Tensor, Tensor)",
    native=lambda src, offsets, partial=False: reduce_extreme(True, src, offsets, partial=partial),
    reference=reference.segment_max,
    fake=_fake_extreme,
    backward=_extreme_backward,
    setup_context=_save_extreme,
)
register(
    "segment_min(Tensor src, Tensor offsets, bool partial=False) -> (Tensor, Tensor)",
    native=lambda src, offsets, partial=False: reduce_extreme(False, src, offsets, partial=partial),
    reference=reference.segment_min,
    fake=_fake_extreme,
    backward=_extreme_backward,
    setup_context=_save_extreme,
)
register(
    "segment_sum(Tensor src, Tensor offsets, bool partial=False) -> Tensor",
    native=lambda src, offsets, partial=False: reduce_fold("sum", src, offsets, partial=partial),
    reference=reference.segment_sum,
    fake=_fake_reduce,
    backward=_sum_backward,
    setup_context=_save_sum,
)
register(
    "segment_mean(Tensor src, Tensor offsets, bool partial=False) -> Tensor",
    native=lambda src, offsets, partial=False: reduce_fold("mean", src, offsets, partial=partial),
    reference=reference.segment_mean,
    fake=_fake_reduce,
    backward=_mean_backward,
    setup_context=_save_sum,
)
