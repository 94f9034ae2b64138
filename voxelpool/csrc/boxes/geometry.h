// Upright boxes seen from above: the arithmetic that decides overlaps, suppression and membership,
// shared by CPU and CUDA. ops/reference/boxes.py holds the same operations in the same order, so
// all three agree to the last bit; a change here is a change there.
//
// Everything is double. Nothing here is sin, cos or a fused multiply-add, which round differently
// from one platform to the next.
#pragma once

#include <math.h>

#include <cstdint>

#include "common.h"

namespace voxelpool {

constexpr int kBoxColumns = 7;  // x, y, z, dx, dy, dz, yaw

// What pairwise loops need of a box, computed once. An invalid box (a number that is not finite, a
// negative size) has NaN half sizes and no extent: it overlaps nothing and holds no point.
struct PreparedBox {
  double x, y, z;
  double hx, hy, hz;  // half sizes
  double cos, sin;
  double area, volume;
  double radius;  // half the diagonal seen from above
};

VP_HOST_DEVICE double lesser(double a, double b) { return b < a ? b : a; }
VP_HOST_DEVICE double greater(double a, double b) { return b > a ? b : a; }
VP_HOST_DEVICE double clamp(double value, double bound) {
  return lesser(greater(value, -bound), bound);
}
VP_HOST_DEVICE double unit_clamp(double value) { return lesser(greater(value, 0.0), 1.0); }

// Taylor polynomials on [-pi/4, pi/4]; their remainders are below half an ulp.
VP_HOST_DEVICE void sincos_portable(double angle, double* sin_out, double* cos_out) {
  constexpr double kTwoOverPi = 0.6366197723675814;
  constexpr double kTwoPi = 6.283185307179586;
  // pi/2 in three parts, so that k * part is exact.
  constexpr double kHalfPi1 = 1.5707963267341256;
  constexpr double kHalfPi2 = 6.077100506303966e-11;
  constexpr double kHalfPi3 = 2.0222662487959506e-21;
  if (fabs(angle) > 1e5) angle = fmod(angle, kTwoPi);
  const double k = rint(angle * kTwoOverPi);
  const double r = ((angle - k * kHalfPi1) - k * kHalfPi2) - k * kHalfPi3;
  const double z = r * r;
  double p = 1.0 / 355687428096000.0;
  p = p * z + -1.0 / 1307674368000.0;
  p = p * z + 1.0 / 6227020800.0;
  p = p * z + -1.0 / 39916800.0;
  p = p * z + 1.0 / 362880.0;
  p = p * z + -1.0 / 5040.0;
  p = p * z + 1.0 / 120.0;
  p = p * z + -1.0 / 6.0;
  double q = -1.0 / 6402373705728000.0;
  q = q * z + 1.0 / 20922789888000.0;
  q = q * z + -1.0 / 87178291200.0;
  q = q * z + 1.0 / 479001600.0;
  q = q * z + -1.0 / 3628800.0;
  q = q * z + 1.0 / 40320.0;
  q = q * z + -1.0 / 720.0;
  q = q * z + 1.0 / 24.0;
  const double s = r + r * z * p;
  const double c = (1.0 - 0.5 * z) + z * z * q;
  const int quadrant = static_cast<int>(k - 4.0 * floor(k * 0.25));
  const bool odd = (quadrant & 1) != 0;
  const double sine = odd ? c : s;
  const double cosine = odd ? s : c;
  *sin_out = quadrant >= 2 ? -sine : sine;
  *cos_out = (quadrant == 1 || quadrant == 2) ? -cosine : cosine;
}

VP_HOST_DEVICE bool box_is_valid(const double* box) {
  bool valid = true;
  // x - x is 0 for a finite x and NaN for any other.
  for (int i = 0; i < kBoxColumns; ++i) valid = valid && box[i] - box[i] == 0.0;
  return valid && box[3] >= 0.0 && box[4] >= 0.0 && box[5] >= 0.0;
}

VP_HOST_DEVICE PreparedBox prepare_box(const double* box) {
  if (!box_is_valid(box)) {
    return PreparedBox{0.0, 0.0, 0.0, NAN, NAN, NAN, 1.0, 0.0, 0.0, 0.0, 0.0};
  }
  PreparedBox out;
  out.x = box[0];
  out.y = box[1];
  out.z = box[2];
  out.hx = box[3] * 0.5;
  out.hy = box[4] * 0.5;
  out.hz = box[5] * 0.5;
  sincos_portable(box[6], &out.sin, &out.cos);
  out.area = box[3] * box[4];
  out.volume = out.area * box[5];
  out.radius = sqrt(out.hx * out.hx + out.hy * out.hy);
  return out;
}

VP_HOST_DEVICE bool circles_overlap(double dx, double dy, double reach) {
  return dx * dx + dy * dy < reach * reach;
}

// Box b as seen from box a: centre, and half edges u (along b's length) and v (along its width).
struct RelativeBox {
  double cx, cy, cos, sin;
  double ux, uy, vx, vy;
};

VP_HOST_DEVICE RelativeBox relative_box(const PreparedBox& a, const PreparedBox& b) {
  const double dx = b.x - a.x, dy = b.y - a.y;
  RelativeBox r;
  r.cx = dx * a.cos + dy * a.sin;
  r.cy = dy * a.cos - dx * a.sin;
  r.cos = a.cos * b.cos + a.sin * b.sin;
  r.sin = a.cos * b.sin - a.sin * b.cos;
  r.ux = r.cos * b.hx;
  r.uy = r.sin * b.hx;
  r.vx = -(r.sin * b.hy);
  r.vy = r.cos * b.hy;
  return r;
}

// Separating axes: the four edge directions are enough for two rectangles.
VP_HOST_DEVICE bool separated(const PreparedBox& a, const PreparedBox& b, const RelativeBox& r) {
  const double c = fabs(r.cos), s = fabs(r.sin);
  return fabs(r.cx) >= a.hx + (fabs(r.ux) + fabs(r.vx)) ||
         fabs(r.cy) >= a.hy + (fabs(r.uy) + fabs(r.vy)) ||
         fabs(r.cx * r.cos + r.cy * r.sin) >= b.hx + (c * a.hx + s * a.hy) ||
         fabs(r.cy * r.cos - r.cx * r.sin) >= b.hy + (s * a.hx + c * a.hy);
}

// Integral of clamp(y, -hy, hy) dx along one edge, over the x in [-hx, hx].
VP_HOST_DEVICE double edge_integral(double x0, double y0, double x1, double y1, double hx,
                                    double hy) {
  const double left = clamp(x0, hx), right = clamp(x1, hx);
  const double dx = x1 - x0, dy = y1 - y0;
  if (dx == 0.0 || left == right) return 0.0;
  const double t0 = unit_clamp((left - x0) / dx), t1 = unit_clamp((right - x0) / dx);
  const double ya = y0 + t0 * dy, yb = y0 + t1 * dy;
  const double low = lesser(ya, yb), high = greater(ya, yb);
  const double low_in = clamp(low, hy), high_in = clamp(high, hy);
  // How much of the rise lies below, inside and above the band |y| <= hy.
  const double below = greater(lesser(high, -hy) - low, 0.0);
  const double above = greater(high - greater(low, hy), 0.0);
  const double inside = high_in - low_in;
  const double rise = high - low;
  const double sloped = (above - below) * hy + inside * (0.5 * (low_in + high_in));
  const double mean = rise > 0.0 ? sloped / rise : low_in;
  return (right - left) * mean;
}

// Area of the intersection of two rectangles, from Green's theorem in a's frame: a is axis-aligned
// there, so the part of b inside it is bounded by b's four edges with x and y clamped to a. No list
// of vertices, and no case for parallel, touching, equal or contained boxes.
VP_HOST_DEVICE double clipped_area(const PreparedBox& a, const PreparedBox& b,
                                   const RelativeBox& r) {
  const double sum_x = r.ux + r.vx, sum_y = r.uy + r.vy;
  const double diff_x = r.ux - r.vx, diff_y = r.uy - r.vy;
  const double px[4] = {r.cx + sum_x, r.cx - diff_x, r.cx - sum_x, r.cx + diff_x};
  const double py[4] = {r.cy + sum_y, r.cy - diff_y, r.cy - sum_y, r.cy + diff_y};
  double area = 0.0;
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int i = 0; i < 4; ++i) {
    const int j = (i + 1) & 3;
    area = area - edge_integral(px[i], py[i], px[j], py[j], a.hx, a.hy);
  }
  return lesser(greater(area, 0.0), lesser(a.area, b.area));
}

