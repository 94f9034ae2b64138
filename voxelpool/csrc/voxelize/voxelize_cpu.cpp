// Number the occupied cells in order, then one stable counting sort by that number.
//
// The numbering is a bitmap of cells: the number of a cell is how many bits are set below its own.
// Where there are far more cells than points, the leading bits of the keys are numbered first,
// which makes the keys shorter, until the rest fits. So memory is linear in the points, whatever
// the grid.
#include <algorithm>
#include <atomic>
#include <memory>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "../compiler.h"
#include "../thread_pool.h"
#include "point_keys.h"

#if defined(VP_X86)
#define VP_POPCNT __attribute__((target("popcnt,bmi,bmi2")))
#endif

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

constexpr int64_t kGrain = 65536;        // points a task must have to be worth a thread
constexpr int64_t kMostPieces = 8;       // each holds a counter a voxel
constexpr uint64_t kCellsPerPoint = 64;  // cells that the bitmap may have for each point
constexpr uint64_t kLeastCells = 1 << 15;

using Word = std::atomic<uint64_t>;

template <typename T>
std::unique_ptr<T[]> allocate(int64_t n) {
  return std::unique_ptr<T[]>(new T[std::max<int64_t>(n, 1)]);
}

// The bits that are set for the codes of some points, each without its lowest `shift` bits, and the
// number of bits set before each word.
template <typename Index>
struct Bitmap {
  void clear() { std::uninitialized_value_construct_n(bits, words); }

  Word* bits;
  Index* before;
  int64_t words;
  int shift;
};

template <typename Key, typename Index>
void set_bits(const Bitmap<Index>& bitmap, const Key* codes, int64_t n, bool alone) {
  constexpr auto relaxed = std::memory_order_relaxed;
  for (int64_t i = 0; i < n; ++i) {
    const Key code = codes[i] >> bitmap.shift;
    Word& word = bitmap.bits[code / 64];
    const uint64_t bit = uint64_t{1} << (code % 64), old = word.load(relaxed);
    if (alone) {
      word.store(old | bit, relaxed);
    } else if ((old & bit) == 0) {
      word.fetch_or(bit, relaxed);
    }
  }
}

template <typename Key, typename Index>
VP_INLINE Key rank_of(const Bitmap<Index>& bitmap, Key code) {
  const uint64_t word = bitmap.bits[code / 64].load(std::memory_order_relaxed);
  const uint64_t below = word & ((uint64_t{1} << (code % 64)) - 1);
  return static_cast<Key>(bitmap.before[code / 64] + __builtin_popcountll(below));
}

// Replaces the leading bits of each code by their rank.
template <typename Key, typename Index>
VP_INLINE void shorten_body(const Bitmap<Index>& bitmap, Key* codes, int64_t n) {
  const Key mask = (Key{1} << bitmap.shift) - 1;
  for (int64_t i = 0; i < n; ++i) {
    const Key rank = rank_of<Key>(bitmap, codes[i] >> bitmap.shift);
    codes[i] = (rank << bitmap.shift) | (codes[i] & mask);
  }
}

// Replaces each code by its rank and counts the codes of each rank.
template <typename Key, typename Index>
VP_INLINE void count_body(const Bitmap<Index>& bitmap, Key* codes, int64_t n, Index* counts) {
  for (int64_t i = 0; i < n; ++i) {
    const Key rank = rank_of<Key>(bitmap, codes[i]);
    codes[i] = rank;
    ++counts[rank];
  }
}

#ifdef VP_POPCNT
// The same with the instruction that counts bits, which the oldest processors lack.
template <typename Key, typename Index>
VP_POPCNT void shorten_popcnt(const Bitmap<Index>& bitmap, Key* codes, int64_t n) {
  shorten_body(bitmap, codes, n);
}

template <typename Key, typename Index>
VP_POPCNT void count_popcnt(const Bitmap<Index>& bitmap, Key* codes, int64_t n, Index* counts) {
  count_body(bitmap, codes, n, counts);
}

bool has_popcnt() {
  static const bool has = __builtin_cpu_supports("popcnt") && __builtin_cpu_supports("bmi") &&
                          __builtin_cpu_supports("bmi2");
  return has;
}
#endif

template <typename Key, typename Index>
void shorten(const Bitmap<Index>& bitmap, Key* codes, int64_t n) {
#ifdef VP_POPCNT
  if (has_popcnt()) return shorten_popcnt(bitmap, codes, n);
#endif
  shorten_body(bitmap, codes, n);
}

