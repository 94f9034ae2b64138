"""Pure-PyTorch box ops: rotated overlaps, greedy suppression and point membership.

The arithmetic is that of ``csrc/boxes/boxes.h``, operation for operation, in float64 whatever the
dtype of the input (float32 on devices without float64), so the results of every backend agree to
the last bit where the compiler does not contract multiplications and additions.

The overlap of two rectangles is an integral, not a clipped polygon: seen from the first box, an
axis-aligned rectangle, the second box is bounded by four edges, and the area of the intersection is
the contour integral of y dx along those edges with x and y clamped to the first box. No list of
vertices, no case for parallel, touching, equal or contained boxes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# pi/2 in three parts: 33 bits, the next 33, and the rest; k * part is exact for |k| < 2^20.
_HALF_PI = (1.5707963267341256, 6.077100506303966e-11, 2.0222662487959506e-21)
_REDUCE_ABOVE = 1e5
_SIN = tuple((-1) ** i / math.factorial(2 * i + 1) for i in range(8, 0, -1))
_COS = tuple((-1) ** i / math.factorial(2 * i) for i in range(9, 1, -1))
# Pairs computed at a time: keeps the temporaries in a processor's cache.
_PAIRS_PER_BLOCK = 1 << 16

# Columns of a prepared box, see prepare().
_X, _Y, _Z, _HX, _HY, _HZ, _COSINE, _SINE, _AREA, _VOLUME, _RADIUS = range(11)


def compute_dtype(device: torch.device) -> torch.dtype:
    """The dtype in which box geometry is computed on `device`."""
    return torch.float32 if device.type == "mps" else torch.float64


def sincos(angle: Tensor) -> tuple[Tensor, Tensor]:
    """Sine and cosine from additions, multiplications and rounding alone.

    `torch.sin` rounds differently from one device or vector width to the next; this does not.

    Args:
        angle: (...), radians, float64.

    Returns:
        (sin, cos), each (...), within about 1 ulp for angles up to 1e5.
    """
    angle = torch.where(angle.abs() > _REDUCE_ABOVE, torch.fmod(angle, 2 * math.pi), angle)
    k = torch.round(angle * (2 / math.pi))
    r = ((angle - k * _HALF_PI[0]) - k * _HALF_PI[1]) - k * _HALF_PI[2]
    z = r * r
    sin_poly = torch.full_like(z, _SIN[0])
    for coefficient in _SIN[1:]:
        sin_poly = sin_poly * z + coefficient
    cos_poly = torch.full_like(z, _COS[0])
    for coefficient in _COS[1:]:
        cos_poly = cos_poly * z + coefficient
    s = r + r * z * sin_poly
    c = (1.0 - 0.5 * z) + z * z * cos_poly
    quadrant = k - 4.0 * torch.floor(k * 0.25)
    odd = (quadrant == 1.0) | (quadrant == 3.0)
    sin = torch.where(odd, c, s)
    cos = torch.where(odd, s, c)
    sin = torch.where(quadrant >= 2.0, -sin, sin)
    cos = torch.where((quadrant == 1.0) | (quadrant == 2.0), -cos, cos)
    return sin, cos


def valid_boxes(boxes: Tensor) -> Tensor:
    """(N,) bool: all seven numbers finite and no size negative.

    Args:
        boxes: (N, 7).
    """
    return boxes.isfinite().all(dim=1) & (boxes[:, 3:6] >= 0).all(dim=1)


def prepare(boxes: Tensor) -> Tensor:
    """What the pairwise loops need of each box, computed once a box.

    Args:
        boxes: (N, 7), any floating dtype.

    Returns:
        (N, 11) float64: x, y, z, half sizes, cos, sin, area, volume, BEV half diagonal. A box that
        is not valid has NaN half sizes and zero area, volume and radius, so that it overlaps
        nothing and holds no point.
    """
    work = boxes.to(compute_dtype(boxes.device))
    valid = valid_boxes(work)
    work = torch.where(valid[:, None], work, torch.zeros_like(work))
    half = work[:, 3:6] * 0.5
    half = torch.where(valid[:, None], half, torch.full_like(half, math.nan))
    sin, cos = sincos(work[:, 6])
    area = work[:, 3] * work[:, 4]
    radius = torch.sqrt(half[:, 0] * half[:, 0] + half[:, 1] * half[:, 1])
    columns = (cos, sin, area, area * work[:, 5], torch.where(valid, radius, 0.0))
    return torch.cat((work[:, :3], half, torch.stack(columns, dim=1)), dim=1)


def _clamp(value: Tensor, bound: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(value, -bound), bound)


def _edge_integral(
    x0: Tensor, y0: Tensor, x1: Tensor, y1: Tensor, hx: Tensor, hy: Tensor
) -> Tensor:
    """Integral of clamp(y, -hy, hy) dx along one edge, over the x in [-hx, hx]."""
    left, right = _clamp(x0, hx), _clamp(x1, hx)
    dx, dy = x1 - x0, y1 - y0
    safe_dx = torch.where(dx == 0, 1.0, dx)
    t0 = ((left - x0) / safe_dx).clamp(0.0, 1.0)
    t1 = ((right - x0) / safe_dx).clamp(0.0, 1.0)
    ya, yb = y0 + t0 * dy, y0 + t1 * dy
    low, high = torch.minimum(ya, yb), torch.maximum(ya, yb)
    low_in, high_in = _clamp(low, hy), _clamp(high, hy)
    # How much of the rise lies below, inside and above the band |y| <= hy.
    below = (torch.minimum(high, -hy) - low).clamp(min=0.0)
    above = (high - torch.maximum(low, hy)).clamp(min=0.0)
    inside = high_in - low_in
    rise = high - low
    sloped = (above - below) * hy + inside * (0.5 * (low_in + high_in))
    mean = torch.where(rise > 0, sloped / torch.where(rise > 0, rise, 1.0), low_in)
    return torch.where(dx == 0, 0.0, (right - left) * mean)


def _near(a: Tensor, b: Tensor) -> Tensor:
    """Whether the circles around BEV rectangles overlap; arguments as of overlap_area()."""
    dx, dy = b[..., _X] - a[..., _X], b[..., _Y] - a[..., _Y]
    reach = a[..., _RADIUS] + b[..., _RADIUS]
    return dx * dx + dy * dy < reach * reach


def overlap_area(a: Tensor, b: Tensor) -> Tensor:
    """Area of the intersection of BEV rectangles, m^2.

    Args:
        a: (..., 11) prepared boxes.
        b: (..., 11) prepared boxes, broadcastable with `a`.

    Returns:
        (...), exactly 0 where the rectangles do not overlap or one of them is not valid.
    """
    ahx, ahy, ac, as_ = a[..., _HX], a[..., _HY], a[..., _COSINE], a[..., _SINE]
    bhx, bhy, bc, bs = b[..., _HX], b[..., _HY], b[..., _COSINE], b[..., _SINE]
    dx, dy = b[..., _X] - a[..., _X], b[..., _Y] - a[..., _Y]
    far = ~_near(a, b)
    cx, cy = dx * ac + dy * as_, dy * ac - dx * as_
    cos, sin = ac * bc + as_ * bs, ac * bs - as_ * bc
    ux, uy, vx, vy = cos * bhx, sin * bhx, -(sin * bhy), cos * bhy
    far |= cx.abs() >= ahx + (ux.abs() + vx.abs())
    far |= cy.abs() >= ahy + (uy.abs() + vy.abs())
    far |= (cx * cos + cy * sin).abs() >= bhx + (cos.abs() * ahx + sin.abs() * ahy)
    far |= (cy * cos - cx * sin).abs() >= bhy + (sin.abs() * ahx + cos.abs() * ahy)
    sum_x, sum_y, diff_x, diff_y = ux + vx, uy + vy, ux - vx, uy - vy
    px = (cx + sum_x, cx - diff_x, cx - sum_x, cx + diff_x)
    py = (cy + sum_y, cy - diff_y, cy - sum_y, cy + diff_y)
    area = torch.zeros_like(cx)
    for i in range(4):
        j = (i + 1) % 4
        area = area - _edge_integral(px[i], py[i], px[j], py[j], ahx, ahy)
    most = torch.minimum(a[..., _AREA], b[..., _AREA])
    area = torch.minimum(area.clamp(min=0.0), most)
    return torch.where(far | ~(area > 0), 0.0, area)


def iou(a: Tensor, b: Tensor, *, volume: bool) -> Tensor:
    """IoU of prepared boxes, in [0, 1] and never NaN.

    Args:
        a: (..., 11) prepared boxes.
        b: (..., 11) prepared boxes, broadcastable with `a`.
        volume: Intersect heights too, and divide by the union of volumes.

    Returns:
        (...).
    """
    inter = overlap_area(a, b)
    size_a, size_b = a[..., _AREA], b[..., _AREA]
    if volume:
        dz = b[..., _Z] - a[..., _Z]
        top = torch.minimum(a[..., _HZ], dz + b[..., _HZ])
        bottom = torch.maximum(-a[..., _HZ], dz - b[..., _HZ])
        size_a, size_b = a[..., _VOLUME], b[..., _VOLUME]
        inter = torch.minimum(inter * (top - bottom), torch.minimum(size_a, size_b))
    ratio = inter / ((size_a + size_b) - inter)
    return torch.where((inter > 0) & (ratio > 0), ratio, 0.0)


def boxes_iou(a: Tensor, b: Tensor, volume: bool, dtype: torch.dtype) -> Tensor:
    """Pairwise IoU.

    Args:
        a: (N, 7) boxes.
        b: (M, 7) boxes.
        volume: False for the bird's-eye view, True for 3D.
        dtype: Of the result.

    Returns:
        (N, M).
    """
    pa, pb = prepare(a), prepare(b)
    out = torch.zeros(len(a), len(b), dtype=dtype, device=a.device)
    step = max(1, _PAIRS_PER_BLOCK // max(1, len(b)))
    for start in range(0, len(a), step):
        rows = pa[start : start + step]
        i, j = _near(rows[:, None], pb[None]).nonzero(as_tuple=True)
        out[start + i, j] = iou(rows[i], pb[j], volume=volume).to(dtype)
    return out


def nms(boxes: Tensor, iou_threshold: float) -> Tensor:
    """Greedy suppression of boxes sorted by descending score.

    Args:
        boxes: (N, 7), best first.
        iou_threshold: A box is dropped when its BEV IoU with a kept one is above this.

    Returns:
        (N,) bool, True where the box is kept.
    """
    prepared = prepare(boxes)
    keep = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    candidates = torch.arange(len(boxes), device=boxes.device)
    while len(candidates):
        first, rest = candidates[0], candidates[1:]
        keep[first] = True
        near = _near(prepared[first], prepared[rest]).nonzero().squeeze(1)
        overlap = iou(prepared[first], prepared[rest[near]], volume=False)
        alive = torch.ones_like(rest, dtype=torch.bool)
        alive[near] = overlap <= iou_threshold
        candidates = rest[alive]
    return keep


def points_in_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    """Membership of points in boxes, faces included.

    Args:
        points: (N, >=3), x, y, z first.
        boxes: (M, 7).

    Returns:
        (N, M) bool; False for a point with a NaN or infinite coordinate.
    """
    prepared = prepare(boxes)
    xyz = points[:, :3].to(prepared.dtype)
    out = torch.empty(len(points), len(boxes), dtype=torch.bool, device=points.device)
    step = max(1, _PAIRS_PER_BLOCK // max(1, len(boxes)))
    cos, sin = prepared[:, _COSINE], prepared[:, _SINE]
    for start in range(0, len(points), step):
        offset = xyz[start : start + step, None, :] - prepared[None, :, :3]
        dx, dy, dz = offset.unbind(-1)
        out[start : start + step] = (
            (dz.abs() <= prepared[:, _HZ])
            & ((dx * cos + dy * sin).abs() <= prepared[:, _HX])
            & ((dy * cos - dx * sin).abs() <= prepared[:, _HY])
        )
    return out
