"""Encoding of voxels at inference: point layers and maxima over voxels in one pass.

A VFE stack (VoxelNet, arXiv 1711.06396, section 2.1.1) puts each point's feature beside the maximum
over its voxel, again and again. A linear layer on such a pair is the sum of two: one on the points,
one on the maxima, and the latter is computed once a voxel instead of once a point. What the last
layer makes of a point enters the maximum over its voxel and is written nowhere.

The rules, the same on CPU and CUDA and for any number of threads:

- Everything is float32. Sums start from the bias, or from the part of the voxel, and take the
  columns in their order in fused multiply-adds (on x86 without FMA in two steps): a voxel gives the
  same bits alone and among others.
- NaN propagates to its voxel; an empty voxel gives 0.
- Nothing here is differentiable but the reference, which runs where a gradient is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from voxelpool.ops import _check, _native
from voxelpool.ops._library import register
from voxelpool.ops.reference import encode as reference

#: The widest layer or code that the CUDA kernel takes: kEncodeMaxWidth in csrc/encode/encode.h.
CUDA_MAX_WIDTH = 256


def encode_voxels(
    features: Tensor, offsets: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> Tensor:
    """A feature for each voxel from the codes of its points.

    Layer l is ``relu(linear(x, weights[l], biases[l]))``. In the first, x is the code of a point;
    in the others, what the layer before made of the point, followed by the maximum of that over
    the voxel. The result is the maximum over each voxel of what the last layer makes.

    On CUDA with layers or codes wider than 256 columns, and on other devices, PyTorch's own matrix
    products run instead of our kernel.

    Args:
        features: (M, D) float32, one row a point, grouped by voxel; D >= 1.
        offsets: (K + 1,) integers from 0 up to M: voxel k is rows ``offsets[k]`` to
            ``offsets[k + 1]``. On CUDA their values are not checked.
        weights: for each of L >= 1 layers, float32: (H0, D), (H1, 2 H0), (H2, 2 H1), …
        biases: for each layer, float32: (H0,), (H1,), …

    Returns:
        (K, H) float32, H the width of the last layer; 0 for a voxel without points.

    Raises:
        TypeError: not a tensor, or another dtype.
        ValueError: shapes, devices or offsets that do not fit.
    """
    _check_matrix("features", features)
    offsets = _check_offsets(offsets, "features", features)
    weights, biases = _check_layers(weights, biases, "features", features, features.shape[1])
    if _needs_gradient(features, *weights, *biases):
        return reference.encode_voxels(features, offsets, weights, biases)
    return torch.ops.voxelpool.encode_voxels.default(features, offsets, weights, biases)


def encode_points(
    points: Tensor,
    point_index: Tensor,
    offsets: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    centers: Tensor | None = None,
) -> Tensor:
    """As :func:`encode_voxels`, from points whose code is made on the way.

    The code of a point is its columns, then x, y, z minus the mean of the points kept in its
    voxel, then, given ``centers``, x, y, z minus the center of its voxel.

    Args:
        points: (N, 3 + E) float32, x, y, z and E further columns.
        point_index: (M,) integers, the point of each row, grouped by voxel. On CUDA the values are
            not checked: one out of range counts as the nearest in range.
        offsets: as in :func:`encode_voxels`.
        weights: as in :func:`encode_voxels`, D = 6 + E, or 9 + E with centers.
        biases: as in :func:`encode_voxels`.
        centers: (K, 3) float32, or None.

    Returns:
        (K, H) float32.

    Raises:
        TypeError: not a tensor, or another dtype.
        ValueError: shapes, devices, offsets or indices that do not fit.
    """
    _check_matrix("points", points)
    if points.shape[1] < 3:
        raise ValueError(f"points must be (N, >=3), got {tuple(points.shape)}")
    _check.integer_vector("point_index", _check.tensor("point_index", point_index))
    _check.same_device("points", points, "point_index", point_index)
    offsets = _check_offsets(offsets, "points", points)
    code_columns = points.shape[1] + 3
    if centers is not None:
        code_columns += 3
        _check_matrix("centers", centers)
        if tuple(centers.shape) != (offsets.shape[0] - 1, 3):
            raise ValueError(
                f"centers must be {(offsets.shape[0] - 1, 3)}, got {tuple(centers.shape)}"
            )
        _check.same_device("points", points, "centers", centers)
    weights, biases = _check_layers(weights, biases, "points", points, code_columns)
    arguments = (points, point_index.long(), offsets, centers, weights, biases)
    if _needs_gradient(points, *weights, *biases, *([] if centers is None else [centers])):
        return reference.encode_points(*arguments)
    return torch.ops.voxelpool.encode_points.default(*arguments)


def _needs_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _check_matrix(name: str, value: Tensor) -> None:
    _check.tensor(name, value)
    if value.dtype != torch.float32:
        raise TypeError(f"{name} must be float32, got {value.dtype}")
    if value.dim() != 2:
        raise ValueError(f"{name} must be 2-D, got shape {tuple(value.shape)}")


def _check_offsets(offsets: Tensor, name: str, other: Tensor) -> Tensor:
    _check.integer_vector("offsets", _check.tensor("offsets", offsets))
    if offsets.shape[0] < 1:
        raise ValueError("offsets must have shape (K + 1,), got (0,): no voxels are offsets [0]")
    _check.same_device(name, other, "offsets", offsets)
    return offsets.long()


def _check_layers(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    name: str,
    other: Tensor,
    columns: int,
) -> tuple[list[Tensor], list[Tensor]]:
    """The layers as lists, whose shapes follow one from another."""
    if len(weights) != len(biases) or not weights:
        raise ValueError(
            f"weights and biases must be as many, at least one, got {len(weights)} and "
            f"{len(biases)}"
        )
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        _check_matrix(f"weights[{layer}]", weight)
        _check.same_device(name, other, f"weights[{layer}]", weight)
        if weight.shape[0] < 1 or weight.shape[1] != columns or columns < 1:
            raise ValueError(
                f"weights[{layer}] must be (>=1, {max(columns, 1)}), got {tuple(weight.shape)}"
            )
        _check.tensor(f"biases[{layer}]", bias)
        _check.same_device(name, other, f"biases[{layer}]", bias)
        if bias.dtype != torch.float32:
            raise TypeError(f"biases[{layer}] must be float32, got {bias.dtype}")
        if tuple(bias.shape) != (weight.shape[0],):
            raise ValueError(
                f"biases[{layer}] must be ({weight.shape[0]},), got {tuple(bias.shape)}"
            )
        columns = 2 * weight.shape[0]
    return list(weights), list(biases)


# --- native --------------------------------------------------------------------------------------


def _native_encode_voxels(
    features: Tensor, offsets: Tensor, weights: list[Tensor], biases: list[Tensor]
) -> Tensor:
    widths = [features.shape[1], *(weight.shape[0] for weight in weights)]
    if features.device.type == "cuda" and max(widths) > CUDA_MAX_WIDTH:
        return reference.encode_voxels(features, offsets, weights, biases)
    return _run(features, None, None, offsets, features.shape[0], widths, weights, biases)


def _native_encode_points(
    points: Tensor,
    point_index: Tensor,
    offsets: Tensor,
    centers: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
) -> Tensor:
    code_columns = points.shape[1] + (3 if centers is None else 6)
    widths = [code_columns, *(weight.shape[0] for weight in weights)]
    if points.device.type == "cuda" and max(widths) > CUDA_MAX_WIDTH:
        return reference.encode_points(points, point_index, offsets, centers, weights, biases)
    centers = None if centers is None else centers.contiguous()
    rows = point_index.shape[0]
    return _run(points, point_index.contiguous(), centers, offsets, rows, widths, weights, biases)


def _run(
    values: Tensor,
    point_index: Tensor | None,
    centers: Tensor | None,
    offsets: Tensor,
    rows: int,
    widths: list[int],
    weights: list[Tensor],
    biases: list[Tensor],
) -> Tensor:
    """``widths``: columns of the code, then of each layer."""
    flat = [
        part
        for weight, bias in zip(weights, biases, strict=True)
        for part in (weight.t().reshape(-1), bias)
    ]
    values, offsets = values.contiguous(), offsets.contiguous()
    voxels = offsets.shape[0] - 1
    out = values.new_empty((voxels, widths[-1]))
    scratch: tuple[Tensor, ...] = ()
    if values.device.type == "cuda":  # the CPU's threads have their own
        scratch = (values.new_empty(rows * widths[0] + (rows + voxels) * sum(widths[1:-1])),)
    _native.call(
        "encode_voxels",
        values.device,
        values,
        *values.shape,
        point_index,
        centers,
        offsets,
        voxels,
        rows,
        torch.cat(flat),
        tuple(widths[1:]),
        *scratch,
        out,
    )
    return out


# --- registration --------------------------------------------------------------------------------


def _fake(first: Tensor, offsets: Tensor, weights: list[Tensor]) -> Tensor:
    return first.new_empty((offsets.shape[0] - 1, weights[-1].shape[0]))


def _no_backward(*_: Any) -> None:
    raise NotImplementedError(
        "voxelpool::encode_voxels and encode_points have no gradient; call them through "
        "voxelpool.ops, which takes the differentiable reference where one is needed"
    )


register(
    "encode_voxels(Tensor features, Tensor offsets, Tensor[] weights, Tensor[] biases) -> Tensor",
    native=_native_encode_voxels,
    reference=reference.encode_voxels,
    fake=lambda features, offsets, weights, biases: _fake(features, offsets, weights),
    backward=_no_backward,
    setup_context=lambda ctx, inputs, output: None,
)
register(
    "encode_points(Tensor points, Tensor point_index, Tensor offsets, Tensor? centers, "
    "Tensor[] weights, Tensor[] biases) -> Tensor",
    native=_native_encode_points,
    reference=reference.encode_points,
    fake=lambda points, index, offsets, centers, weights, biases: _fake(points, offsets, weights),
    backward=_no_backward,
    setup_context=lambda ctx, inputs, output: None,
)