template <typename Key, typename Index>
void count(const Bitmap<Index>& bitmap, Key* codes, int64_t n, Index* counts) {
#ifdef VP_POPCNT
  if (has_popcnt()) return count_popcnt(bitmap, codes, n, counts);
#endif
  count_body(bitmap, codes, n, counts);
}

// Memory that one call leaves for the next, which then need not wait for fresh pages. Whoever comes
// while it is taken, another thread or a child forked meanwhile, gets a block of his own.
class Scratch {
 public:
  explicit Scratch(size_t bytes) {
    block_.reset(spare_.exchange(nullptr));
    if (block_ == nullptr || block_->size < bytes) block_ = std::make_unique<Block>(bytes);
  }
  ~Scratch() {
    if (block_ != nullptr && block_->size <= kMostKept) delete spare_.exchange(block_.release());
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // What take() takes: whole cache lines.
  template <typename T>
  static size_t bytes(int64_t n) {
    return (static_cast<size_t>(n) * sizeof(T) + 63) / 64 * 64;
  }

  // The next n items of the block.
  template <typename T>
  T* take(int64_t n) {
    T* items = reinterpret_cast<T*>(block_->bytes.get() + used_);
    used_ += bytes<T>(n);
    return items;
  }

 private:
  struct Block {
    explicit Block(size_t n) : size(n), bytes(new char[n]) {}
    size_t size;
    std::unique_ptr<char[]> bytes;
  };
  static constexpr size_t kMostKept = size_t{64} << 20;
  static std::atomic<Block*> spare_;
  std::unique_ptr<Block> block_;
  size_t used_ = 0;
};

std::atomic<Scratch::Block*> Scratch::spare_{nullptr};

// Division of 32-bit numbers by multiplication, exact (Lemire, Kaser and Kurz, 2019).
class Divisor {
 public:
  explicit Divisor(uint64_t divisor) : inverse_(~uint64_t{0} / divisor + 1) {}
  // Writes the remainder of *number, and leaves the quotient in it.
  uint32_t divide(uint64_t* number, uint64_t divisor) const {
    const uint64_t quotient =
        inverse_ == 0
            ? *number  // the divisor is 1
            : static_cast<uint64_t>((static_cast<unsigned __int128>(inverse_) * *number) >> 64);
    const uint64_t rest = *number - quotient * divisor;
    *number = quotient;
    return static_cast<uint32_t>(rest);
  }

 private:
  uint64_t inverse_;
};

// Draws the sample of a group.
class Sampler {
 public:
  // Calls put(i, slot) for the i of the `most` smallest of draw(0), …, draw(n - 1), in order, with
  // slot = 0, 1, …; the same slot again where an i before was none of them. 1 <= most <= n.
  template <typename Draw, typename Put>
  void sample(int64_t n, int64_t most, const Draw& draw, const Put& put) {
    draws_.resize(n);
    std::fill(std::begin(counts_), std::end(counts_), 0);
    for (int64_t i = 0; i < n; ++i) {
      draws_[i] = draw(i);
      ++counts_[draws_[i] >> kShift];
    }
    const Limit limit = find_limit(most);
    for (int64_t i = 0, slot = 0; slot < most; ++i) {
      put(i, slot);
      slot += stays(limit, draws_[i], i);
    }
  }

 private:
  static constexpr int kShift = 57;  // leaves 64 classes of 63-bit numbers

  Limit find_limit(int64_t most) {
    int64_t part = 0, below = 0;
    while (below + counts_[part] < most) below += counts_[part++];
    candidates_.resize(counts_[part] + 1);
    int64_t* next = candidates_.data();
    for (const int64_t number : draws_) {
      *next = number;
      next += number >> kShift == part;
    }
    const auto last = candidates_.begin() + (most - below - 1);
    std::nth_element(candidates_.begin(), last, candidates_.end() - 1);
    const bool tie = std::find(last + 1, candidates_.end() - 1, *last) != candidates_.end() - 1;
    const auto first = tie ? std::find(draws_.begin(), draws_.end(), *last) : draws_.end();
    return {*last, first - draws_.begin()};
  }