VP_HOST_DEVICE double overlap_area(const PreparedBox& a, const PreparedBox& b) {
  if (!circles_overlap(b.x - a.x, b.y - a.y, a.radius + b.radius)) return 0.0;
  const RelativeBox r = relative_box(a, b);
  if (separated(a, b, r)) return 0.0;
  return clipped_area(a, b, r);
}

// inter / union, 0 where that is no number.
VP_HOST_DEVICE double overlap_ratio(double inter, double size_a, double size_b) {
  if (!(inter > 0.0)) return 0.0;
  const double ratio = inter / ((size_a + size_b) - inter);
  return ratio > 0.0 ? ratio : 0.0;
}

VP_HOST_DEVICE double iou_bev(const PreparedBox& a, const PreparedBox& b) {
  return overlap_ratio(overlap_area(a, b), a.area, b.area);
}

VP_HOST_DEVICE double iou_3d(const PreparedBox& a, const PreparedBox& b) {
  const double dz = b.z - a.z;
  const double height = lesser(a.hz, dz + b.hz) - greater(-a.hz, dz - b.hz);
  if (!(height > 0.0)) return 0.0;
  const double inter = lesser(overlap_area(a, b) * height, lesser(a.volume, b.volume));
  return overlap_ratio(inter, a.volume, b.volume);
}

