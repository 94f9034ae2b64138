// Grouping rows by index on the CPU: a counting sort whose result no number of threads changes.
#include <algorithm>
#include <atomic>
#include <limits>
#include <vector>

#include "../thread_pool.h"
#include "index_check.h"
#include "pool.h"

namespace voxelpool {

void group_rows_cpu(const int64_t* index, int64_t rows, int64_t groups, uint32_t* order,
                    int64_t* offsets, int threads) {
  // Each part of the rows has its own counters. Parts are few where groups are many.
  const int64_t most = std::min<int64_t>(rows / 8192, 4 * rows / std::max<int64_t>(groups, 1));
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(threads, most));
  const auto begin = [&](int64_t part) { return rows * part / parts; };
  std::vector<uint32_t> counters(parts * groups);
  std::atomic<bool> inside{true};
  run_tasks(parts, threads, [&](int64_t part) {
    uint32_t* counts = counters.data() + part * groups;
    for (int64_t r = begin(part); r < begin(part + 1); ++r) {
      if (static_cast<uint64_t>(index[r]) >= static_cast<uint64_t>(groups)) {
        inside = false;
        return;
      }
      ++counts[index[r]];
    }
  });
  if (!inside) throw_index(index, rows, groups);
  // From counts to the place of the next row of each group and part.
  uint32_t place = 0;
  for (int64_t k = 0; k < groups; ++k) {
    offsets[k] = place;
    for (int64_t part = 0; part < parts; ++part) {
      uint32_t& counter = counters[part * groups + k];
      const uint32_t count = counter;
      counter = place;
      place += count;
    }
  }
  offsets[groups] = place;
  run_tasks(parts, threads, [&](int64_t part) {
    uint32_t* next = counters.data() + part * groups;
    for (int64_t r = begin(part); r < begin(part + 1); ++r) {
      order[next[index[r]]++] = static_cast<uint32_t>(r);
    }
  });
}

void sorted_offsets_cpu(const int64_t* index, int64_t rows, int64_t groups, int64_t* offsets, int) {
  int64_t next = 0;  // the first group whose offset is still open
  for (int64_t r = 0; r < rows; ++r) {
    if (static_cast<uint64_t>(index[r]) >= static_cast<uint64_t>(groups)) {
      throw_index(index, rows, groups);
    }
    if (r > 0 && index[r] < index[r - 1]) {
      fail_index(std::to_string(r), index[r],
                 "at least the entry before it, " + std::to_string(index[r - 1]));
    }
    while (next <= index[r]) offsets[next++] = r;
  }
  while (next <= groups) offsets[next++] = rows;
}

void scatter_keys_cpu(const int64_t* index, int64_t outer, int64_t rows, int64_t inner,
                      int64_t groups, int64_t* keys, int threads) {
  std::atomic<int64_t> wrong{std::numeric_limits<int64_t>::max()};
  const int64_t lines = outer * rows;
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(inner, 1));
  parallel_for(lines, grain, threads, [&](int64_t first, int64_t last) {
    for (int64_t line = first; line < last; ++line) {
      const int64_t base = line / rows * groups;
      for (int64_t i = line * inner; i < (line + 1) * inner; ++i) {
        if (static_cast<uint64_t>(index[i]) >= static_cast<uint64_t>(groups)) {
          int64_t before = wrong.load();
          while (i < before && !wrong.compare_exchange_weak(before, i)) {
          }
          return;
        }
        keys[i] = (base + index[i]) * inner + (i - line * inner);
      }
    }
  });
  const int64_t i = wrong.load();
  if (i == std::numeric_limits<int64_t>::max()) return;
  std::string position = std::to_string(i / inner % rows);
  if (outer > 1) position = std::to_string(i / inner / rows) + ", " + position;
  if (inner > 1) position += ", " + std::to_string(i % inner);
  fail_index(position, index[i], index_range(groups));
}

}  // namespace voxelpool
