#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "../thread_pool.h"
#include "half_types.h"
#include "pool.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define VP_AVX2 __attribute__((target("avx2,f16c")))
#define VP_AVX512 __attribute__((target("avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")))
#define VP_INLINE __attribute__((always_inline)) inline
#else
#define VP_INLINE inline
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
  if (offsets[0] != 0) fail(0, offsets[0], "0");
  bool sorted = true;
  for (int64_t k = 0; k < shape.groups; ++k) sorted &= offsets[k] <= offsets[k + 1];
  for (int64_t k = 0; !sorted && k < shape.groups; ++k) {
    if (offsets[k] > offsets[k + 1]) {
      fail(k + 1, offsets[k + 1], "at least the offset before it, " + std::to_string(offsets[k]));
    }
  }
  if (offsets[shape.groups] != shape.rows) {
    fail(shape.groups, offsets[shape.groups], std::to_string(shape.rows) + ", the number of rows");
  }
}

// Cuts the groups into pieces of like work (a row, or a group's output) and runs body(first, last).
template <typename Body>
void for_each_piece(const Groups& shape, int threads, Body&& body) {
  const int64_t work = shape.rows + shape.groups;
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(shape.channels, 1));
  const int64_t pieces = std::min<int64_t>((work + grain - 1) / grain, int64_t{threads} * 4);
  if (pieces <= 1) return body(int64_t{0}, shape.groups);
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
  run_tasks(pieces, threads, [&](int64_t piece) {
    body(boundary(piece), piece + 1 == pieces ? shape.groups : boundary(piece + 1));
  });
}

// Runs `kernel(first, last)` compiled for the best instruction set of this machine.
template <typename Kernel>
struct Multiarch {
  static void plain(const Kernel& kernel, int64_t first, int64_t last) { kernel(first, last); }
#if defined(VP_AVX2)
  VP_AVX2 static void avx2(const Kernel& kernel, int64_t first, int64_t last) {
    kernel(first, last);
  }
  VP_AVX512 static void avx512(const Kernel& kernel, int64_t first, int64_t last) {
    kernel(first, last);
  }
#endif
};

template <typename Kernel>
void run_kernel(const Groups& shape, int threads, const Kernel& kernel) {
  auto function = &Multiarch<Kernel>::plain;
#if defined(VP_AVX2)
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq")) {
    function = &Multiarch<Kernel>::avx512;
  } else if (__builtin_cpu_supports("avx2")) {
    function = &Multiarch<Kernel>::avx2;
  }
#endif
  for_each_piece(shape, threads,
                 [&](int64_t first, int64_t last) { function(kernel, first, last); });
}

// The widest block of channels kept in registers through a group.
template <typename T>
constexpr int kLanes = sizeof(T) >= 8 ? 32 : 64;

template <Extreme kind, typename T>
struct ExtremeKernel {
  using Rule = Order<kind, T>;
  using Key = typename Rule::Key;
  const T* src;
  Groups shape;
  T* out;
  int64_t* arg;

  template <int lanes, typename Row>
  VP_INLINE void block(int64_t k, int64_t channel, int width) const {
    const int64_t begin = shape.offsets[k], end = shape.offsets[k + 1];
    Key best[lanes];
    Row row[lanes];
    const T* from = src + begin * shape.channels + channel;
    for (int l = 0; l < width; ++l) {
      best[l] = Rule::key(from[l]);
      row[l] = 0;
    }
    for (int64_t r = begin + 1; r < end; ++r) {
      from += shape.channels;
      const Row at = static_cast<Row>(r - begin);
      for (int l = 0; l < width; ++l) {
        const Key value = Rule::key(from[l]);
        const bool take = replaces<kind>(value, best[l]);
        best[l] = take ? value : best[l];
        row[l] = take ? at : row[l];
      }
    }
    T* to = out + k * shape.channels + channel;
    int64_t* to_arg = arg + k * shape.channels + channel;
    for (int l = 0; l < width; ++l) to_arg[l] = begin + row[l];
    for (int l = 0; l < width; ++l) {
      if constexpr (std::is_same_v<T, Key>) {
        to[l] = best[l];
      } else {
        to[l] = src[to_arg[l] * shape.channels + channel + l];
      }
    }
  }

  template <typename Row>
  VP_INLINE void group(int64_t k) const {
    constexpr int lanes = kLanes<Key>;
    int64_t c = 0;
    for (; c + lanes <= shape.channels; c += lanes) block<lanes, Row>(k, c, lanes);
    for (; c + 16 <= shape.channels; c += 16) block<16, Row>(k, c, 16);
    if (c < shape.channels) block<16, Row>(k, c, static_cast<int>(shape.channels - c));
  }

  VP_INLINE void operator()(int64_t first, int64_t last) const {
    // A counter as wide as the key lets both sit in vectors of one shape.
    using Near = std::conditional_t<sizeof(Key) == 8, int64_t,
                                    std::conditional_t<sizeof(Key) == 4, int32_t, int16_t>>;
    for (int64_t k = first; k < last; ++k) {
      const int64_t count = shape.offsets[k + 1] - shape.offsets[k];
      if (count == 0) {
        std::memset(static_cast<void*>(out + k * shape.channels), 0, shape.channels * sizeof(T));
        for (int64_t c = 0; c < shape.channels; ++c) arg[k * shape.channels + c] = shape.rows;
      } else if (count <= std::numeric_limits<Near>::max()) {
        group<Near>(k);
      } else {
        group<int64_t>(k);
      }
    }
  }
};

