"""Pooling of rows in any order: torch-scatter's ``scatter`` family, and its rules made exact.

Names, arguments, results and gradients are those of torch-scatter 2.1. What differs, everywhere:

- The result is the same, to the bit, in every run; that of max, min and integers on every device.
  Rows of a group are taken in their order: half types accumulate in float32, integers in int64.
- A tie goes to the lowest row, and NaN propagates (torch-scatter: any row on CUDA; NaN is lost).
- Counts and sizes are 64-bit.
- An index out of range is an error on the CPU. On CUDA such rows are left out and their gradient is
  0, as looking would stall the device; the environment variable ``VOXELPOOL_DEBUG=1`` looks.
- Without ``dim_size`` and ``out``, the size is ``index.max() + 1``, which waits for the device and
  cannot be compiled or captured in a CUDA graph: give ``dim_size`` there.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from voxelpool.ops import _check, _native
from voxelpool.ops._library import register
from voxelpool.ops.pool import gather_arg, reduce_extreme, reduce_fold, save_second
from voxelpool.ops.reference import pool as segment_reference
from voxelpool.ops.reference import scatter as reference

_MOVED_CHANNELS = 16  # with fewer channels a copy that puts `dim` first is cheaper than many groups


# --- public --------------------------------------------------------------------------------------


def scatter(
    src: Tensor,
    index: Tensor,
    dim: int = -1,
    out: Tensor | None = None,
    dim_size: int | None = None,
    reduce: str = "sum",
) -> Tensor:
    """Reduces the entries of ``src`` along ``dim`` that share an index.

    Args:
        src: any shape; float16, bfloat16, float32, float64, int8, uint8, int16, int32 or int64.
        index: integers from 0, of a shape that broadcasts to that of ``src``: 1-D, it lies along
            ``dim``; else its dimensions are the first of ``src``, and each is equal or 1.
        dim: the dimension to reduce; negative counts from the last.
        out: shape of ``src`` but for ``dim``, and its dtype. It takes part in the reduction (in
            ``mean``: its values are added to the sum before the division), is filled with the
            result and returned.
        dim_size: size of the result along ``dim``; by default that of ``out``, else
            ``index.max() + 1``.
        reduce: ``sum``, ``add``, ``mul``, ``mean``, ``min`` or ``max``.

    Returns:
        The shape of ``src`` with ``dim_size`` in the place of ``dim``. Without ``out``, a group of
        no entries gives 0, and its product 1. The mean of integers is rounded down.

    Raises:
        TypeError: not a tensor, or a dtype other than those above.
        ValueError: shapes, devices, ``dim``, ``reduce`` or an index that do not fit.
    """
    if reduce in ("sum", "add"):
        return scatter_sum(src, index, dim, out, dim_size)
    if reduce == "mul":
        return scatter_mul(src, index, dim, out, dim_size)
    if reduce == "mean":
        return scatter_mean(src, index, dim, out, dim_size)
    if reduce == "min":
        return scatter_min(src, index, dim, out, dim_size)[0]
    if reduce == "max":
        return scatter_max(src, index, dim, out, dim_size)[0]
    raise ValueError(f"reduce must be sum, add, mul, mean, min or max, got {reduce!r}")


def scatter_sum(
    src: Tensor,
    index: Tensor,
    dim: int = -1,
    out: Tensor | None = None,
    dim_size: int | None = None,
) -> Tensor:
    """Sum of the entries of each index; arguments as of :func:`scatter`."""
    layout = make_layout(src, index, dim, out, dim_size)
    total = layout.sum(src)
    return total if out is None else out.add_(total)


def scatter_add(
    src: Tensor,
    index: Tensor,
    dim: int = -1,
    out: Tensor | None = None,
    dim_size: int | None = None,
) -> Tensor:
    """Another name of :func:`scatter_sum`."""
    return scatter_sum(src, index, dim, out, dim_size)


def scatter_mul(
    src: Tensor,
    index: Tensor,
    dim: int = -1,
    out: Tensor | None = None,
    dim_size: int | None = None,
) -> Tensor:
    """Product of the entries of each index, 1 where there are none; arguments as of `scatter`.

    The gradient is right where factors are 0, too.
    """
    layout = make_layout(src, index, dim, out, dim_size)
    flat = torch.ops.voxelpool.scatter_mul.default(layout.rows(src), layout.keys, layout.total)
    product = layout.grouped(flat)
    return product if out is None else out.mul_(product)


def scatter_mean(
    src: Tensor,
    index: Tensor,
    dim: int = -1,
    out: Tensor | None = None,
    dim_size: int | None = None,
) -> Tensor:
    """Mean of the entries of each index; arguments as of :func:`scatter`."""
    layout = make_layout(src, index, dim, out, dim_size)
    if out is None:
        return layout.mean(src)[0]
    counts = layout.counts(out.dtype).clamp(min=1)
    total = out.add_(layout.sum(src))
    return total.div_(counts, rounding_mode=None if out.is_floating_point() else "floor")


def scatter_min(
    src: Tensor,
    index: Tensor,
    dim: int = -1,
    out: Tensor | None = None,
    dim_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Smallest entry of each index, and where it is; otherwise as :func:`scatter_max`."""
    layout = make_layout(src, index, dim, out, dim_size)
    value, arg = layout.extreme(src, largest=False)
    return combine_extreme(out, value, arg, src.shape[layout.dim], largest=False)


