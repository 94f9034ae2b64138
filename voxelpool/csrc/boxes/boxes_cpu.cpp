#include <algorithm>
#include <cmath>
#include <vector>

#include "boxes.h"
#include "geometry.h"
#include "thread_pool.h"

namespace voxelpool {
namespace {

// Pairs that are worth waking a thread for.
constexpr int64_t kPairsPerTask = 8192;

std::vector<PreparedBox> prepare(const double* boxes, int64_t n) {
  std::vector<PreparedBox> prepared(n);
  for (int64_t i = 0; i < n; ++i) prepared[i] = prepare_box(boxes + i * kBoxColumns);
  return prepared;
}

// Centres and radii side by side, for the loop that rejects most pairs.
struct Circles {
  explicit Circles(const std::vector<PreparedBox>& boxes)
      : x(boxes.size()), y(boxes.size()), radius(boxes.size()) {
    for (size_t i = 0; i < boxes.size(); ++i) {
      x[i] = boxes[i].x;
      y[i] = boxes[i].y;
      radius[i] = boxes[i].radius;
    }
  }
  std::vector<double> x, y, radius;
};

template <typename Out>
void iou_rows(const std::vector<PreparedBox>& a, const std::vector<PreparedBox>& b,
              const Circles& circles, bool volume, Out* out, int64_t begin, int64_t end) {
  const int64_t m = static_cast<int64_t>(b.size());
  std::vector<int64_t> near(m + 1);
  for (int64_t i = begin; i < end; ++i) {
    const PreparedBox& box = a[i];
    int64_t count = 0;
    for (int64_t j = 0; j < m; ++j) {
      near[count] = j;
      count += circles_overlap(circles.x[j] - box.x, circles.y[j] - box.y,
                               box.radius + circles.radius[j]);
    }
    Out* row = out + i * m;
    std::fill(row, row + m, Out(0));
    for (int64_t k = 0; k < count; ++k) {
      const PreparedBox& other = b[near[k]];
      row[near[k]] = static_cast<Out>(volume ? iou_3d(box, other) : iou_bev(box, other));
    }
  }
}

// The boxes kept so far, found by the cells of a hashed grid that they touch: with their bounding
// rectangles or, where the threshold lets them reach less far than that, with the square of their
// reach. A cell's chain runs from the last box added to the first.
class KeptBoxes {
 public:
  KeptBoxes(const std::vector<PreparedBox>& boxes, const Suppression& rule)
      : boxes_(boxes), rule_(rule), share_(std::max(rule.reach, kLeastShare)) {
    std::vector<double> radii;
    radii.reserve(boxes.size());
    for (const PreparedBox& box : boxes) {
      if (box.radius > 0.0) radii.push_back(box.radius);
    }
    if (!radii.empty()) {
      const auto middle = radii.begin() + radii.size() / 2;
      std::nth_element(radii.begin(), middle, radii.end());
      cell_ = 2.0 * std::min(share_, 1.0) * *middle;
    }
    if (rule.threshold > kLeastRanked) {
      ranks_beside_ = 1;
      ranks_per_log_ = 1.0 / std::log(1.0 / std::min(rule.threshold - kSlack, kMostRanked));
    }
    size_t buckets = 64;
    while (buckets < 2 * boxes.size()) buckets *= 2;
    mask_ = buckets - 1;
    heads_.assign(buckets, -1);
  }

  size_t size() const { return all_.size(); }

  void add(int64_t index) {
    all_.push_back(index);
    const Cells cells = cells_of(boxes_[index]);
    if (cells.many) {
      large_.push_back(index);
      return;
    }
    for (int64_t cy = cells.y0; cy <= cells.y1; ++cy) {
      for (int64_t cx = cells.x0; cx <= cells.x1; ++cx) {
        int64_t& head = heads_[bucket(cx, cy, cells.rank)];
        entries_.push_back({index, cx, cy, cells.x0, cells.y0, cells.rank, head});
        head = static_cast<int64_t>(entries_.size()) - 1;
      }
    }
  }

