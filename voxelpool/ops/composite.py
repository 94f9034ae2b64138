"""torch-scatter's ``composite`` functions: what several reductions make together.

Arguments are those of ``voxelpool.ops.scatter``, and so is what differs from torch-scatter 2.1. NaN
and infinities come through here, where torch-scatter replaces some of them by finite numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from voxelpool.ops.scatter import make_layout

__all__ = ["scatter_log_softmax", "scatter_logsumexp", "scatter_softmax", "scatter_std"]


def scatter_std(
    src: Tensor,
    index: Tensor,
    dim: int = -1,
    out: Tensor | None = None,
    dim_size: int | None = None,
    unbiased: bool = True,
) -> Tensor:
    """Standard deviation of the entries of each index.

    The sum of squared deviations is divided by the number of entries (``unbiased``: less one, but
    at least 1) plus 1e-6, as torch-scatter does. ``out`` holds sums of squares to start from.

    Raises:
        ValueError: as :func:`voxelpool.ops.scatter`, or integers.
    """
    _require_float("scatter_std", src)
    layout = make_layout(src, index, dim, out, dim_size)
    mean, _ = layout.mean(src)
    deviation = src - layout.spread(mean)
    squares = layout.sum(deviation * deviation)
    if out is not None:
        squares = out + squares
    counts = layout.counts(src.dtype).clamp(min=1)
    if unbiased:
        counts = (counts - 1).clamp(min=1)
    result = squares.div(counts + 1e-6).sqrt()
    return result if out is None else out.copy_(result)


def scatter_logsumexp(
    src: Tensor,
    index: Tensor,
    dim: int = -1,
    out: Tensor | None = None,
    dim_size: int | None = None,
    eps: float = 1e-12,
) -> Tensor:
    """Logarithm of the sum of the exponentials of each index, 0 where there are none.

    ``eps`` is added to the sum, of which the largest term is 1. ``out`` is one more term of each
    sum.

    Raises:
        ValueError: as :func:`voxelpool.ops.scatter`, or integers.
    """
    _require_float("scatter_logsumexp", src)
    layout = make_layout(src, index, dim, out, dim_size)
    with torch.no_grad():
        largest, arg = layout.extreme(src, largest=True)
        empty = arg == src.shape[layout.dim]
        largest = largest.masked_fill(empty, -torch.inf)
        if out is not None:
            largest = torch.maximum(largest, out)
        # Infinities are no point to measure from: inf - inf is none.
        largest = largest.masked_fill(largest.isinf(), 0)
    total = layout.sum((src - layout.spread(largest)).exp())
    if out is not None:
        total = total + (out - largest).exp()
        empty = torch.zeros_like(empty)
    result = ((total + eps).log() + largest).masked_fill(empty, 0)
    return result if out is None else out.copy_(result)


def scatter_softmax(
    src: Tensor, index: Tensor, dim: int = -1, dim_size: int | None = None
) -> Tensor:
    """Softmax over the entries of each index, in the shape of ``src``.

    Raises:
        ValueError: as :func:`voxelpool.ops.scatter`, or integers.
    """
    _require_float("scatter_softmax", src)
    layout = make_layout(src, index, dim, None, dim_size)
    exponentials = (src - layout.spread(layout.extreme(src.detach(), largest=True)[0])).exp()
    return exponentials / layout.spread(layout.sum(exponentials))


def scatter_log_softmax(
    src: Tensor,
    index: Tensor,
    dim: int = -1,
    eps: float = 1e-12,
    dim_size: int | None = None,
) -> Tensor:
    """Logarithm of :func:`scatter_softmax`; ``eps`` is added to each sum.

    Raises:
        ValueError: as :func:`voxelpool.ops.scatter`, or integers.
    """
    _require_float("scatter_log_softmax", src)
    layout = make_layout(src, index, dim, None, dim_size)
    centred = src - layout.spread(layout.extreme(src.detach(), largest=True)[0])
    return centred - layout.spread((layout.sum(centred.exp()) + eps).log())


def _require_float(name: str, src: Tensor) -> None:
    if isinstance(src, Tensor) and not src.is_floating_point():
        raise ValueError(f"{name} takes floating point numbers, got {src.dtype}")
