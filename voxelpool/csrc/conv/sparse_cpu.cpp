// Convolutions between lists of cells. Cells in order make lookups a walk: while the output cells
// go up, what one line of taps reads goes up too, so each line of taps keeps its place in the list.
#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "../compiler.h"
#include "../thread_pool.h"
#include "conv.h"

namespace voxelpool {
namespace {

constexpr int64_t kGrain = 4096;     // cells that a task takes
constexpr int64_t kLinesATask = 64;  // lines of output cells that a task takes

// A map's cells, numbered ((frame * D + z) * H + y) * W + x.
struct Map {
  const int64_t* size;  // z, y, x
  int64_t line(int64_t frame, int64_t z, int64_t y) const {
    return ((frame * size[0] + z) * size[1] + y) * size[2];
  }
};

std::string cell_text(const int32_t* cell) {
  std::string text = "(";
  for (int axis = 0; axis < 4; ++axis) text += (axis ? ", " : "") + std::to_string(cell[axis]);
  return text + ")";
}

// Throws unless cell n lies in the map and behind cell n - 1; returns its number.
VP_INLINE int64_t checked_key(const char* name, const Cells& cells, int64_t n, int64_t batch,
                              const Map& map, int64_t previous) {
  const int32_t* cell = cells.coords + 4 * n;
  const bool inside = cell[0] >= 0 && cell[0] < batch && cell[1] >= 0 && cell[1] < map.size[0] &&
                      cell[2] >= 0 && cell[2] < map.size[1] && cell[3] >= 0 &&
                      cell[3] < map.size[2];
  const auto where = [&] { return std::string(name) + "[" + std::to_string(n) + "] is "; };
  if (!inside) {
    throw std::out_of_range(where() + cell_text(cell) + ", beyond " + std::to_string(batch) +
                            " frames of (" + std::to_string(map.size[0]) + ", " +
                            std::to_string(map.size[1]) + ", " + std::to_string(map.size[2]) +
                            ") cells (z, y, x)");
  }
  const int64_t key = map.line(cell[0], cell[1], cell[2]) + cell[3];
  if (key <= previous) {
    throw std::invalid_argument(where() + cell_text(cell) +
                                ", not behind the cell before it: cells must be sorted by frame, "
                                "z, y, x, and each be there once");
  }
  return key;
}

// Calls take(n, number) for all cells, which are checked.
template <typename Take>
void for_keys(const char* name, const Cells& cells, int64_t batch, const Map& map, int threads,
              const Take& take) {
  parallel_for(cells.count, kGrain, threads, [&](int64_t begin, int64_t end) {
    int64_t previous = -1;
    if (begin > 0) {
      const int32_t* cell = cells.coords + 4 * (begin - 1);
      previous = map.line(cell[0], cell[1], cell[2]) + cell[3];
    }
    for (int64_t n = begin; n < end; ++n) {
      previous = checked_key(name, cells, n, batch, map, previous);
      take(n, previous);
    }
  });
}

// The numbers of the cells, and a last one that is larger than all.
std::vector<int64_t> make_keys(const Cells& cells, int64_t batch, const Map& map, int threads) {
  std::vector<int64_t> keys(cells.count + 1);
  keys.back() = std::numeric_limits<int64_t>::max();
  for_keys("coords", cells, batch, map, threads, [&](int64_t n, int64_t key) { keys[n] = key; });
  return keys;
}

// A place in the list of numbers that only goes up.
class Cursor {
 public:
  // The first number that is not below `key`.
  VP_INLINE const int64_t* seek(const std::vector<int64_t>& keys, int64_t key) {
    if (at_ == nullptr) at_ = &*std::lower_bound(keys.begin(), keys.end() - 1, key);
    // Most steps are short: two that are no branches, then as many as it takes.
    at_ += *at_ < key;
    at_ += *at_ < key;
    while (*at_ < key) ++at_;
    return at_;
  }

