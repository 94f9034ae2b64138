#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "../thread_pool.h"
#include "half_types.h"
#include "huge_pages.h"
#include "index_check.h"
#include "pool.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define VP_AVX2 __attribute__((target("avx2,f16c")))
#define VP_AVX512 __attribute__((target("avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")))
#endif
#if defined(__GNUC__)
// Into the functions above, which know what instructions there are.
#define VP_INLINE __attribute__((always_inline)) inline
#define VP_INLINE_LAMBDA __attribute__((always_inline))
#else
#define VP_INLINE inline
#define VP_INLINE_LAMBDA
#endif

namespace voxelpool {
namespace {

// The type that sums of T are taken in.
template <typename T>
struct Accumulator {
  using Type = std::conditional_t<std::is_integral_v<T>, int64_t, T>;
};
template <>
struct Accumulator<Float16> {
  using Type = float;
};
template <>
struct Accumulator<BFloat16> {
  using Type = float;
};

// What max and min compare: the value itself, or for half types an integer in the same order, in
// which both zeros are 0 and every NaN is beyond all else.
template <Extreme kind, typename T>
struct Order {
  using Key = T;
  static VP_INLINE T key(T value) { return value; }
};

template <Extreme kind>
VP_INLINE int16_t half_key(uint16_t bits, uint16_t infinity) {
  const int16_t magnitude = static_cast<int16_t>(bits & 0x7fff);
  const int16_t value = static_cast<int16_t>(bits & 0x8000 ? -magnitude : magnitude);
  const int16_t beyond = kind == Extreme::kMax ? 0x7fff : -0x7fff;
  return magnitude > static_cast<int16_t>(infinity) ? beyond : value;
}

template <Extreme kind>
struct Order<kind, Float16> {
  using Key = int16_t;
  static VP_INLINE int16_t key(Float16 value) { return half_key<kind>(value.bits, 0x7c00); }
};
template <Extreme kind>
struct Order<kind, BFloat16> {
  using Key = int16_t;
  static VP_INLINE int16_t key(BFloat16 value) { return half_key<kind>(value.bits, 0x7f80); }
};

template <typename Function>
void dispatch(DType dtype, Function&& function) {
  switch (dtype) {
    case DType::kFloat32:
      return function(float{});
    case DType::kFloat64:
      return function(double{});
    case DType::kFloat16:
      return function(Float16{});
    case DType::kBFloat16:
      return function(BFloat16{});
    case DType::kInt8:
      return function(int8_t{});
    case DType::kUInt8:
      return function(uint8_t{});
    case DType::kInt16:
      return function(int16_t{});
    case DType::kInt32:
      return function(int32_t{});
    case DType::kInt64:
      return function(int64_t{});
  }
  throw std::invalid_argument("unknown dtype code");
}

void check_offsets(const Groups& shape) {
  const auto fail = [](int64_t at, int64_t value, const std::string& expected) {
    throw std::invalid_argument("offsets[" + std::to_string(at) + "] is " + std::to_string(value) +
                                ", expected " + expected);
  };
  const int64_t* offsets = shape.offsets;
  if (shape.partial ? offsets[0] < 0 : offsets[0] != 0) {
    fail(0, offsets[0], shape.partial ? "at least 0" : "0");
  }
  bool sorted = true;
  for (int64_t k = 0; k < shape.groups; ++k) sorted &= offsets[k] <= offsets[k + 1];
  for (int64_t k = 0; !sorted && k < shape.groups; ++k) {
    if (offsets[k] > offsets[k + 1]) {
      fail(k + 1, offsets[k + 1], "at least the offset before it, " + std::to_string(offsets[k]));
    }
  }
  const int64_t end = offsets[shape.groups];
  if (shape.partial ? end > shape.rows : end != shape.rows) {
    fail(shape.groups, end,
         (shape.partial ? "at most " : "") + std::to_string(shape.rows) + ", the number of rows");
  }
}

// Cuts the groups into pieces of like work (a row, or a group's output) and runs body(first, last,
// channel, channel_end). Channels are cut too where one group holds much of the rows.
template <typename Body>
void for_each_piece(const Groups& shape, int threads, Body&& body) {
  constexpr int64_t kCut = 64;
  const int64_t work = shape.rows + shape.groups;
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(shape.channels, 1));
  const int64_t pieces = std::min<int64_t>((work + grain - 1) / grain, int64_t{threads} * 4);
  if (pieces <= 1 || threads <= 1)
    return body(int64_t{0}, shape.groups, int64_t{0}, shape.channels);
  int64_t cuts = 1;
  if (shape.channels >= 2 * kCut) {
    int64_t longest = 0;
    for (int64_t k = 0; k < shape.groups; ++k) {
      longest = std::max(longest, shape.offsets[k + 1] - shape.offsets[k]);
    }
    if (longest > work / threads / 2) {
      cuts = std::min<int64_t>(threads, shape.channels / kCut);
    }
  }
  // The first group k at which k groups and their rows make up the piece's share.
  const auto boundary = [&](int64_t piece) {
    const int64_t share = work * piece / pieces;
    int64_t low = 0, high = shape.groups;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (shape.offsets[middle] + middle < share) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  };
  const auto channel = [&](int64_t cut) {
    return cut == cuts ? shape.channels : shape.channels * cut / cuts / kCut * kCut;
  };
  run_tasks(pieces * cuts, threads, [&](int64_t task) {
    const int64_t piece = task / cuts, cut = task % cuts;
    body(boundary(piece), piece + 1 == pieces ? shape.groups : boundary(piece + 1), channel(cut),
         channel(cut + 1));
  });
}

// The bytes of a vector register.
template <int count>
using Bytes = std::integral_constant<int, count>;

// Runs `kernel(Bytes, arguments...)` compiled for the best instruction set of this machine.
template <typename Kernel>
struct Multiarch {
  template <typename... Arguments>
  static void plain(const Kernel& kernel, Arguments... arguments) {
    kernel(Bytes<16>{}, arguments...);
  }
#if defined(VP_AVX2)
  template <typename... Arguments>
  VP_AVX2 static void avx2(const Kernel& kernel, Arguments... arguments) {
    kernel(Bytes<32>{}, arguments...);
  }
  template <typename... Arguments>
  VP_AVX512 static void avx512(const Kernel& kernel, Arguments... arguments) {
    kernel(Bytes<64>{}, arguments...);
  }
#endif
};

template <typename... Arguments, typename Kernel>
auto best_of(const Kernel&) {
  auto function = &Multiarch<Kernel>::template plain<Arguments...>;
#if defined(VP_AVX2)
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq")) {
    function = &Multiarch<Kernel>::template avx512<Arguments...>;
  } else if (__builtin_cpu_supports("avx2")) {
    function = &Multiarch<Kernel>::template avx2<Arguments...>;
  }
#endif
  return function;
}

