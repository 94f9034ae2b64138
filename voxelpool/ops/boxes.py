"""Rotated boxes: pairwise overlap, greedy suppression, and which points lie inside.

A box is (x, y, z, dx, dy, dz, yaw): centre, sizes and heading, metres and radians; yaw may be any
angle, also outside [-pi, pi). The rules, the same on every device and for any number of threads:

- Geometry is computed in float64 whatever the dtype (float32 where a device has no float64), so
  float16, bfloat16 and float32 boxes stand for exactly the numbers that they hold. An overlap is
  exact up to rounding: errors of IoU stay below 1e-12, and equal boxes give 1.
- Overlaps come in the wider dtype of the two arguments, and in float32 for float16 and bfloat16.
- A box with a size of 0 overlaps nothing. IoU lies in [0, 1] and is never NaN.
- A box with a number that is not finite, or a negative size, is an error. On CUDA, `boxes_iou_bev`,
  `boxes_iou_3d` and `points_in_boxes` do not look (it would stall the device): there such a box has
  an IoU of 0 with every box and holds no point.
- No gradients flow through these ops.
"""

from __future__ import annotations

import torch
from torch import Tensor

from voxelpool.ops import _check, _native
from voxelpool.ops._library import register
from voxelpool.ops.reference import boxes as reference


def boxes_iou_bev(a: Tensor, b: Tensor) -> Tensor:
    """Pairwise intersection over union of boxes seen from above.

    Args:
        a: (N, 7) boxes, floating point.
        b: (M, 7) boxes, floating point, on the same device. Their z and dz are ignored.

    Returns:
        (N, M), in [0, 1].

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: shapes or devices that do not fit, or a box that is none (see the module).
    """
    return torch.ops.voxelpool.boxes_iou_bev.default(*_checked_pair(a, b))


def boxes_iou_3d(a: Tensor, b: Tensor) -> Tensor:
    """Pairwise intersection over union of volumes: overlap from above times overlap in height.

    Args:
        a: (N, 7) boxes, floating point.
        b: (M, 7) boxes, floating point, on the same device.

    Returns:
        (N, M), in [0, 1].

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: shapes or devices that do not fit, or a box that is none (see the module).
    """
    return torch.ops.voxelpool.boxes_iou_3d.default(*_checked_pair(a, b))