  std::vector<int64_t> draws_, candidates_;
  int64_t counts_[64];
};

template <typename Key, typename Index>
class TypedPlan final : public VoxelizeCpu::Plan {
 public:
  TypedPlan(const VoxelizeInput& input, int threads)
      : input_(input),
        threads_(threads),
        per_frame_(input.grid.cells_per_frame()),
        most_codes_(most_codes(input)),
        scratch_(bytes_for(input)),
        bits_(scratch_.take<Word>(words_for(std::min(all_codes(input), most_codes_)))),
        before_(scratch_.take<Index>(words_for(std::min(all_codes(input), most_codes_)))),
        codes_(scratch_.take<Key>(input.n)),
        index_(scratch_.take<Index>(input.n)),
        sorted_(scratch_.take<Index>(input.n)),
        cells_(scratch_.take<Key>(input.n)),
        starts_(scratch_.take<Index>(input.n + 1)),
        offsets_(scratch_.take<Index>(input.n + 1)) {
    number_cells();
    count_groups();
    if (input.max_voxels >= 0) choose_voxels();
    count_kept();
    sort();
    if (input.batch != nullptr && !overfull_.empty()) find_places();
  }

  void write(int32_t* coords, int64_t* offsets, int64_t* point_index, int threads) const override {
    offsets[0] = 0;
    const int64_t grain = std::max<int64_t>(1, kGrain * num_voxels / std::max<int64_t>(size_, 1));
    parallel_for(num_voxels, grain, threads, [&](int64_t first, int64_t last) {
      write_coords_of(first, last, coords);
      for (int64_t v = first; v < last; ++v) {
        offsets[v + 1] = static_cast<int64_t>(offsets_[v + 1]);
      }
      write_points(first, last, point_index);
    });
  }

 private:
  struct Region {
    int64_t begin;
    int64_t end;
  };

  // Calls task(region, number of the region) for each piece of the cloud.
  template <typename Task>
  void for_regions(const Task& task) {
    const int64_t count = static_cast<int64_t>(regions_.size());
    run_tasks(count, threads_, [&](int64_t piece) { task(regions_[piece], piece); });
  }

  // Leaves in each region of codes_ and index_ the points in range of one piece of the cloud, in
  // order, codes_ being numbers of occupied cells; and in cells_ the key of each.
  void number_cells() {
    const int64_t n = input_.n;
    const int64_t most = std::min<int64_t>(threads_, kMostPieces);
    regions_.resize(std::max<int64_t>(1, std::min(most, n / kGrain)));
    const int64_t pieces = static_cast<int64_t>(regions_.size());
    const bool alone = pieces == 1;
    uint64_t codes = all_codes(input_);
    auto bitmap = next_bitmap(codes);
    std::vector<int64_t> bad(pieces, -1);
    run_tasks(pieces, threads_, [&](int64_t piece) {
      const int64_t first = n * piece / pieces, last = n * (piece + 1) / pieces;
      const int64_t found =
          find_keys(input_, first, last, codes_ + first, index_ + first, &bad[piece]);
      regions_[piece] = Region{first, first + found};
      set_bits(bitmap, codes_ + first, found, alone);
    });
    check_frames(bad);
    for (const Region& region : regions_) size_ += region.end - region.begin;
    int previous_shift = bitmap.shift;
    list_cells(bitmap, previous_shift);
    while (bitmap.shift > 0) {
      previous_shift = bitmap.shift;
      for_regions([&](const Region& region, int64_t) {
        shorten(bitmap, codes_ + region.begin, region.end - region.begin);
      });
      codes = static_cast<uint64_t>(std::max<int64_t>(groups_, 1)) << previous_shift;
      bitmap = next_bitmap(codes);
      for_regions([&](const Region& region, int64_t) {
        set_bits(bitmap, codes_ + region.begin, region.end - region.begin, alone);
      });
      list_cells(bitmap, previous_shift);
    }
    counts_.assign(pieces * groups_, 0);
    for_regions([&](const Region& region, int64_t piece) {
      count(bitmap, codes_ + region.begin, region.end - region.begin,
            counts_.data() + piece * groups_);
    });
  }

  static size_t bytes_for(const VoxelizeInput& input) {
    const int64_t words = words_for(std::min(all_codes(input), most_codes(input)));
    return Scratch::bytes<Word>(words) + Scratch::bytes<Index>(words) +
           2 * Scratch::bytes<Key>(input.n) + 2 * Scratch::bytes<Index>(input.n) +
           2 * Scratch::bytes<Index>(input.n + 1);
  }

  static int64_t words_for(uint64_t codes) { return static_cast<int64_t>((codes - 1) / 64 + 1); }

  // How many codes a bitmap may have a bit for.
  static uint64_t most_codes(const VoxelizeInput& input) {
    uint64_t most = kLeastCells;
    while (most < kCellsPerPoint * static_cast<uint64_t>(input.n)) most *= 2;
    return most;
  }