 private:
  const int64_t* at_ = nullptr;
};

int64_t floor_divide(int64_t a, int64_t b) { return a / b - (a % b != 0 && a < 0); }

// The output cells first to last along an axis that see the cell `at`; none where last < first.
struct Range {
  int64_t first, last;
  Range(const ConvShape& shape, int axis, int64_t at)
      : first(floor_divide(at + shape.padding[axis] - shape.kernel[axis], shape.stride[axis]) + 1),
        last(floor_divide(at + shape.padding[axis], shape.stride[axis])) {
    first = std::max<int64_t>(first, 0);
    last = std::min(last, shape.out[axis] - 1);
  }
};

// The lines of output cells that see a cell, as numbers (frame * D' + z) * H' + y in order.
std::vector<int64_t> reached_lines(const Cells& cells, int64_t batch, const ConvShape& shape) {
  std::vector<uint64_t> bits((batch * shape.out[0] * shape.out[1] + 63) / 64);
  for (int64_t n = 0; n < cells.count; ++n) {
    const int32_t* cell = cells.coords + 4 * n;
    if (n > 0 && std::equal(cell, cell + 3, cell - 4)) continue;
    const Range zs(shape, 0, cell[1]), ys(shape, 1, cell[2]);
    for (int64_t z = zs.first; z <= zs.last; ++z) {
      for (int64_t y = ys.first; y <= ys.last; ++y) {
        const int64_t line = (cell[0] * shape.out[0] + z) * shape.out[1] + y;
        bits[line / 64] |= uint64_t{1} << (line % 64);
      }
    }
  }
  std::vector<int64_t> lines;
  for (size_t w = 0; w < bits.size(); ++w) {
    for (uint64_t rest = bits[w]; rest != 0; rest &= rest - 1) {
      lines.push_back(static_cast<int64_t>(64 * w) + __builtin_ctzll(rest));
    }
  }
  return lines;
}

}  // namespace

void sparse_table_cpu(const Cells& cells, const Cells& out_cells, int64_t batch,
                      const ConvShape& shape, int32_t* table, int threads) {
  const int64_t *in = shape.in, *kernel = shape.kernel;
  const int64_t taps = kernel[0] * kernel[1] * kernel[2];
  const Map map{in};
  const std::vector<int64_t> keys = make_keys(cells, batch, map, threads);
  for_keys("out_coords", out_cells, batch, Map{shape.out}, threads, [](int64_t, int64_t) {});
  parallel_for(out_cells.count, kGrain, threads, [&](int64_t begin, int64_t end) {
    const int64_t* const numbers = keys.data();
    const int64_t lines = kernel[0] * kernel[1], width = kernel[2];
    std::vector<Cursor> cursors(lines);
    int32_t* to = table + begin * taps;
    for (int64_t n = begin; n < end; ++n) {
      const int32_t* cell = out_cells.coords + 4 * n;
      int64_t corner[3];
      for (int axis = 0; axis < 3; ++axis) {
        corner[axis] = cell[axis + 1] * shape.stride[axis] - shape.padding[axis];
      }
      // No farther than the line's end, where the next one begins.
      const int64_t low = std::min(std::max<int64_t>(corner[2], 0), in[2]);
      const int64_t inside = std::min(width, std::max<int64_t>(in[2] - corner[2], 0));
      Cursor* cursor = cursors.data();
      for (int64_t z = corner[0]; z < corner[0] + kernel[0]; ++z) {
        for (int64_t y = corner[1]; y < corner[1] + kernel[1]; ++y, ++cursor) {
          if (z < 0 || z >= in[0] || y < 0 || y >= in[1]) {
            to = std::fill_n(to, width, -1);
            continue;
          }
          const int64_t line = map.line(cell[0], z, y);
          int64_t row = cursor->seek(keys, line + low) - numbers;
          int64_t key = line + corner[2];
          for (const int32_t* const last = to + inside; to != last; ++key) {
            const int64_t found = numbers[row] == key;
            *to++ = static_cast<int32_t>(row | (found - 1));  // -1 where there is none
            row += found;
          }
          to = std::fill_n(to, width - inside, -1);
        }
      }
    }
  });
}

SparseReachCpu::SparseReachCpu(const Cells& cells, int64_t batch, const ConvShape& shape,
                               int threads) {
  const Map map{shape.in};
  const std::vector<int64_t> keys = make_keys(cells, batch, map, threads);
  const std::vector<int64_t> lines = reached_lines(cells, batch, shape);
  const int64_t count = static_cast<int64_t>(lines.size());
  const int64_t tasks = (count + kLinesATask - 1) / kLinesATask;
  pieces_.resize(tasks);
  run_tasks(tasks, threads, [&](int64_t task) {
    std::vector<Cursor> cursors(shape.kernel[0] * shape.kernel[1]);
    std::vector<uint64_t> bits((shape.out[2] + 63) / 64);
    std::vector<int32_t>& coords = pieces_[task];
    const int64_t end = std::min(count, (task + 1) * kLinesATask);
    for (int64_t n = task * kLinesATask; n < end; ++n) {
      const int64_t y_out = lines[n] % shape.out[1], above = lines[n] / shape.out[1];
      const int64_t z_out = above % shape.out[0], frame = above / shape.out[0];
      std::fill(bits.begin(), bits.end(), 0);
      for (int64_t tap = 0; tap < static_cast<int64_t>(cursors.size()); ++tap) {
        const int64_t z = z_out * shape.stride[0] - shape.padding[0] + tap / shape.kernel[1];
        const int64_t y = y_out * shape.stride[1] - shape.padding[1] + tap % shape.kernel[1];
        if (z < 0 || z >= shape.in[0] || y < 0 || y >= shape.in[1]) continue;
        const int64_t line = map.line(frame, z, y);
        for (const int64_t* key = cursors[tap].seek(keys, line); *key < line + shape.in[2]; ++key) {
          const Range xs(shape, 2, *key - line);
          for (int64_t x = xs.first; x <= xs.last; ++x) bits[x / 64] |= uint64_t{1} << (x % 64);
        }
      }
      for (size_t w = 0; w < bits.size(); ++w) {
        for (uint64_t rest = bits[w]; rest != 0; rest &= rest - 1) {
          const int64_t x = static_cast<int64_t>(64 * w) + __builtin_ctzll(rest);
          for (const int64_t value : {frame, z_out, y_out, x}) {
            coords.push_back(static_cast<int32_t>(value));
          }
        }
      }
    }
  });
}

int64_t SparseReachCpu::count() const {
  int64_t numbers = 0;
  for (const auto& piece : pieces_) numbers += static_cast<int64_t>(piece.size());
  return numbers / 4;
}

void SparseReachCpu::write(int32_t* coords) const {
  for (const auto& piece : pieces_) coords = std::copy(piece.begin(), piece.end(), coords);
}

}  // namespace voxelpool