template <typename T>
struct SumKernel {
  using Value = typename Accumulator<T>::Type;
  const T* src;
  Groups shape;
  T* out;
  bool mean;

  template <int lanes>
  VP_INLINE void block(int64_t k, int64_t channel, int count) const {
    const int64_t begin = shape.offsets[k], end = shape.offsets[k + 1];
    Value sum[lanes];
    for (int l = 0; l < count; ++l) sum[l] = 0;
    const T* from = src + begin * shape.channels + channel;
    for (int64_t r = begin; r < end; ++r, from += shape.channels) {
      for (int l = 0; l < count; ++l) sum[l] = add(sum[l], static_cast<Value>(from[l]));
    }
    T* to = out + k * shape.channels + channel;
    if (mean && end > begin) {
      for (int l = 0; l < count; ++l) sum[l] = divide(sum[l], end - begin);
    }
    for (int l = 0; l < count; ++l) to[l] = static_cast<T>(sum[l]);
  }

  VP_INLINE void operator()(int64_t first, int64_t last) const {
    constexpr int lanes = kLanes<Value>;
    for (int64_t k = first; k < last; ++k) {
      int64_t c = 0;
      for (; c + lanes <= shape.channels; c += lanes) block<lanes>(k, c, lanes);
      for (; c + 16 <= shape.channels; c += 16) block<16>(k, c, 16);
      if (c < shape.channels) block<16>(k, c, static_cast<int>(shape.channels - c));
    }
  }
};

template <typename T>
struct SpreadKernel {
  using Value = typename Accumulator<T>::Type;
  const T* src;
  Groups shape;
  T* out;

  VP_INLINE void operator()(int64_t first, int64_t last) const {
    for (int64_t k = first; k < last; ++k) {
      const int64_t begin = shape.offsets[k], end = shape.offsets[k + 1];
      if (begin == end) continue;
      const T* from = src + k * shape.channels;
      T* to = out + begin * shape.channels;
      for (int64_t c = 0; c < shape.channels; ++c) {
        to[c] = static_cast<T>(divide(static_cast<Value>(from[c]), end - begin));
      }
      for (int64_t r = begin + 1; r < end; ++r) {
        std::memcpy(static_cast<void*>(out + r * shape.channels), to, shape.channels * sizeof(T));
      }
    }
  }
};

template <typename Word>
struct PlaceKernel {
  const Word* src;
  const int64_t* arg;
  Groups shape;
  Word* out;

  VP_INLINE void operator()(int64_t first, int64_t last) const {
    for (int64_t k = first; k < last; ++k) {
      const Word* from = src + k * shape.channels;
      const int64_t* at = arg + k * shape.channels;
      for (int64_t r = shape.offsets[k]; r < shape.offsets[k + 1]; ++r) {
        Word* to = out + r * shape.channels;
        for (int64_t c = 0; c < shape.channels; ++c) to[c] = at[c] == r ? from[c] : Word{0};
      }
    }
  }
};

template <typename Word>
struct CopyKernel {
  const Word* src;
  Groups shape;
  Word* out;

  VP_INLINE void operator()(int64_t first, int64_t last) const {
    for (int64_t k = first; k < last; ++k) {
      for (int64_t r = shape.offsets[k]; r < shape.offsets[k + 1]; ++r) {
        std::memcpy(out + r * shape.channels, src + k * shape.channels,
                    shape.channels * sizeof(Word));
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

}  // namespace

void segment_extreme_cpu(Extreme kind, DType dtype, const void* src, Groups shape, void* out,
                         int64_t* arg, int threads) {
  check_offsets(shape);
  dispatch(dtype, [&](auto example) {
    using T = decltype(example);
    const T* from = static_cast<const T*>(src);
    T* to = static_cast<T*>(out);
    if (kind == Extreme::kMax) {
      run_kernel(shape, threads, ExtremeKernel<Extreme::kMax, T>{from, shape, to, arg});
    } else {
      run_kernel(shape, threads, ExtremeKernel<Extreme::kMin, T>{from, shape, to, arg});
    }
  });
}

void segment_sum_cpu(bool mean, DType dtype, const void* src, Groups shape, void* out,
                     int threads) {
  check_offsets(shape);
  dispatch(dtype, [&](auto example) {
    using T = decltype(example);
    run_kernel(shape, threads,
               SumKernel<T>{static_cast<const T*>(src), shape, static_cast<T*>(out), mean});
  });
}

void segment_spread_cpu(bool mean, DType dtype, const void* src, Groups shape, void* out,
                        int threads) {
  check_offsets(shape);
  if (mean) {
    return dispatch(dtype, [&](auto example) {
      using T = decltype(example);
      run_kernel(shape, threads,
                 SpreadKernel<T>{static_cast<const T*>(src), shape, static_cast<T*>(out)});
    });
  }
  dispatch_width(dtype, [&](auto word) {
    using Word = decltype(word);
    run_kernel(shape, threads,
               CopyKernel<Word>{static_cast<const Word*>(src), shape, static_cast<Word*>(out)});
  });
}

void segment_place_cpu(DType dtype, const void* src, const int64_t* arg, Groups shape, void* out,
                       int threads) {
  check_offsets(shape);
  dispatch_width(dtype, [&](auto word) {
    using Word = decltype(word);
    run_kernel(
        shape, threads,
        PlaceKernel<Word>{static_cast<const Word*>(src), arg, shape, static_cast<Word*>(out)});
  });
}

}  // namespace voxelpool