  static uint64_t all_codes(const VoxelizeInput& input) {
    return static_cast<uint64_t>(input.batch_size * input.grid.cells_per_frame());
  }

  // A bitmap for as many leading bits of numbers below `codes` as its size allows, all clear. It
  // takes the place of the one before.
  Bitmap<Index> next_bitmap(uint64_t codes) const {
    int shift = 0;
    while ((codes - 1) >> shift >= most_codes_) ++shift;
    Bitmap<Index> bitmap{bits_, before_, words_for(((codes - 1) >> shift) + 1), shift};
    bitmap.clear();
    return bitmap;
  }

  void check_frames(const std::vector<int64_t>& bad) const {
    for (const int64_t i : bad) {
      if (i >= 0) {
        throw std::invalid_argument("batch[" + std::to_string(i) + "] is " +
                                    std::to_string(input_.batch[i]) + ", expected 0 to " +
                                    std::to_string(input_.batch_size - 1) + " (batch_size - 1)");
      }
    }
  }

  // Numbers the bits of `bitmap` and lists the keys that they stand for, cut to its leading bits.
  // cells_ holds those of the bitmap before, which kept `previous_shift` - shift bits fewer.
  void list_cells(const Bitmap<Index>& bitmap, int previous_shift) {
    const int fresh_bits = previous_shift - bitmap.shift;
    const Key mask = (Key{1} << fresh_bits) - 1;
    const bool first = groups_ < 0;
    static_assert(sizeof(Key) == sizeof(Index), "cells are listed where points will be sorted");
    Key* cells = reinterpret_cast<Key*>(sorted_);
    Index rank = 0;
    for (int64_t w = 0; w < bitmap.words; ++w) {
      bitmap.before[w] = rank;
      uint64_t bits = bitmap.bits[w].load(std::memory_order_relaxed);
      for (; bits != 0; bits &= bits - 1) {
        const Key code = static_cast<Key>(64 * w + __builtin_ctzll(bits));
        cells[rank++] =
            first ? code
                  : static_cast<Key>(cells_[code >> fresh_bits] << fresh_bits) | (code & mask);
      }
    }
    groups_ = static_cast<int64_t>(rank);
    std::copy(cells, cells + groups_, cells_);
  }

  // Where each group starts among the sorted points, and each piece of the cloud in it.
  void count_groups() {
    const int64_t pieces = static_cast<int64_t>(regions_.size());
    Index start = 0;
    for (int64_t group = 0; group < groups_; ++group) {
      starts_[group] = start;
      for (int64_t piece = 0; piece < pieces; ++piece) {
        Index& slot = counts_[piece * groups_ + group];
        const Index here = slot;
        slot = start;
        start += here;
      }
    }
    starts_[groups_] = start;
  }

  void choose_voxels() {
    const uint64_t stream = random_stream(input_.seed, kVoxelSalt);
    std::vector<int64_t> chosen;
    Sampler sampler;
    for (int64_t first = 0; first < groups_;) {
      const int64_t next_frame = (frame_of(first) + 1) * per_frame_;
      const int64_t last = std::upper_bound(cells_ + first, cells_ + groups_,
                                            static_cast<uint64_t>(next_frame - 1)) -
                           cells_;
      if (last - first <= input_.max_voxels) {
        for (int64_t group = first; group < last; ++group) chosen.push_back(group);
      } else {
        const uint64_t first_cell = next_frame - per_frame_;
        const size_t chosen_before = chosen.size();
        chosen.resize(chosen_before + input_.max_voxels);
        sampler.sample(
            last - first, input_.max_voxels,
            [&](int64_t i) { return random63(stream, cells_[first + i] - first_cell); },
            [&](int64_t i, int64_t slot) { chosen[chosen_before + slot] = first + i; });
      }
      first = last;
    }
    if (static_cast<int64_t>(chosen.size()) < groups_) group_of_voxel_ = std::move(chosen);
  }

  int64_t frame_of(int64_t group) const {
    return static_cast<int64_t>(static_cast<uint64_t>(cells_[group]) / per_frame_);
  }

  int64_t group_of(int64_t voxel) const {
    return group_of_voxel_.empty() ? voxel : group_of_voxel_[voxel];
  }

  void count_kept() {
    num_voxels = group_of_voxel_.empty() ? groups_ : static_cast<int64_t>(group_of_voxel_.size());
    Index end = offsets_[0] = 0;
    const uint64_t most = static_cast<uint64_t>(input_.max_points);  // no limit: beyond any count
    for (int64_t v = 0; v < num_voxels; ++v) {
      const int64_t group = group_of(v);
      Index points = starts_[group + 1] - starts_[group];
      if (points > most) {
        points = static_cast<Index>(most);
        overfull_.push_back(v);
      }
      offsets_[v + 1] = end += points;
    }
    num_points = static_cast<int64_t>(end);
  }