// When one box suppresses another: their IoU is above `threshold`. Then their centres are closer
// than `reach` times the larger radius. For with an intersection of area I and centroid g, the rest
// of a balances it about a's centre, so that |g - a| <= (area(a) - I) / I * radius(a); likewise for
// b; and the two shares add up to union / I - 1.
struct Suppression {
  double threshold;
  double reach;
  double share;  // of the sum of both areas that the intersection is above
};

// The slack keeps bounds above what rounding makes of an exact IoU.
constexpr double kSlack = 1e-9;

VP_HOST_DEVICE Suppression suppression_above(double threshold) {
  const double least = greater(threshold - kSlack, 1e-3);
  return Suppression{threshold, (1.0 / least - 1.0) * (1.0 + kSlack),
                     threshold / (1.0 + threshold)};
}

// iou_bev(a, b) > threshold, mostly without computing it: the intersection is no larger than the
// smaller box, than b's bounding rectangle cut to a, or than where a strip of a crosses one of b.
VP_HOST_DEVICE bool suppresses(const PreparedBox& a, const PreparedBox& b,
                               const Suppression& rule) {
  const double dx = b.x - a.x, dy = b.y - a.y;
  const double reach = lesser(a.radius + b.radius, rule.reach * greater(a.radius, b.radius));
  const double least = lesser(a.area, b.area), most = greater(a.area, b.area);
  if (!circles_overlap(dx, dy, reach) || least * (1.0 + kSlack) <= rule.threshold * most) {
    return false;
  }
  const RelativeBox r = relative_box(a, b);
  const double enough = rule.share * (a.area + b.area) - kSlack * least;
  const double ex = fabs(r.ux) + fabs(r.vx), ey = fabs(r.uy) + fabs(r.vy);
  const double width = lesser(a.hx, r.cx + ex) - greater(-a.hx, r.cx - ex);
  const double height = lesser(a.hy, r.cy + ey) - greater(-a.hy, r.cy - ey);
  const double same = 4.0 * lesser(a.hx * b.hx, a.hy * b.hy);
  const double other = 4.0 * lesser(a.hx * b.hy, a.hy * b.hx);
  if (width * height <= enough || same <= enough * fabs(r.sin) || other <= enough * fabs(r.cos)) {
    return false;
  }
  if (separated(a, b, r)) return false;
  return overlap_ratio(clipped_area(a, b, r), a.area, b.area) > rule.threshold;
}

VP_HOST_DEVICE bool point_in_box(double x, double y, double z, const PreparedBox& box) {
  const double dx = x - box.x, dy = y - box.y, dz = z - box.z;
  return fabs(dz) <= box.hz && fabs(dx * box.cos + dy * box.sin) <= box.hx &&
         fabs(dy * box.cos - dx * box.sin) <= box.hy;
}

}  // namespace voxelpool
