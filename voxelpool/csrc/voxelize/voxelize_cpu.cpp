// Key of every point in range, a stable radix sort by key in parallel, then one scan over the
// sorted points. Memory is linear in the points, whatever the grid.
#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../thread_pool.h"
#include "voxelize.h"

namespace voxelpool {

class VoxelizeCpu::Plan {
 public:
  virtual ~Plan() = default;
  virtual void write(int32_t* coords, int64_t* offsets, int64_t* point_index,
                     int threads) const = 0;
  int64_t num_voxels = 0;
  int64_t num_points = 0;
};

namespace {

constexpr int64_t kGrain = 8192;  // points a task must have to be worth a thread
constexpr int kDigitBits = 11;    // a histogram of 2048 counters stays in the first-level cache

// Random number and place, smallest first.
using Draw = std::pair<int64_t, int64_t>;

// The draw up to which `keep` of `draws` are kept. Reorders them.
Draw threshold(std::vector<Draw>& draws, int64_t keep) {
  std::nth_element(draws.begin(), draws.begin() + (keep - 1), draws.end());
  return draws[keep - 1];
}

template <typename Key, typename Index>
class TypedPlan final : public VoxelizeCpu::Plan {
 public:
  TypedPlan(const VoxelizeInput& input, int threads)
      : input_(input), threads_(threads), per_frame_(input.grid.cells_per_frame()) {
    entries_ = allocate(input.n);
    spare_ = allocate(input.n);
    find_keys();
    sort();
    find_groups();
    if (input.max_voxels >= 0) choose_voxels();
    count_kept();
    if (input.batch != nullptr && sampling_) find_places();
    spare_.reset();
  }

  void write(int32_t* coords, int64_t* offsets, int64_t* point_index, int threads) const override {
    offsets[0] = 0;
    const int64_t voxels = num_voxels;
    const int64_t grain = std::max<int64_t>(1, kGrain * voxels / std::max<int64_t>(num_points, 1));
    parallel_for(voxels, grain, threads, [&](int64_t first, int64_t last) {
      std::vector<Draw> draws;
      for (int64_t v = first; v < last; ++v) {
        const int64_t group = group_of_voxel_.empty() ? v : group_of_voxel_[v];
        write_coords(input_.grid, static_cast<int64_t>(entries_[starts_[group]].key),
                     coords + 4 * v);
        offsets[v + 1] = ends_[v];
        write_points(group, v == 0 ? 0 : ends_[v - 1], point_index, draws);
      }
    });
  }

 private:
  struct Entry {
    Key key;
    Index index;
  };
  struct Region {
    int64_t begin;
    int64_t end;
  };
  using Entries = std::unique_ptr<Entry[]>;

  static Entries allocate(int64_t n) { return Entries(new Entry[std::max<int64_t>(n, 1)]); }

  int64_t pieces(int64_t n) const {
    return std::max<int64_t>(1, std::min<int64_t>(threads_, n / kGrain));
  }

  // Fills each region of entries_ with the points in range of one piece of the cloud, in order.
  void find_keys() {
    const int64_t count = pieces(input_.n);
    regions_.resize(count);
    std::vector<int64_t> bad(count, -1);
    run_tasks(count, threads_, [&](int64_t piece) {
      const int64_t first = input_.n * piece / count, last = input_.n * (piece + 1) / count;
      int64_t to = first;
      for (int64_t i = first; i < last; ++i) {
        int64_t frame = 0;
        if (input_.batch != nullptr) {
          frame = input_.batch[i];
          if (frame < 0 || frame >= input_.batch_size) {
            bad[piece] = i;
            return;
          }
        }
        const int64_t cell = point_cell(input_.grid, input_.points + i * input_.stride);
        entries_[to].key = static_cast<Key>(frame * per_frame_ + cell);
        entries_[to].index = static_cast<Index>(i);
        to += cell >= 0;
      }
      regions_[piece] = Region{first, to};
    });
    for (const int64_t i : bad) {
      if (i >= 0) {
        throw std::invalid_argument("batch[" + std::to_string(i) + "] is " +
                                    std::to_string(input_.batch[i]) + ", expected 0 to " +
                                    std::to_string(input_.batch_size - 1) + " (batch_size - 1)");
      }
    }
    for (const Region& region : regions_) size_ += region.end - region.begin;
  }