def scatter_max(
    src: Tensor,
    index: Tensor,
    dim: int = -1,
    out: Tensor | None = None,
    dim_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Largest entry of each index, and where it is; arguments as of :func:`scatter`.

    Returns:
        The values, and ``arg``, int64 of the same shape: the position along ``dim`` that each came
        from, or ``src.shape[dim]`` where it came from none (no entries, or ``out`` was not less).
        The gradient goes to that position alone.
    """
    layout = make_layout(src, index, dim, out, dim_size)
    value, arg = layout.extreme(src, largest=True)
    return combine_extreme(out, value, arg, src.shape[layout.dim], largest=True)


def combine_extreme(
    out: Tensor | None, value: Tensor, arg: Tensor, nowhere: int, *, largest: bool
) -> tuple[Tensor, Tensor]:
    """Lets ``out`` compete with the values found, which win where they are beyond it."""
    if out is None:
        return value, arg
    further = (value > out) if largest else (value < out)
    if out.is_floating_point():
        further = (further | value.isnan()) & ~out.isnan()
    further = further & (arg < nowhere)
    out.copy_(torch.where(further, value, out))
    return out, arg.masked_fill(~further, nowhere)


# --- from tensors to rows of groups --------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """How ``src`` and its index turn into rows (R, C) and their groups (R,), and back.

    Three forms. The index varies along ``dim`` alone: rows are ``src`` with ``dim`` put first
    (``moved``). It varies over the dimensions before, too: each has groups of its own. It varies
    over all: each entry is a row of one channel.
    """

    keys: Tensor  # (R,) int64 group of each row
    total: int  # groups of all rows
    groups: int  # size of the result along dim
    dim: int
    shape: tuple[int, ...]  # of src
    moved: bool
    inner: int  # columns that have groups of their own: 1, or the entries after dim

    @property
    def _rest(self) -> tuple[int, ...]:
        return self.shape[: self.dim] + self.shape[self.dim + 1 :]

    def _flatten(self, values: Tensor) -> Tensor:
        if self.moved:
            return values.movedim(self.dim, 0).reshape(
                values.shape[self.dim], math.prod(self._rest)
            )
        rows = math.prod(values.shape[: self.dim + 1]) * self.inner
        channels = math.prod(self.shape[self.dim + 1 :]) if self.inner == 1 else 1
        return values.reshape(rows, channels)

    def _unflatten(self, flat: Tensor, size: int) -> Tensor:
        if self.moved:
            moved = flat.reshape((size, *self._rest)).movedim(0, self.dim)
            return moved.contiguous()
        return flat.reshape((*self.shape[: self.dim], size, *self.shape[self.dim + 1 :]))

    def rows(self, src: Tensor) -> Tensor:
        """``src`` as rows (R, C)."""
        return self._flatten(src)

    def grouped(self, flat: Tensor) -> Tensor:
        """The results of all groups (total, C) in the shape of the result."""
        return self._unflatten(flat, self.groups)

    def sum(self, src: Tensor) -> Tensor:
        """Sum of each group."""
        flat = torch.ops.voxelpool.scatter_sum.default(self.rows(src), self.keys, self.total)
        return self.grouped(flat)

    def mean(self, src: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of each group, and the sizes (total,)."""
        flat, counts = torch.ops.voxelpool.scatter_mean.default(
            self.rows(src), self.keys, self.total
        )
        return self.grouped(flat), counts

    def counts(self, dtype: torch.dtype) -> Tensor:
        """Size of each group, of a shape that broadcasts to the result."""
        ones = self.keys.new_ones((self.keys.shape[0], 1))
        counts = torch.ops.voxelpool.scatter_sum.default(ones, self.keys, self.total).to(dtype)
        if self.moved:
            return counts.reshape((self.groups,) + (1,) * (len(self.shape) - self.dim - 1))
        after = self.shape[self.dim + 1 :]
        after = (1,) * len(after) if self.inner == 1 else after
        return counts.reshape((*self.shape[: self.dim], self.groups, *after))

    def extreme(self, src: Tensor, *, largest: bool) -> tuple[Tensor, Tensor]:
        """Extreme of each group, and its position along ``dim``."""
        op = (
            torch.ops.voxelpool.scatter_max.default
            if largest
            else torch.ops.voxelpool.scatter_min.default
        )
        flat, row = op(self.rows(src), self.keys, self.total)
        if not self.moved:
            size = self.shape[self.dim]
            position = row // self.inner % max(size, 1)
            row = position.masked_fill(row == self.keys.shape[0], size)
        return self.grouped(flat), self.grouped(row)

    def spread(self, values: Tensor) -> Tensor:
        """The opposite of a reduction: each entry of ``src`` gets the value of its group."""
        flat = torch.ops.voxelpool.scatter_spread.default(self._flatten(values), self.keys)
        return self._unflatten(flat, self.shape[self.dim])


def make_layout(
    src: Tensor, index: Tensor, dim: int, out: Tensor | None = None, dim_size: int | None = None
) -> Layout:
    """The layout of arguments as :func:`scatter` takes them, which are checked."""
    _check.poolable(src, "index", index)
    dim = _dimension(src, dim)
    aligned = _align(index, src, dim).long()
    groups = _group_count(aligned, dim, out, dim_size)
    shape = tuple(src.shape)
    check_out(out, src, dim, groups)
    debug_index(index, groups)
    outer, rows, inner = math.prod(shape[:dim]), shape[dim], math.prod(shape[dim + 1 :])
    sizes = aligned.shape
    same_before = all(size == 1 for size in sizes[:dim])
    same_after = all(size == 1 for size in sizes[dim + 1 :])
    if same_before and same_after and (outer == 1 or inner < _MOVED_CHANNELS):
        keys = aligned.expand(*sizes[:dim], rows, *sizes[dim + 1 :]).reshape(rows)
        return Layout(keys, groups, groups, dim, shape, True, 1)
    columns = 1 if same_after else inner
    target = (*shape[: dim + 1], *(sizes[dim + 1 :] if same_after else shape[dim + 1 :]))
    entries = aligned.expand(target).reshape(outer, rows, columns)
    keys = torch.ops.voxelpool.scatter_keys.default(entries, groups)
    return Layout(keys, outer * groups * columns, groups, dim, shape, False, columns)


def _dimension(src: Tensor, dim: int) -> int:
    if not -src.dim() <= dim < src.dim():
        raise ValueError(f"dim must be one of the {src.dim()} dimensions of src, got {dim}")
    return dim % src.dim()


def _align(index: Tensor, src: Tensor, dim: int) -> Tensor:
    """``index`` with the dimensions of ``src``, each of size 1 where it does not vary."""
    aligned = index
    if index.dim() == 1:
        aligned = (
            aligned.reshape((1,) * dim + (-1,))
            if index.numel()
            else aligned.reshape((1,) * dim + (0,))
        )
    if index.dim() <= src.dim():
        aligned = aligned.reshape(aligned.shape + (1,) * (src.dim() - aligned.dim()))
    if (
        index.dim() == 0
        or aligned.dim() != src.dim()
        or any(size not in (1, whole) for size, whole in zip(aligned.shape, src.shape, strict=True))
    ):
        raise ValueError(
            f"index of shape {tuple(index.shape)} does not broadcast along dim {dim} to src of "
            f"shape {tuple(src.shape)}"
        )
    for d in range(src.dim()):
        if d != dim and aligned.shape[d] > 1 and aligned.stride(d) == 0:
            aligned = aligned.narrow(d, 0, 1)
    return aligned


def _group_count(index: Tensor, dim: int, out: Tensor | None, dim_size: int | None) -> int:
    if out is not None:
        return _check.tensor("out", out).shape[dim] if dim < out.dim() else 0
    if dim_size is not None:
        if dim_size < 0:
            raise ValueError(f"dim_size must be at least 0, got {dim_size}")
        return dim_size
    if index.numel() == 0:
        return 0
    return max(int(index.max()) + 1, 0)


def check_out(out: Tensor | None, src: Tensor, dim: int, size: int) -> None:
    """Raises unless ``out`` fits a result of ``size`` entries along ``dim``."""
    if out is None:
        return
    _check.same_device("out", out, "src", src)
    if out.dtype != src.dtype:
        raise TypeError(f"out must be of the dtype of src, {src.dtype}, got {out.dtype}")
    expected = (*src.shape[:dim], size, *src.shape[dim + 1 :])
    if tuple(out.shape) != expected:
        raise ValueError(f"out must have shape {expected}, got {tuple(out.shape)}")


def debug_index(index: Tensor, groups: int) -> None:
    """Looks for an index out of range on other devices than the CPU if ``VOXELPOOL_DEBUG`` is set.

    Raises:
        ValueError: there is one.
    """
    if index.device.type == "cpu" or torch.compiler.is_compiling():
        return
    if os.environ.get("VOXELPOOL_DEBUG", "0") not in ("", "0"):
        reference.raise_outside(index, (index < 0) | (index >= groups), groups)


# --- native --------------------------------------------------------------------------------------


def _fits(rows: int, groups: int) -> bool:
    """Whether rows and groups can be numbered in 32 bits, as the compiled sort does."""
    return rows < 2**31 and groups < 2**31 - 1


def _group_rows(index: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """The rows sorted by group, stably, as (R,) int32, and the offsets of the groups."""
    index, rows = index.contiguous(), index.shape[0]
    order = index.new_empty((rows,), dtype=torch.int32)
    offsets = index.new_empty((groups + 1,))
    scratch: tuple[Any, ...] = ()
    if index.is_cuda:
        native = _native.module()
        assert native is not None
        size = native.group_rows_scratch(rows, groups, index.get_device())
        scratch = (index.new_empty((size,), dtype=torch.uint8), size)
    _native.call("group_rows", index.device, index, rows, groups, order, offsets, *scratch)
    return order, offsets


def _native_extreme(
    largest: bool, src: Tensor, index: Tensor, groups: int
) -> tuple[Tensor, Tensor]:
    if not _fits(src.shape[0], groups):
        run = reference.scatter_max if largest else reference.scatter_min
        return run(src, index, groups)
    order, offsets = _group_rows(index, groups)
    return reduce_extreme(largest, src, offsets, order)


def _native_sum(src: Tensor, index: Tensor, groups: int) -> Tensor:
    if not _fits(src.shape[0], groups):
        return reference.scatter_sum(src, index, groups)
    order, offsets = _group_rows(index, groups)
    return reduce_fold("sum", src, offsets, order)


def _native_mean(src: Tensor, index: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    if not _fits(src.shape[0], groups):
        return reference.scatter_mean(src, index, groups)
    order, offsets = _group_rows(index, groups)
    return reduce_fold("mean", src, offsets, order), offsets.diff()


def _native_mul(src: Tensor, index: Tensor, groups: int) -> Tensor:
    if not _fits(src.shape[0], groups):
        return reference.scatter_mul(src, index, groups)
    order, offsets = _group_rows(index, groups)
    return reduce_fold("mul", src, offsets, order)


def _native_spread(src: Tensor, index: Tensor) -> Tensor:
    src, index = src.contiguous(), index.contiguous()
    out = src.new_empty((index.shape[0], src.shape[1]))
    code = _native.DTYPE_CODES[src.dtype]
    shape = (index.shape[0], *src.shape)
    _native.call("scatter_spread", src.device, code, src, index, *shape, out)
    return out


def _native_place(src: Tensor, arg: Tensor, index: Tensor) -> Tensor:
    src, arg, index = src.contiguous(), arg.contiguous(), index.contiguous()
    out = src.new_empty((index.shape[0], src.shape[1]))
    code = _native.DTYPE_CODES[src.dtype]
    shape = (index.shape[0], *src.shape)
    _native.call("scatter_place", src.device, code, src, arg, index, *shape, out)
    return out


def _native_keys(index: Tensor, groups: int) -> Tensor:
    index = index.contiguous()
    keys = index.new_empty((index.numel(),))
    _native.call("scatter_keys", index.device, index, *index.shape, groups, keys)
    return keys


def _native_offsets(index: Tensor, groups: int) -> Tensor:
    index = index.contiguous()
    offsets = index.new_empty((groups + 1,))
    _native.call("sorted_offsets", index.device, index, index.shape[0], groups, offsets)
    return offsets


# --- registration --------------------------------------------------------------------------------


def _fake_reduce(src: Tensor, index: Tensor, groups: int) -> Tensor:
    return src.new_empty((groups, src.shape[1]))


def _fake_extreme(src: Tensor, index: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    return _fake_reduce(src, index, groups), index.new_empty((groups, src.shape[1]))


def _fake_mean(src: Tensor, index: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    return _fake_reduce(src, index, groups), index.new_empty((groups,))


def _fake_rows(src: Tensor, index: Tensor) -> Tensor:
    return src.new_empty((index.shape[0], src.shape[1]))


def _save_found(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # no zeros for the second output
    ctx.save_for_backward(output[1], inputs[1])


def _extreme_backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, None, None]:
    if grad is None:
        return None, None, None
    return torch.ops.voxelpool.scatter_place.default(grad, *ctx.saved_tensors), None, None


def _sum_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return torch.ops.voxelpool.scatter_spread.default(grad, *ctx.saved_tensors), None, None


def _mean_backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, None, None]:
    if grad is None:
        return None, None, None
    counts, index = ctx.saved_tensors
    share = segment_reference.divide(segment_reference.widen(grad), counts).to(grad.dtype)
    return torch.ops.voxelpool.scatter_spread.default(share, index), None, None


def _save_mul(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    src, index, ctx.groups = inputs
    ctx.save_for_backward(src, index)


def _mul_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    # The product of all others: of a group without a 0 that of all by the factor; with one 0, at
    # that factor the product of the rest.
    src, index = ctx.saved_tensors
    ops = torch.ops.voxelpool
    zero = src == 0
    factors = src.masked_fill(zero, 1)
    rest = grad * ops.scatter_mul(factors, index, ctx.groups)
    zeros = ops.scatter_sum(zero.int(), index, ctx.groups)
    at_others = ops.scatter_spread(rest.masked_fill(zeros > 0, 0), index) / factors
    at_zero = ops.scatter_spread(rest.masked_fill(zeros != 1, 0), index)
    return torch.where(zero, at_zero, at_others), None, None


def _save_spread(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.groups = inputs[0].shape[0]
    ctx.save_for_backward(inputs[1])


def _spread_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return torch.ops.voxelpool.scatter_sum.default(grad, ctx.saved_tensors[0], ctx.groups), None


def _place_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return gather_arg(grad, *ctx.saved_tensors), None, None


register(
    "scatter_keys(Tensor index, SymInt groups) -> Tensor",
    native=_native_keys,
    reference=reference.scatter_keys,
    fake=lambda index, groups: index.new_empty((index.numel(),)),
)
register(
    "sorted_offsets(Tensor index, SymInt groups) -> Tensor",
    native=_native_offsets,
    reference=reference.sorted_offsets,
    fake=lambda index, groups: index.new_empty((groups + 1,)),
)
register(
    "scatter_spread(Tensor src, Tensor index) -> Tensor",
    native=_native_spread,
    reference=reference.scatter_spread,
    fake=_fake_rows,
    backward=_spread_backward,
    setup_context=_save_spread,
)
register(
    "scatter_place(Tensor src, Tensor arg, Tensor index) -> Tensor",
    native=_native_place,
    reference=reference.scatter_place,
    fake=lambda src, arg, index: _fake_rows(src, index),
    backward=_place_backward,
    setup_context=save_second,
)
register(
    "scatter_max(Tensor src, Tensor index, SymInt groups) -> (Tensor, Tensor)",
    native=lambda src, index, groups: _native_extreme(True, src, index, groups),
    reference=reference.scatter_max,
    fake=_fake_extreme,
    backward=_extreme_backward,
    setup_context=_save_found,
)
register(
    "scatter_min(Tensor src, Tensor index, SymInt groups) -> (Tensor, Tensor)",
    native=lambda src, index, groups: _native_extreme(False, src, index, groups),
    reference=reference.scatter_min,
    fake=_fake_extreme,
    backward=_extreme_backward,
    setup_context=_save_found,
)
register(
    "scatter_sum(Tensor src, Tensor index, SymInt groups) -> Tensor",
    native=_native_sum,
    reference=reference.scatter_sum,
    fake=_fake_reduce,
    backward=_sum_backward,
    setup_context=save_second,
)
register(
    "scatter_mean(Tensor src, Tensor index, SymInt groups) -> (Tensor, Tensor)",
    native=_native_mean,
    reference=reference.scatter_mean,
    fake=_fake_mean,
    backward=_mean_backward,
    setup_context=_save_found,
)
register(
    "scatter_mul(Tensor src, Tensor index, SymInt groups) -> Tensor",
    native=_native_mul,
    reference=reference.scatter_mul,
    fake=_fake_reduce,
    backward=_mul_backward,
    setup_context=_save_mul,
)