template <typename Kernel>
void run_on_groups(const Groups& shape, int threads, const Kernel& kernel) {
  const auto function = best_of<int64_t, int64_t, int64_t, int64_t>(kernel);
  for_each_piece(shape, threads, [&](int64_t first, int64_t last, int64_t from, int64_t to) {
    function(kernel, first, last, from, to);
  });
}

template <typename Kernel>
void run_on_rows(int64_t rows, int64_t channels, int threads, const Kernel& kernel) {
  const auto function = best_of<int64_t, int64_t>(kernel);
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(channels, 1));
  parallel_for(rows, grain, threads,
               [&](int64_t first, int64_t last) { function(kernel, first, last); });
}

// Rows in the order of the groups. `fetch` asks early for what will be read: neither the jumps of a
// listed order nor those from one block of channels to the next are foreseen by the processor.
struct AsTheyLie {
  static constexpr int64_t kAhead = 16;
  int64_t places;
  VP_INLINE int64_t row(int64_t place) const { return place; }
  template <int bytes, typename T>
  VP_INLINE void fetch(const T* src, int64_t channels, int64_t place) const {
    if constexpr (bytes >= 64) {
      const int64_t ahead = std::min(place + kAhead, places - 1);
      const char* at = reinterpret_cast<const char*>(src + ahead * channels);
      for (int b = 0; b < bytes; b += 64) __builtin_prefetch(at + b);
    }
  }
};

struct Listed {
  static constexpr int64_t kAhead = 12;
  int64_t places;
  const uint32_t* order;
  VP_INLINE int64_t row(int64_t place) const { return order[place]; }
  template <int bytes, typename T>
  VP_INLINE void fetch(const T* src, int64_t channels, int64_t place) const {
    const int64_t ahead = std::min(place + kAhead, places - 1);
    const char* at = reinterpret_cast<const char*>(src + row(ahead) * channels);
    for (int b = 0; b < bytes; b += 64) __builtin_prefetch(at + b);
  }
};