  void sort() {
    const uint64_t last_key = static_cast<uint64_t>(input_.batch_size * per_frame_ - 1);
    int bits = 1;
    while (bits < 63 && last_key >> bits != 0) ++bits;
    const int passes = (bits + kDigitBits - 1) / kDigitBits;
    const int digit_bits = (bits + passes - 1) / passes;
    for (int pass = 0; pass < passes; ++pass) {
      sort_by_digit(pass * digit_bits, digit_bits);
      std::swap(entries_, spare_);
      const int64_t count = pieces(size_);
      regions_.resize(count);
      for (int64_t p = 0; p < count; ++p) {
        regions_[p] = Region{size_ * p / count, size_ * (p + 1) / count};
      }
    }
  }

  void sort_by_digit(int shift, int digit_bits) {
    const int64_t count = static_cast<int64_t>(regions_.size());
    const int64_t digits = int64_t{1} << digit_bits;
    const Key mask = static_cast<Key>(digits - 1);
    positions_.assign(count * digits, 0);
    run_tasks(count, threads_, [&](int64_t piece) {
      Index* histogram = positions_.data() + piece * digits;
      for (int64_t i = regions_[piece].begin; i < regions_[piece].end; ++i) {
        ++histogram[(entries_[i].key >> shift) & mask];
      }
    });
    Index position = 0;
    for (int64_t digit = 0; digit < digits; ++digit) {
      for (int64_t piece = 0; piece < count; ++piece) {
        Index& slot = positions_[piece * digits + digit];
        const Index here = slot;
        slot = position;
        position += here;
      }
    }
    run_tasks(count, threads_, [&](int64_t piece) {
      Index* next = positions_.data() + piece * digits;
      for (int64_t i = regions_[piece].begin; i < regions_[piece].end; ++i) {
        spare_[next[(entries_[i].key >> shift) & mask]++] = entries_[i];
      }
    });
  }

  bool starts_group(int64_t i) const { return i == 0 || entries_[i].key != entries_[i - 1].key; }

  void find_groups() {
    const int64_t count = pieces(size_);
    std::vector<int64_t> before(count + 1, 0);
    run_tasks(count, threads_, [&](int64_t piece) {
      int64_t groups = 0;
      for (int64_t i = size_ * piece / count; i < size_ * (piece + 1) / count; ++i) {
        groups += starts_group(i);
      }
      before[piece + 1] = groups;
    });
    for (int64_t piece = 0; piece < count; ++piece) before[piece + 1] += before[piece];
    starts_.resize(before[count] + 1);
    starts_[before[count]] = size_;
    run_tasks(count, threads_, [&](int64_t piece) {
      int64_t group = before[piece];
      for (int64_t i = size_ * piece / count; i < size_ * (piece + 1) / count; ++i) {
        if (starts_group(i)) starts_[group++] = i;
      }
    });
  }

  int64_t num_groups() const { return static_cast<int64_t>(starts_.size()) - 1; }

  int64_t key_of_group(int64_t group) const {
    return static_cast<int64_t>(entries_[starts_[group]].key);
  }

  void choose_voxels() {
    const int64_t groups = num_groups();
    const uint64_t stream = random_stream(input_.seed, kVoxelSalt);
    const auto draw = [&](int64_t group) {
      const int64_t cell = key_of_group(group) % per_frame_;
      return Draw(random63(stream, static_cast<uint64_t>(cell)), cell);
    };
    std::vector<int64_t> chosen;
    std::vector<Draw> draws;
    for (int64_t first = 0; first < groups;) {
      const int64_t frame = key_of_group(first) / per_frame_;
      int64_t last = first;
      while (last < groups && key_of_group(last) / per_frame_ == frame) ++last;
      if (last - first <= input_.max_voxels) {
        for (int64_t group = first; group < last; ++group) chosen.push_back(group);
      } else {
        draws.clear();
        for (int64_t group = first; group < last; ++group) draws.push_back(draw(group));
        const Draw most = threshold(draws, input_.max_voxels);
        for (int64_t group = first; group < last; ++group) {
          if (draw(group) <= most) chosen.push_back(group);
        }
      }
      first = last;
    }
    if (static_cast<int64_t>(chosen.size()) < groups) group_of_voxel_ = std::move(chosen);
  }