def nms_rotated(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression on the overlap seen from above.

    Boxes are taken by descending score, equal scores by ascending index. A box is dropped when its
    BEV IoU with a box kept before it is above the threshold; at the threshold it stays.

    Args:
        boxes: (N, 7), floating point.
        scores: (N,), floating point; infinities are scores like any other.
        iou_threshold: In [0, 1].

    Returns:
        (K,) int64 indices of the kept boxes, by descending score.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: shapes or devices that do not fit, a threshold out of range, a score that is
            NaN, or a box that is none (see the module).
    """
    boxes = _checked_boxes("boxes", boxes)
    scores = _floating("scores", scores)
    if scores.dim() != 1 or scores.shape[0] != boxes.shape[0]:
        raise ValueError(
            f"scores must have shape ({boxes.shape[0]},), one a box, got {tuple(scores.shape)}"
        )
    _check.same_device("boxes", boxes, "scores", scores)
    if not 0.0 <= iou_threshold <= 1.0:
        raise ValueError(f"iou_threshold must lie in [0, 1], got {iou_threshold}")
    return torch.ops.voxelpool.nms_rotated.default(boxes, scores, float(iou_threshold))


def points_in_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    """Which points lie in which boxes, faces included.

    Args:
        points: (N, >=3), floating point: x, y, z first, the rest ignored.
        boxes: (M, 7), floating point, on the same device.

    Returns:
        (N, M) bool; False for a point with a NaN or infinite coordinate.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: shapes or devices that do not fit, or a box that is none (see the module).
    """
    points = _floating("points", points)
    if points.dim() != 2 or points.shape[1] < 3:
        raise ValueError(f"points must have shape (N, >=3), got {tuple(points.shape)}")
    boxes = _checked_boxes("boxes", boxes)
    _check.same_device("points", points, "boxes", boxes)
    return torch.ops.voxelpool.points_in_boxes.default(points, boxes)


def _floating(name: str, value: Tensor) -> Tensor:
    if not _check.tensor(name, value).is_floating_point():
        raise TypeError(f"{name} must be floating point, got {value.dtype}")
    return value.detach()


def _checked_boxes(name: str, value: Tensor) -> Tensor:
    value = _floating(name, value)
    if value.dim() != 2 or value.shape[1] != 7:
        raise ValueError(
            f"{name} must have shape (N, 7): x, y, z, dx, dy, dz, yaw; got {tuple(value.shape)}"
        )
    return value


def _checked_pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    a, b = _checked_boxes("a", a), _checked_boxes("b", b)
    _check.same_device("a", a, "b", b)
    return a, b


def _result_dtype(a: Tensor, b: Tensor) -> torch.dtype:
    wide = torch.promote_types(a.dtype, b.dtype)
    return torch.float64 if wide == torch.float64 else torch.float32


def _check_values(name: str, boxes: Tensor) -> None:
    """Raises where a row of `boxes` (N, 7) is no box."""
    native = _native.module()
    plain = boxes.dtype == torch.float64 and boxes.is_contiguous()
    if native is not None and boxes.device.type == "cpu" and plain:
        row = native.first_invalid_box_cpu(boxes.data_ptr(), boxes.shape[0])
    else:
        invalid = ~reference.valid_boxes(boxes)
        row = int(invalid.to(torch.uint8).argmax()) if bool(invalid.any()) else -1
    if row >= 0:
        raise ValueError(
            f"{name}: row {row} is {boxes[row].tolist()}; a box needs seven finite numbers "
            "(x, y, z, dx, dy, dz, yaw) and sizes of 0 or more"
        )


def _check_scores(scores: Tensor) -> None:
    nan = scores.isnan()
    if bool(nan.any()):
        raise ValueError(f"scores: row {int(nan.to(torch.uint8).argmax())} is NaN")


def _descending(scores: Tensor) -> Tensor:
    # Adding 0 turns -0.0 into 0.0, which a radix sort would tell apart.
    return torch.sort(scores + 0.0, descending=True, stable=True).indices


# --- native --------------------------------------------------------------------------------------


def _plain(boxes: Tensor) -> Tensor:
    return boxes.to(torch.float64).contiguous()


def _scratch(name: str, device: torch.device, count: int) -> tuple[Tensor, ...]:
    """The device memory that a CUDA kernel asks for; the CPU kernels take none."""
    native = _native.module()
    if native is None or device.type != "cuda":
        return ()
    return (torch.empty(getattr(native, name)(count), dtype=torch.uint8, device=device),)


def _native_iou(a: Tensor, b: Tensor, volume: bool) -> Tensor:
    out = a.new_empty((a.shape[0], b.shape[0]), dtype=_result_dtype(a, b))
    a, b = _plain(a), _plain(b)
    if a.device.type == "cpu":
        _check_values("a", a)
        _check_values("b", b)
    rows, columns = out.shape
    scratch = _scratch("boxes_cuda_scratch", a.device, rows + columns)
    wide = out.dtype == torch.float64
    _native.call("boxes_iou", a.device, a, rows, b, columns, volume, out, wide, *scratch)
    return out


def _native_nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    _check_scores(scores)
    boxes = _plain(boxes)
    _check_values("boxes", boxes)
    order = _descending(scores)
    keep = torch.empty(order.shape, dtype=torch.bool, device=boxes.device)
    count = order.shape[0]
    scratch = _scratch("nms_cuda_scratch", boxes.device, count)
    _native.call("nms", boxes.device, boxes[order], count, iou_threshold, keep, *scratch)
    return order[keep]


def _native_points_in_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    boxes = _plain(boxes)
    if boxes.device.type == "cpu":
        _check_values("boxes", boxes)
    if points.dtype not in (torch.float32, torch.float64):
        points = points.float()
    if points.stride(1) != 1:
        points = points.contiguous()
    count, columns = points.shape[0], boxes.shape[0]
    inside = torch.empty((count, columns), dtype=torch.bool, device=points.device)
    scratch = _scratch("boxes_cuda_scratch", boxes.device, columns)
    wide = points.dtype == torch.float64
    arguments = (points, wide, count, points.stride(0), boxes, columns, inside)
    _native.call("points_in_boxes", points.device, *arguments, *scratch)
    return inside


# --- reference -----------------------------------------------------------------------------------


def _reference_iou(a: Tensor, b: Tensor, volume: bool) -> Tensor:
    if a.device.type == "cpu":
        _check_values("a", a)
        _check_values("b", b)
    return reference.boxes_iou(a, b, volume, _result_dtype(a, b))


def _reference_nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    _check_scores(scores)
    _check_values("boxes", boxes)
    order = _descending(scores)
    return order[reference.nms(boxes[order], iou_threshold)]


def _reference_points_in_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    if boxes.device.type == "cpu":
        _check_values("boxes", boxes)
    return reference.points_in_boxes(points, boxes)


# --- registration --------------------------------------------------------------------------------


def _fake_iou(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty((a.shape[0], b.shape[0]), dtype=_result_dtype(a, b))


def _fake_nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    kept = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty((kept,), dtype=torch.int64)


def _fake_points_in_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    return points.new_empty((points.shape[0], boxes.shape[0]), dtype=torch.bool)


register(
    "boxes_iou_bev(Tensor a, Tensor b) -> Tensor",
    native=lambda a, b: _native_iou(a, b, False),
    reference=lambda a, b: _reference_iou(a, b, False),
    fake=_fake_iou,
)
register(
    "boxes_iou_3d(Tensor a, Tensor b) -> Tensor",
    native=lambda a, b: _native_iou(a, b, True),
    reference=lambda a, b: _reference_iou(a, b, True),
    fake=_fake_iou,
)
register(
    "nms_rotated(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor",
    native=_native_nms,
    reference=_reference_nms,
    fake=_fake_nms,
)
register(
    "points_in_boxes(Tensor points, Tensor boxes) -> Tensor",
    native=_native_points_in_boxes,
    reference=_reference_points_in_boxes,
    fake=_fake_points_in_boxes,
)