// Covers the channels [begin, end) by blocks of `most` lanes, then of half as many, down to
// `least`: body is called with the lanes (std::integral_constant) and the first channel. Where
// fewer channels are left over, the last block goes back over some: it finds the same again.
// Returns where it ended.
template <int most, int least, typename Body>
VP_INLINE int64_t cover(int64_t begin, int64_t end, const Body& body, int64_t done = 0) {
  int64_t c = begin + done;
  for (; c + most <= end; c += most) body(std::integral_constant<int, most>{}, c);
  if constexpr (most > least) return cover<most / 2, least>(begin, end, body, c - begin);
  if (c < end && end - begin >= least) {
    body(std::integral_constant<int, least>{}, end - least);
    c = end;
  }
  return c;
}

// Lanes of the widest block of channels kept in registers through a group.
template <typename T>
constexpr int kLanes = sizeof(T) >= 8 ? 32 : 64;

#if defined(__GNUC__)
#define VP_TARGET
#define VP_BYTES 16
#include "extreme_block.inc"
#if defined(VP_AVX2)
#define VP_TARGET VP_AVX2
#define VP_BYTES 32
#include "extreme_block.inc"
#define VP_TARGET VP_AVX512
#define VP_BYTES 64
#include "extreme_block.inc"
#endif
#endif

template <Extreme kind, typename T, typename Rows>
struct ExtremeKernel {
  using Rule = Order<kind, T>;
  using Key = typename Rule::Key;
  // Rows are marked in integers as wide as the keys, so that both sit in vectors of one shape.
  using Mark = std::conditional_t<sizeof(Key) == 8, int64_t,
                                  std::conditional_t<sizeof(Key) == 4, int32_t, int16_t>>;
  const T* src;
  Groups shape;
  Rows rows;
  T* out;
  int64_t* arg;

  // `lanes` channels of group k, for any key and width. Marks are places in the group, counted from
  // 1 (filling with zeros would be a call of memset).
  template <int lanes, bool whole, typename Place>
  VP_INLINE void block(int64_t k, int64_t channel, int some) const {
    const int width = whole ? lanes : some;
    const int64_t begin = shape.offsets[k], end = shape.offsets[k + 1], origin = begin - 1;
    Key best[lanes];
    Place place[lanes];
    const T* from = src + rows.row(begin) * shape.channels + channel;
    for (int l = 0; l < width; ++l) {
      best[l] = Rule::key(from[l]);
      place[l] = 1;
    }
    rows.template fetch<lanes * sizeof(T)>(src + channel, shape.channels, begin);
    for (int64_t p = begin + 1; p < end; ++p) {
      rows.template fetch<lanes * sizeof(T)>(src + channel, shape.channels, p);
      from = src + rows.row(p) * shape.channels + channel;
      const Place at = static_cast<Place>(p - origin);
      for (int l = 0; l < width; ++l) {
        const Key value = Rule::key(from[l]);
        const bool take = replaces<kind>(value, best[l]);
        best[l] = take ? value : best[l];
        place[l] = take ? at : place[l];
      }
    }
    T* to = out + k * shape.channels + channel;
    int64_t* to_arg = arg + k * shape.channels + channel;
    for (int l = 0; l < width; ++l) to_arg[l] = rows.row(origin + place[l]);
    for (int l = 0; l < width; ++l) {
      if constexpr (std::is_same_v<T, Key>) {
        to[l] = best[l];
      } else {
        to[l] = src[to_arg[l] * shape.channels + channel + l];
      }
    }
  }

  template <typename Place>
  VP_INLINE void group(int64_t k, int64_t c, int64_t c_end) const {
    c = cover<64, 16>(c, c_end, [&](auto lanes, int64_t channel) VP_INLINE_LAMBDA {
      block<lanes, true, Place>(k, channel, lanes);
    });
    if (c < c_end) block<16, false, Place>(k, c, static_cast<int>(c_end - c));
  }

  template <typename Register>
  VP_INLINE void operator()(Register, int64_t first, int64_t last, int64_t c, int64_t c_end) const {
    for (int64_t k = first; k < last; ++k) {
      const int64_t count = shape.offsets[k + 1] - shape.offsets[k];
      if (count == 0) {
        std::memset(static_cast<void*>(out + k * shape.channels + c), 0, (c_end - c) * sizeof(T));
        std::fill(arg + k * shape.channels + c, arg + k * shape.channels + c_end, shape.rows);
        continue;
      }
#if defined(__GNUC__)
      if constexpr (sizeof(T) >= 4) {
        constexpr int each = Register::value / sizeof(T);
        if (c_end - c >= each && shape.rows <= std::numeric_limits<Mark>::max()) {
          cover<8 * each, each>(c, c_end, [&](auto lanes, int64_t channel) VP_INLINE_LAMBDA {
            extreme_block<kind, T, Mark, lanes>(Register{}, src, shape, rows, k, channel, out, arg);
          });
          continue;
        }
      }
#endif
      if (count <= std::numeric_limits<Mark>::max()) {
        group<Mark>(k, c, c_end);
      } else {
        group<int64_t>(k, c, c_end);
      }
    }
  }
};

