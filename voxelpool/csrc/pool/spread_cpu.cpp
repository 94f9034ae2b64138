// From groups back to rows: what gradients take.
#include <atomic>
#include <cstring>
#include <limits>

#include "index_check.h"
#include "pool_cpu.h"

namespace voxelpool {
namespace {

// The group of each row, or -1: rows are asked for in order.
struct SortedGroups {
  const Groups& shape;
  int64_t group = -1;
  VP_INLINE void start(int64_t row) {
    group =
        std::upper_bound(shape.offsets, shape.offsets + shape.groups + 1, row) - shape.offsets - 1;
  }
  VP_INLINE int64_t of(int64_t row) {
    while (group < shape.groups && shape.offsets[group + 1] <= row) ++group;
    return group < shape.groups ? group : -1;
  }
};

struct IndexedGroups {
  const int64_t* index;
  VP_INLINE void start(int64_t) {}
  VP_INLINE int64_t of(int64_t row) { return index[row]; }
};

template <typename T>
struct SpreadMeanKernel {
  using Value = typename Accumulator<T>::Type;
  const T* src;
  const Groups& shape;
  T* out;

  template <typename Register>
  VP_INLINE void operator()(Register, int64_t first, int64_t last) const {
    SortedGroups groups{shape};
    groups.start(first);
    int64_t before = -1;
    for (int64_t r = first; r < last; ++r) {
      const int64_t k = groups.of(r);
      T* to = out + r * shape.channels;
      if (k < 0) {
        std::memset(static_cast<void*>(to), 0, shape.channels * sizeof(T));
      } else if (k == before) {
        std::memcpy(static_cast<void*>(to), to - shape.channels, shape.channels * sizeof(T));
      } else {
        const int64_t count = shape.offsets[k + 1] - shape.offsets[k];
        const T* from = src + k * shape.channels;
        for (int64_t c = 0; c < shape.channels; ++c) {
          to[c] = static_cast<T>(divide(static_cast<Value>(from[c]), count));
        }
      }
      before = k;
    }
  }
};

template <typename Word, typename GroupOf>
struct SpreadKernel {
  const Word* src;
  GroupOf group_of;
  int64_t channels;
  Word* out;

  template <typename Register>
  VP_INLINE void operator()(Register, int64_t first, int64_t last) const {
    GroupOf groups = group_of;
    groups.start(first);
    for (int64_t r = first; r < last; ++r) {
      const int64_t k = groups.of(r);
      if (k < 0) {
        std::memset(out + r * channels, 0, channels * sizeof(Word));
      } else {
        std::memcpy(out + r * channels, src + k * channels, channels * sizeof(Word));
      }
    }
  }
};

template <typename Word, typename GroupOf>
struct PlaceKernel {
  const Word* src;
  const int64_t* arg;
  GroupOf group_of;
  int64_t rows;
  int64_t channels;
  Word* out;

  template <typename Register>
  VP_INLINE void operator()(Register, int64_t first, int64_t last) const {
    const bool near = rows < std::numeric_limits<uint32_t>::max();
    GroupOf groups = group_of;
    groups.start(first);
    for (int64_t r = first; r < last; ++r) {
      const int64_t k = groups.of(r);
      Word* to = out + r * channels;
      if (k < 0) {
        std::memset(to, 0, channels * sizeof(Word));
        continue;
      }
      const Word* from = src + k * channels;
      const int64_t* at = arg + k * channels;
      // In 32 bits, in which rows are told apart well below 2^32 of them.
      if (near) {
        const uint32_t here = static_cast<uint32_t>(r);
        for (int64_t c = 0; c < channels; ++c) {
          to[c] = static_cast<uint32_t>(at[c]) == here ? from[c] : Word{0};
        }
      } else {
        for (int64_t c = 0; c < channels; ++c) to[c] = at[c] == r ? from[c] : Word{0};
      }
    }
  }
};

// Calls function(word) with an unsigned integer as wide as the dtype.
template <typename Function>
void dispatch_width(DType dtype, Function&& function) {
  dispatch(dtype, [&](auto example) {
    switch (sizeof example) {
      case 1:
        return function(uint8_t{});
      case 2:
        return function(uint16_t{});
      case 4:
        return function(uint32_t{});
      default:
        return function(uint64_t{});
    }
  });
}

// Throws unless every entry lies within [0, groups).
void check_index(const int64_t* index, int64_t rows, int64_t groups, int threads) {
  std::atomic<bool> inside{true};
  parallel_for(rows, 16384, threads, [&](int64_t first, int64_t last) {
    bool all = true;
    for (int64_t r = first; r < last; ++r) {
      all &= static_cast<uint64_t>(index[r]) < static_cast<uint64_t>(groups);
    }
    if (!all) inside = false;
  });
  if (!inside) throw_index(index, rows, groups);
}

}  // namespace

void segment_spread_cpu(bool mean, DType dtype, const void* src, Groups shape, void* out,
                        int threads) {
  check_offsets(shape.offsets, shape.groups, shape.rows, shape.partial);
  if (mean) {
    return dispatch(dtype, [&](auto example) {
      using T = decltype(example);
      expect_write(out, shape.rows * shape.channels * sizeof(T));
      run_on_rows(shape.rows, shape.channels, threads,
                  SpreadMeanKernel<T>{static_cast<const T*>(src), shape, static_cast<T*>(out)});
    });
  }
  dispatch_width(dtype, [&](auto word) {
    using Word = decltype(word);
    expect_write(out, shape.rows * shape.channels * sizeof(Word));
    run_on_rows(
        shape.rows, shape.channels, threads,
        SpreadKernel<Word, SortedGroups>{
            static_cast<const Word*>(src), {shape}, shape.channels, static_cast<Word*>(out)});
  });
}

void segment_place_cpu(DType dtype, const void* src, const int64_t* arg, Groups shape, void* out,
                       int threads) {
  check_offsets(shape.offsets, shape.groups, shape.rows, shape.partial);
  dispatch_width(dtype, [&](auto word) {
    using Word = decltype(word);
    expect_write(out, shape.rows * shape.channels * sizeof(Word));
    run_on_rows(shape.rows, shape.channels, threads,
                PlaceKernel<Word, SortedGroups>{static_cast<const Word*>(src),
                                                arg,
                                                {shape},
                                                shape.rows,
                                                shape.channels,
                                                static_cast<Word*>(out)});
  });
}

void scatter_spread_cpu(DType dtype, const void* src, const int64_t* index, int64_t rows,
                        int64_t groups, int64_t channels, void* out, int threads) {
  check_index(index, rows, groups, threads);
  dispatch_width(dtype, [&](auto word) {
    using Word = decltype(word);
    expect_write(out, rows * channels * sizeof(Word));
    run_on_rows(rows, channels, threads,
                SpreadKernel<Word, IndexedGroups>{
                    static_cast<const Word*>(src), {index}, channels, static_cast<Word*>(out)});
  });
}

void scatter_place_cpu(DType dtype, const void* src, const int64_t* arg, const int64_t* index,
                       int64_t rows, int64_t groups, int64_t channels, void* out, int threads) {
  check_index(index, rows, groups, threads);
  dispatch_width(dtype, [&](auto word) {
    using Word = decltype(word);
    expect_write(out, rows * channels * sizeof(Word));
    run_on_rows(
        rows, channels, threads,
        PlaceKernel<Word, IndexedGroups>{
            static_cast<const Word*>(src), arg, {index}, rows, channels, static_cast<Word*>(out)});
  });
}

}  // namespace voxelpool