  void sort() {
    for_regions([&](const Region& region, int64_t piece) {
      Index* next = counts_.data() + piece * groups_;
      for (int64_t i = region.begin; i < region.end; ++i) sorted_[next[codes_[i]]++] = index_[i];
    });
  }

  // Unless frames come one after the other: the place of each point in its own frame.
  void find_places() {
    const int64_t* batch = input_.batch;
    if (std::is_sorted(batch, batch + input_.n)) return;
    places_ = allocate<Index>(input_.n);
    std::unordered_map<int64_t, Index> sparse;
    std::vector<Index> dense(input_.batch_size <= input_.n ? input_.batch_size : 0, 0);
    for (int64_t i = 0; i < input_.n; ++i) {
      if (batch[i] < 0 || batch[i] >= input_.batch_size) continue;
      places_[i] = dense.empty() ? sparse[batch[i]]++ : dense[batch[i]]++;
    }
  }

  void write_points(int64_t first, int64_t last, int64_t* point_index) const {
    auto next = std::lower_bound(overfull_.begin(), overfull_.end(), first);
    Sampler sampler;
    for (int64_t v = first; v < last;) {
      if (next != overfull_.end() && *next == v) {
        write_sample(group_of(v), point_index + offsets_[v], sampler);
        ++next;
        ++v;
        continue;
      }
      // Up to the next full voxel, groups lie side by side unless some were left out.
      int64_t end = next == overfull_.end() ? last : std::min<int64_t>(last, *next);
      if (!group_of_voxel_.empty()) end = v + 1;
      const Index* from = sorted_ + starts_[group_of(v)];
      std::copy(from, from + (offsets_[end] - offsets_[v]), point_index + offsets_[v]);
      v = end;
    }
  }

  void write_sample(int64_t group, int64_t* to, Sampler& sampler) const {
    const uint64_t stream = random_stream(input_.seed, kPointSalt);
    int64_t before = 0;  // points of earlier frames
    if (input_.batch != nullptr && places_ == nullptr) {
      before =
          std::lower_bound(input_.batch, input_.batch + input_.n, frame_of(group)) - input_.batch;
    }
    const Index* points = sorted_ + starts_[group];
    sampler.sample(
        starts_[group + 1] - starts_[group], input_.max_points,
        [&](int64_t i) {
          return random63(stream, places_ != nullptr ? places_[points[i]] : points[i] - before);
        },
        [&](int64_t i, int64_t slot) { to[slot] = static_cast<int64_t>(points[i]); });
  }

  void write_coords_of(int64_t first, int64_t last, int32_t* coords) const {
    const Grid& grid = input_.grid;
    if (sizeof(Key) == 8) {
      for (int64_t v = first; v < last; ++v) {
        write_coords(grid, static_cast<int64_t>(cells_[group_of(v)]), coords + 4 * v);
      }
      return;
    }
    const Divisor width(grid.cells[0]), height(grid.cells[1]), depth(grid.cells[2]);
    for (int64_t v = first; v < last; ++v) {
      uint64_t rest = cells_[group_of(v)];
      coords[4 * v + 3] = width.divide(&rest, grid.cells[0]);
      coords[4 * v + 2] = height.divide(&rest, grid.cells[1]);
      coords[4 * v + 1] = depth.divide(&rest, grid.cells[2]);
      coords[4 * v] = static_cast<int32_t>(rest);
    }
  }

  VoxelizeInput input_;
  int threads_;
  int64_t per_frame_;
  uint64_t most_codes_;
  Scratch scratch_;
  Word* bits_;
  Index* before_;
  Key* codes_;
  Index* index_;
  Index* sorted_;   // points in range by group
  Key* cells_;      // key of each occupied cell
  Index* starts_;   // of each group among sorted_, and their number
  Index* offsets_;  // of the output
  std::vector<Region> regions_;
  int64_t size_ = 0;                     // points in range
  int64_t groups_ = -1;                  // occupied cells; -1: not known yet
  std::vector<Index> counts_;            // points of each piece in each group, then where they go
  std::vector<int64_t> group_of_voxel_;  // empty: every group is a voxel
  std::vector<int64_t> overfull_;        // voxels that hold more points than they may keep
  std::unique_ptr<Index[]> places_;
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