  void count_kept() {
    num_voxels =
        group_of_voxel_.empty() ? num_groups() : static_cast<int64_t>(group_of_voxel_.size());
    ends_.resize(num_voxels);
    int64_t end = 0;
    for (int64_t v = 0; v < num_voxels; ++v) {
      const int64_t group = group_of_voxel_.empty() ? v : group_of_voxel_[v];
      int64_t points = starts_[group + 1] - starts_[group];
      if (input_.max_points >= 0 && points > input_.max_points) {
        points = input_.max_points;
        sampling_ = true;
      }
      end += points;
      ends_[v] = end;
    }
    num_points = end;
  }

  // The place of each point in its own frame.
  void find_places() {
    std::vector<Index> next(input_.batch_size, 0);
    places_.resize(input_.n);
    for (int64_t i = 0; i < input_.n; ++i) places_[i] = next[input_.batch[i]]++;
  }

  void write_points(int64_t group, int64_t to, int64_t* point_index,
                    std::vector<Draw>& draws) const {
    const int64_t begin = starts_[group], end = starts_[group + 1];
    if (input_.max_points < 0 || end - begin <= input_.max_points) {
      for (int64_t i = begin; i < end; ++i) {
        point_index[to++] = static_cast<int64_t>(entries_[i].index);
      }
      return;
    }
    const uint64_t stream = random_stream(input_.seed, kPointSalt);
    draws.resize(end - begin);
    for (int64_t i = begin; i < end; ++i) {
      const Index index = entries_[i].index;
      const uint64_t place = places_.empty() ? index : places_[index];
      draws[i - begin] = Draw(random63(stream, place), i);
    }
    std::vector<Draw> sorted(draws);
    const Draw most = threshold(sorted, input_.max_points);
    for (int64_t i = begin; i < end; ++i) {
      if (draws[i - begin] <= most) point_index[to++] = static_cast<int64_t>(entries_[i].index);
    }
  }

  VoxelizeInput input_;
  int threads_;
  int64_t per_frame_;
  Entries entries_, spare_;
  int64_t size_ = 0;  // points in range
  std::vector<Region> regions_;
  std::vector<Index> positions_;
  std::vector<int64_t> starts_;          // first entry of each occupied cell, and size_
  std::vector<int64_t> group_of_voxel_;  // empty: every group is a voxel
  std::vector<int64_t> ends_;            // offsets of the output, but for the leading 0
  std::vector<Index> places_;
  bool sampling_ = false;
};

}  // namespace

VoxelizeCpu::VoxelizeCpu(const VoxelizeInput& input, int threads) {
  constexpr int64_t limit = int64_t{1} << 32;
  if (input.n < limit && input.batch_size * input.grid.cells_per_frame() <= limit) {
    plan_ = std::make_unique<TypedPlan<uint32_t, uint32_t>>(input, threads);
  } else {
    plan_ = std::make_unique<TypedPlan<uint64_t, uint64_t>>(input, threads);
  }
}

VoxelizeCpu::~VoxelizeCpu() = default;

int64_t VoxelizeCpu::num_voxels() const { return plan_->num_voxels; }

int64_t VoxelizeCpu::num_points() const { return plan_->num_points; }

void VoxelizeCpu::write(int32_t* coords, int64_t* offsets, int64_t* point_index,
                        int threads) const {
  plan_->write(coords, offsets, point_index, threads);
}

}  // namespace voxelpool
