"""Pooling of sorted groups with torch-scatter's names: ``segment_csr``, ``segment_coo`` and more.

Names, arguments, results and gradients are those of torch-scatter 2.1; what differs is listed in
:mod:`voxelpool.ops.scatter`. On two dimensions and one row of offsets, :func:`segment_max_csr` is
``segment_max``, and so on.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from voxelpool.ops import _check
from voxelpool.ops.scatter import (
    Layout,
    check_out,
    combine_extreme,
    debug_index,
    make_layout,
    scatter_max,
    scatter_mean,
    scatter_min,
    scatter_sum,
)

# --- groups by offsets ---------------------------------------------------------------------------


def segment_csr(
    src: Tensor, indptr: Tensor, out: Tensor | None = None, reduce: str = "sum"
) -> Tensor:
    """Reduces runs of entries of ``src`` along ``dim = indptr.dim() - 1``.

    Args:
        src: any shape; float16, bfloat16, float32, float64, int8, uint8, int16, int32 or int64.
        indptr: (..., K + 1) integers: group k is the entries ``indptr[..., k]`` up to
            ``indptr[..., k + 1]``. Its dimensions but the last broadcast to the first of ``src``.
            Entries before the first and from the last offset on belong to no group.
        out: a tensor of the shape and dtype of the result, which is filled with it and returned;
            its values take no part.
        reduce: ``sum``, ``add``, ``mean``, ``min`` or ``max``.

    Returns:
        The shape of ``src`` with K in the place of ``dim``; 0 for an empty group. The mean of
        integers is rounded down.

    Raises:
        TypeError: not a tensor, or a dtype other than those above.
        ValueError: shapes, devices, ``reduce`` or offsets that do not fit. Values of offsets are
            looked at on the CPU alone; on CUDA, entries out of range are left out.
    """
    if reduce in ("sum", "add"):
        return segment_sum_csr(src, indptr, out)
    if reduce == "mean":
        return segment_mean_csr(src, indptr, out)
    if reduce == "min":
        return segment_min_csr(src, indptr, out)[0]
    if reduce == "max":
        return segment_max_csr(src, indptr, out)[0]
    raise ValueError(f"reduce must be sum, add, mean, min or max, got {reduce!r}")


def segment_sum_csr(src: Tensor, indptr: Tensor, out: Tensor | None = None) -> Tensor:
    """Sum of each group; arguments as of :func:`segment_csr`."""
    rows, offsets = _runs(src, indptr, out)
    return _fill(
        out, _grouped(torch.ops.voxelpool.segment_sum.default(rows, offsets, True), src, indptr)
    )


def segment_add_csr(src: Tensor, indptr: Tensor, out: Tensor | None = None) -> Tensor:
    """Another name of :func:`segment_sum_csr`."""
    return segment_sum_csr(src, indptr, out)


def segment_mean_csr(src: Tensor, indptr: Tensor, out: Tensor | None = None) -> Tensor:
    """Mean of each group; arguments as of :func:`segment_csr`."""
    rows, offsets = _runs(src, indptr, out)
    return _fill(
        out, _grouped(torch.ops.voxelpool.segment_mean.default(rows, offsets, True), src, indptr)
    )


def segment_min_csr(
    src: Tensor, indptr: Tensor, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Smallest entry of each group, and where it is; otherwise as :func:`segment_max_csr`."""
    rows, offsets = _runs(src, indptr, out)
    value, arg = torch.ops.voxelpool.segment_min.default(rows, offsets, True)
    return _fill(out, _grouped(value, src, indptr)), _positions(arg, src, indptr)