template <bool product, typename T, typename Rows>
struct FoldKernel {
  using Value = typename Accumulator<T>::Type;
  const T* src;
  Groups shape;
  Rows rows;
  T* out;
  bool mean;

  template <int lanes, bool whole>
  VP_INLINE void block(int64_t k, int64_t channel, int some) const {
    const int width = whole ? lanes : some;
    const int64_t begin = shape.offsets[k], end = shape.offsets[k + 1];
    Value total[lanes];
    for (int l = 0; l < width; ++l) total[l] = product ? 1 : 0;
    for (int64_t p = begin; p < end; ++p) {
      rows.template fetch<lanes * sizeof(T)>(src + channel, shape.channels, p);
      const T* from = src + rows.row(p) * shape.channels + channel;
      for (int l = 0; l < width; ++l) {
        const Value value = static_cast<Value>(from[l]);
        total[l] = product ? multiply(total[l], value) : add(total[l], value);
      }
    }
    T* to = out + k * shape.channels + channel;
    if (mean && end > begin) {
      for (int l = 0; l < width; ++l) total[l] = divide(total[l], end - begin);
    }
    for (int l = 0; l < width; ++l) to[l] = static_cast<T>(total[l]);
  }

  template <typename Register>
  VP_INLINE void operator()(Register, int64_t first, int64_t last, int64_t c_begin,
                            int64_t c_end) const {
    for (int64_t k = first; k < last; ++k) {
      const int64_t c = cover<kLanes<Value>, 8>(c_begin, c_end,
                                                [&](auto lanes, int64_t channel) VP_INLINE_LAMBDA {
                                                  block<lanes, true>(k, channel, lanes);
                                                });
      if (c < c_end) block<8, false>(k, c, static_cast<int>(c_end - c));
    }
  }
};

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

template <typename Function>
void with_rows(const Groups& shape, Function&& function) {
  const int64_t places = shape.offsets[shape.groups];
  if (shape.order) return function(Listed{places, shape.order});
  check_offsets(shape);
  function(AsTheyLie{places});
}

}  // namespace

void segment_extreme_cpu(Extreme kind, DType dtype, const void* src, Groups shape, void* out,
                         int64_t* arg, int threads) {
  expect_write(arg, shape.groups * shape.channels * 8);
  with_rows(shape, [&](auto rows) {
    dispatch(dtype, [&](auto example) {
      using T = decltype(example);
      using Rows = decltype(rows);
      const T* from = static_cast<const T*>(src);
      T* to = static_cast<T*>(out);
      expect_write(to, shape.groups * shape.channels * sizeof(T));
      if (kind == Extreme::kMax) {
        run_on_groups(shape, threads,
                      ExtremeKernel<Extreme::kMax, T, Rows>{from, shape, rows, to, arg});
      } else {
        run_on_groups(shape, threads,
                      ExtremeKernel<Extreme::kMin, T, Rows>{from, shape, rows, to, arg});
      }
    });
  });
}

void segment_fold_cpu(Fold fold, DType dtype, const void* src, Groups shape, void* out,
                      int threads) {
  with_rows(shape, [&](auto rows) {
    dispatch(dtype, [&](auto example) {
      using T = decltype(example);
      using Rows = decltype(rows);
      const T* from = static_cast<const T*>(src);
      T* to = static_cast<T*>(out);
      expect_write(to, shape.groups * shape.channels * sizeof(T));
      if (fold == Fold::kProduct) {
        run_on_groups(shape, threads, FoldKernel<true, T, Rows>{from, shape, rows, to, false});
      } else {
        run_on_groups(shape, threads,
                      FoldKernel<false, T, Rows>{from, shape, rows, to, fold == Fold::kMean});
      }
    });
  });
}

void segment_spread_cpu(bool mean, DType dtype, const void* src, Groups shape, void* out,
                        int threads) {
  check_offsets(shape);
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
  check_offsets(shape);
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