  // Whether a kept box of index `from` or above suppresses box `index`.
  bool suppress(int64_t index, int64_t from) const {
    const PreparedBox& box = boxes_[index];
    const Cells cells = cells_of(box);
    if (cells.many) return any_suppresses(all_, box, from);
    if (any_suppresses(large_, box, from)) return true;
    for (int64_t cy = cells.y0; cy <= cells.y1; ++cy) {
      for (int64_t cx = cells.x0; cx <= cells.x1; ++cx) {
        for (int64_t rank = cells.rank - ranks_beside_; rank <= cells.rank + ranks_beside_;
             ++rank) {
          if (any_in_cell(box, cells, cx, cy, rank, from)) return true;
        }
      }
    }
    return false;
  }

 private:
  struct Cells {
    int64_t x0, y0, x1, y1;
    int64_t rank;
    bool many;
  };
  struct Entry {
    int64_t index, cx, cy, x0, y0, rank, next;
  };

  static constexpr double kMostCells = 64.0;
  static constexpr double kFarthestCell = 1e15;
  static constexpr double kLeastShare = 1e-3;  // smaller cells would find nothing more
  static constexpr double kLeastRanked = 0.1;  // a lower threshold tells few areas apart
  static constexpr double kMostRanked = 0.99;

  Cells cells_of(const PreparedBox& box) const {
    if (!(box.area > 0.0)) return {0, 0, -1, -1, 0, false};  // overlaps nothing
    const double c = std::fabs(box.cos), s = std::fabs(box.sin);
    double ex = share_ * box.radius, ey = ex;
    if (share_ >= 1.0) {
      ex = c * box.hx + s * box.hy;
      ey = s * box.hx + c * box.hy;
    }
    // The margin covers the rounding of the extent and of its ends.
    ex = ex * (1.0 + 1e-9) + std::fabs(box.x) * 1e-15;
    ey = ey * (1.0 + 1e-9) + std::fabs(box.y) * 1e-15;
    const double x0 = std::floor((box.x - ex) / cell_), x1 = std::floor((box.x + ex) / cell_);
    const double y0 = std::floor((box.y - ey) / cell_), y1 = std::floor((box.y + ey) / cell_);
    const bool few = (x1 - x0 + 1.0) * (y1 - y0 + 1.0) <= kMostCells && x0 > -kFarthestCell &&
                     x1 < kFarthestCell && y0 > -kFarthestCell && y1 < kFarthestCell;
    if (!few) return {0, 0, -1, -1, 0, true};
    return {static_cast<int64_t>(x0),
            static_cast<int64_t>(y0),
            static_cast<int64_t>(x1),
            static_cast<int64_t>(y1),
            rank_of(box),
            false};
  }

  // Boxes of a rank have like areas: where one suppresses the other, the ratio of their areas is
  // above the threshold, and their ranks are neighbours.
  int64_t rank_of(const PreparedBox& box) const {
    if (ranks_beside_ == 0) return 0;
    return static_cast<int64_t>(std::floor(std::log(std::min(box.area, 1e300)) * ranks_per_log_));
  }

  bool any_in_cell(const PreparedBox& box, const Cells& cells, int64_t cx, int64_t cy, int64_t rank,
                   int64_t from) const {
    for (int64_t e = heads_[bucket(cx, cy, rank)]; e >= 0; e = entries_[e].next) {
      const Entry& entry = entries_[e];
      if (entry.index < from) break;
      // Two boxes share several cells; their lowest common one decides.
      if (entry.cx != cx || entry.cy != cy || entry.rank != rank ||
          std::max(entry.x0, cells.x0) != cx || std::max(entry.y0, cells.y0) != cy) {
        continue;
      }
      if (suppresses(boxes_[entry.index], box, rule_)) return true;
    }
    return false;
  }

  size_t bucket(int64_t cx, int64_t cy, int64_t rank) const {
    const uint64_t row =
        static_cast<uint64_t>(cy) + static_cast<uint64_t>(rank) * 0xD6E8FEB86659FD93ull;
    return mix64(static_cast<uint64_t>(cx) * 0x9E3779B97F4A7C15ull + row) & mask_;
  }