def segment_max_csr(
    src: Tensor, indptr: Tensor, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Largest entry of each group, and where it is; arguments as of :func:`segment_csr`.

    Returns:
        The values, and ``arg``, int64 of the same shape: the position along ``dim`` that each came
        from, or ``src.shape[dim]`` for an empty group. The gradient goes to that position alone.
    """
    rows, offsets = _runs(src, indptr, out)
    value, arg = torch.ops.voxelpool.segment_max.default(rows, offsets, True)
    return _fill(out, _grouped(value, src, indptr)), _positions(arg, src, indptr)


def gather_csr(src: Tensor, indptr: Tensor, out: Tensor | None = None) -> Tensor:
    """The opposite of :func:`segment_csr`: repeats entry k of ``src`` over its group.

    Args:
        src: any shape with K entries along ``dim = indptr.dim() - 1``.
        indptr: (..., K + 1) offsets as of :func:`segment_csr`.
        out: filled with the result and returned; it also gives the size along ``dim``, which
            otherwise is the last offset (looking at it waits for the device, and cannot be
            compiled).

    Returns:
        The shape of ``src`` with the number of entries in the place of ``dim``; 0 for an entry of
        no group.
    """
    dim, offsets = _offsets(src, indptr, "K")
    groups = offsets.shape[-1] - 1
    if src.shape[dim] != groups:
        raise ValueError(
            f"src must have {groups} entries along dim {dim}, one for each group of indptr, got "
            f"shape {tuple(src.shape)}"
        )
    if out is not None:
        size = _check.tensor("out", out).shape[dim] if dim < out.dim() else 0
    else:
        size = int(offsets.flatten()[-1]) if src.numel() else 0
    check_out(out, src, dim, size)
    outer, channels = math.prod(src.shape[:dim]), math.prod(src.shape[dim + 1 :])
    values = src.reshape(outer, groups, channels)
    if outer != 1:  # a group for what lies between the last offset and the next first one
        values = torch.nn.functional.pad(values, (0, 0, 0, 1))
    flat = torch.ops.voxelpool.segment_spread.default(
        values.reshape(-1 if channels else values.shape[0] * values.shape[1], channels),
        _joined(offsets, outer, size),
        outer * size,
        False,
    )
    return _fill(out, flat.reshape((*src.shape[:dim], size, *src.shape[dim + 1 :])))


def _offsets(src: Tensor, indptr: Tensor, entries: str) -> tuple[int, Tensor]:
    _check.poolable(src, "indptr", indptr)
    dim = indptr.dim() - 1
    if (
        not 0 <= dim < src.dim()
        or indptr.shape[dim] < 1
        or any(indptr.shape[d] not in (1, src.shape[d]) for d in range(dim))
    ):
        raise ValueError(
            f"indptr must have shape (..., K + 1), and all but the last dimension broadcast to "
            f"those of src, {tuple(src.shape)}; got {tuple(indptr.shape)}"
        )
    return dim, indptr.long().expand(*src.shape[:dim], indptr.shape[dim])


def _joined(offsets: Tensor, outer: int, size: int) -> Tensor:
    """The offsets of all rows of ``indptr`` as one; between two of them lies one group more."""
    if outer == 1:
        return offsets.reshape(-1)
    offsets = offsets.reshape(outer, offsets.shape[-1])
    if offsets.device.type == "cpu" and not torch.compiler.is_compiling() and offsets.numel():
        low, high = int(offsets.min()), int(offsets.max())
        if low < 0 or high > size:
            raise ValueError(
                f"indptr must hold 0 to {size}, the entries of src, got {low if low < 0 else high}"
            )
    start = torch.arange(outer, device=offsets.device).unsqueeze(1) * size
    return torch.cat([(offsets + start).flatten(), offsets.new_full((1,), outer * size)])


def _runs(src: Tensor, indptr: Tensor, out: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows (R, C) and offsets (G + 1,) of their groups."""
    dim, offsets = _offsets(src, indptr, "M")
    if out is not None:
        check_out(_check.tensor("out", out), src, dim, offsets.shape[-1] - 1)
    outer, channels = math.prod(src.shape[:dim]), math.prod(src.shape[dim + 1 :])
    rows = src.reshape(outer * src.shape[dim], channels)
    return rows, _joined(offsets, outer, src.shape[dim])


def _grouped(flat: Tensor, src: Tensor, indptr: Tensor) -> Tensor:
    """Results (G, C) of all groups in the shape of the result."""
    dim, groups = indptr.dim() - 1, indptr.shape[-1] - 1
    outer, channels = math.prod(src.shape[:dim]), math.prod(src.shape[dim + 1 :])
    if outer != 1:
        flat = flat.reshape(outer, groups + 1, channels)[:, :groups]
    return flat.reshape((*src.shape[:dim], groups, *src.shape[dim + 1 :]))


def _positions(arg: Tensor, src: Tensor, indptr: Tensor) -> Tensor:
    """Rows in all of ``src`` as positions along its dimension."""
    dim = indptr.dim() - 1
    arg = _grouped(arg, src, indptr)
    outer, size = math.prod(src.shape[:dim]), src.shape[dim]
    if outer == 1:
        return arg
    return (arg % max(size, 1)).masked_fill(arg == outer * size, size)


def _fill(out: Tensor | None, result: Tensor) -> Tensor:
    return result if out is None else out.copy_(result)


# --- groups by sorted index ----------------------------------------------------------------------


def segment_coo(
    src: Tensor,
    index: Tensor,
    out: Tensor | None = None,
    dim_size: int | None = None,
    reduce: str = "sum",
) -> Tensor:
    """Reduces the entries of ``src`` along ``dim = index.dim() - 1`` that share an index.

    Args:
        src: any shape; float16, bfloat16, float32, float64, int8, uint8, int16, int32 or int64.
        index: integers, sorted along the last dimension; the dimensions before it broadcast to
            those of ``src``.
        out: as in ``scatter``: it takes part, is filled with the result and returned.
        dim_size: size of the result along ``dim``; by default that of ``out``, else
            ``index.max() + 1``.
        reduce: ``sum``, ``add``, ``mean``, ``min`` or ``max``.

    Returns:
        As :func:`voxelpool.ops.scatter`, faster: nothing is sorted.

    Raises:
        TypeError: not a tensor, or a dtype other than those above.
        ValueError: shapes, devices, ``reduce`` or an index that do not fit; on the CPU also a 1-D
            index that is not sorted.
    """
    if reduce in ("sum", "add"):
        return segment_sum_coo(src, index, out, dim_size)
    if reduce == "mean":
        return segment_mean_coo(src, index, out, dim_size)
    if reduce == "min":
        return segment_min_coo(src, index, out, dim_size)[0]
    if reduce == "max":
        return segment_max_coo(src, index, out, dim_size)[0]
    raise ValueError(f"reduce must be sum, add, mean, min or max, got {reduce!r}")


def segment_sum_coo(
    src: Tensor, index: Tensor, out: Tensor | None = None, dim_size: int | None = None
) -> Tensor:
    """Sum of the entries of each index; arguments as of :func:`segment_coo`."""
    if index.dim() != 1:
        return scatter_sum(src, index, index.dim() - 1, out, dim_size)
    layout, offsets = _sorted(src, index, out, dim_size)
    total = layout.grouped(torch.ops.voxelpool.segment_sum.default(layout.rows(src), offsets, True))
    return total if out is None else out.add_(total)


def segment_add_coo(
    src: Tensor, index: Tensor, out: Tensor | None = None, dim_size: int | None = None
) -> Tensor:
    """Another name of :func:`segment_sum_coo`."""
    return segment_sum_coo(src, index, out, dim_size)


def segment_mean_coo(
    src: Tensor, index: Tensor, out: Tensor | None = None, dim_size: int | None = None
) -> Tensor:
    """Mean of the entries of each index; arguments as of :func:`segment_coo`."""
    if index.dim() != 1 or out is not None:
        return scatter_mean(src, index, index.dim() - 1, out, dim_size)
    layout, offsets = _sorted(src, index, out, dim_size)
    return layout.grouped(torch.ops.voxelpool.segment_mean.default(layout.rows(src), offsets, True))


def segment_min_coo(
    src: Tensor, index: Tensor, out: Tensor | None = None, dim_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Smallest entry of each index, and where it is; otherwise as :func:`segment_max_coo`."""
    if index.dim() != 1:
        return scatter_min(src, index, index.dim() - 1, out, dim_size)
    layout, offsets = _sorted(src, index, out, dim_size)
    value, arg = torch.ops.voxelpool.segment_min.default(layout.rows(src), offsets, True)
    return combine_extreme(
        out, layout.grouped(value), layout.grouped(arg), src.shape[0], largest=False
    )


def segment_max_coo(
    src: Tensor, index: Tensor, out: Tensor | None = None, dim_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Largest entry of each index, and where it is; arguments as of :func:`segment_coo`.

    Returns:
        The values, and ``arg``, int64 of the same shape: the position along ``dim`` that each came
        from, or ``src.shape[dim]`` where it came from none. The gradient goes to that position.
    """
    if index.dim() != 1:
        return scatter_max(src, index, index.dim() - 1, out, dim_size)
    layout, offsets = _sorted(src, index, out, dim_size)
    value, arg = torch.ops.voxelpool.segment_max.default(layout.rows(src), offsets, True)
    return combine_extreme(
        out, layout.grouped(value), layout.grouped(arg), src.shape[0], largest=True
    )


def gather_coo(src: Tensor, index: Tensor, out: Tensor | None = None) -> Tensor:
    """The opposite of :func:`segment_coo`: the entries of ``src`` that ``index`` names.

    Args:
        src: any shape.
        index: integers along ``dim = index.dim() - 1``, in any order; the dimensions before it
            broadcast to those of ``src``.
        out: filled with the result and returned.

    Returns:
        The shape of ``src`` with ``index.shape[-1]`` in the place of ``dim``. On CUDA, 0 for an
        index out of range.
    """
    _check.poolable(src, "index", index)
    dim = index.dim() - 1
    if not 0 <= dim < src.dim() or any(index.shape[d] not in (1, src.shape[d]) for d in range(dim)):
        raise ValueError(
            f"all but the last dimension of index must broadcast to those of src, "
            f"{tuple(src.shape)}; got {tuple(index.shape)}"
        )
    groups, size = src.shape[dim], index.shape[dim]
    check_out(out, src, dim, size)
    debug_index(index, groups)
    outer, channels = math.prod(src.shape[:dim]), math.prod(src.shape[dim + 1 :])
    keys = index.long().expand(*src.shape[:dim], size)
    if outer == 1:
        keys = keys.reshape(size)
    else:
        keys = torch.ops.voxelpool.scatter_keys.default(keys.reshape(outer, size, 1), groups)
    flat = torch.ops.voxelpool.scatter_spread.default(src.reshape(outer * groups, channels), keys)
    return _fill(out, flat.reshape((*src.shape[:dim], size, *src.shape[dim + 1 :])))


def _sorted(
    src: Tensor, index: Tensor, out: Tensor | None, dim_size: int | None
) -> tuple[Layout, Tensor]:
    layout = make_layout(src, index, 0, out, dim_size)
    return layout, torch.ops.voxelpool.sorted_offsets.default(layout.keys, layout.groups)