  bool any_suppresses(const std::vector<int64_t>& indices, const PreparedBox& box,
                      int64_t from) const {
    for (auto i = indices.rbegin(); i != indices.rend() && *i >= from; ++i) {
      if (suppresses(boxes_[*i], box, rule_)) return true;
    }
    return false;
  }

  const std::vector<PreparedBox>& boxes_;
  const Suppression rule_;
  const double share_;  // of its radius that a box reaches
  double cell_ = 1.0;
  int64_t ranks_beside_ = 0;
  double ranks_per_log_ = 0.0;
  uint64_t mask_ = 0;
  std::vector<int64_t> heads_;
  std::vector<Entry> entries_;
  std::vector<int64_t> all_, large_;  // ascending
};

template <typename Point>
void membership_rows(const Point* points, int64_t stride, const std::vector<PreparedBox>& boxes,
                     bool* inside, int64_t begin, int64_t end) {
  const int64_t m = static_cast<int64_t>(boxes.size());
  for (int64_t i = begin; i < end; ++i) {
    const Point* point = points + i * stride;
    const double x = point[0], y = point[1], z = point[2];
    for (int64_t j = 0; j < m; ++j) inside[i * m + j] = point_in_box(x, y, z, boxes[j]);
  }
}

int64_t rows_per_task(int64_t m) {
  return std::max<int64_t>(1, kPairsPerTask / std::max<int64_t>(1, m));
}

}  // namespace

int64_t first_invalid_box_cpu(const double* boxes, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    if (!box_is_valid(boxes + i * kBoxColumns)) return i;
  }
  return -1;
}

void boxes_iou_cpu(const double* a, int64_t n, const double* b, int64_t m, bool volume, void* out,
                   bool out_is_double, int threads) {
  if (n == 0 || m == 0) return;
  const std::vector<PreparedBox> pa = prepare(a, n), pb = prepare(b, m);
  const Circles circles(pb);
  parallel_for(n, rows_per_task(m), threads, [&](int64_t begin, int64_t end) {
    if (out_is_double) {
      iou_rows(pa, pb, circles, volume, static_cast<double*>(out), begin, end);
    } else {
      iou_rows(pa, pb, circles, volume, static_cast<float*>(out), begin, end);
    }
  });
}

void nms_cpu(const double* boxes, int64_t n, double threshold, bool* keep, int threads) {
  // Boxes are taken a block at a time: all threads compare the block with what was kept before it,
  // then one compares its survivors with each other, in order.
  constexpr int64_t kBlock = 1024;
  if (threshold >= 1.0) {  // no IoU is above it
    std::fill(keep, keep + n, true);
    return;
  }
  const std::vector<PreparedBox> prepared = prepare(boxes, n);
  KeptBoxes kept(prepared, suppression_above(threshold));
  for (int64_t start = 0; start < n; start += kBlock) {
    const int64_t stop = std::min(n, start + kBlock);
    std::fill(keep + start, keep + stop, true);
    if (kept.size() > 0) {
      parallel_for(stop - start, 64, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = start + begin; i < start + end; ++i) {
          keep[i] = !kept.suppress(i, 0);
        }
      });
    }
    for (int64_t i = start; i < stop; ++i) {
      keep[i] = keep[i] && !kept.suppress(i, start);
      if (keep[i]) kept.add(i);
    }
  }
}

void points_in_boxes_cpu(const void* points, bool points_are_double, int64_t n, int64_t stride,
                         const double* boxes, int64_t m, bool* inside, int threads) {
  if (n == 0 || m == 0) return;
  const std::vector<PreparedBox> prepared = prepare(boxes, m);
  parallel_for(n, rows_per_task(m), threads, [&](int64_t begin, int64_t end) {
    if (points_are_double) {
      membership_rows(static_cast<const double*>(points), stride, prepared, inside, begin, end);
    } else {
      membership_rows(static_cast<const float*>(points), stride, prepared, inside, begin, end);
    }
  });
}

}  // namespace voxelpool
