// Max and min of groups.
#include <cstring>
#include <limits>

#include "pool_cpu.h"

#if defined(VP_X86)
#include <immintrin.h>
#endif

namespace voxelpool {
namespace {

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

#if defined(__GNUC__)
#define VP_TARGET
#define VP_BYTES VP_PLAIN_BYTES
#include "extreme_block.inc"
#if defined(VP_AVX2)
#define VP_TARGET VP_AVX2
#define VP_BYTES 32
#define VP_STREAMED __m256i
#define VP_STREAM _mm256_stream_si256
#include "extreme_block.inc"
#define VP_TARGET VP_AVX512
#define VP_BYTES 64
#define VP_STREAMED __m512i
#define VP_STREAM _mm512_stream_si512
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
#if defined(__GNUC__)
  static constexpr bool kInRegisters = sizeof(T) >= 4;  // by extreme_block
#else
  static constexpr bool kInRegisters = false;
#endif
  const T* src;
  Groups shape;
  Rows rows;
  T* out;
  int64_t* arg;
  // Whether arg goes past the caches, which saves reading its lines first.
  bool arg_is_far = is_far(arg, shape);

  // Nothing reads arg before the backward pass does.
  static bool is_far(const int64_t* arg, const Groups& shape) {
#if defined(VP_X86)
    constexpr int64_t kLine = 64, kLeast = 1 << 20;  // bytes; less stays in the second-level cache
    const int64_t row = shape.channels * static_cast<int64_t>(sizeof *arg);
    return kInRegisters && shape.groups * row >= kLeast && row % kLine == 0 &&
           reinterpret_cast<uintptr_t>(arg) % kLine == 0;
#else
    static_cast<void>(arg);
    static_cast<void>(shape);
    return false;
#endif
  }

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
    if constexpr (!kInRegisters) {  // else this is for few channels, or more rows than there are
      constexpr int most = sizeof(Place) == 8 ? 16 : 64;
      c = cover<most, 16>(c, c_end, [&](auto lanes, int64_t channel) VP_INLINE_LAMBDA {
        block<lanes, true, Place>(k, channel, lanes);
      });
    }
    for (; c < c_end; c += 16) {
      block<16, false, Place>(k, c, static_cast<int>(std::min<int64_t>(16, c_end - c)));
    }
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
      if constexpr (kInRegisters) {
        constexpr int each = Register::value / sizeof(T);
        if (c_end - c >= each && shape.rows <= std::numeric_limits<Mark>::max()) {
          cover<8 * each, each>(c, c_end, [&](auto lanes, int64_t channel) VP_INLINE_LAMBDA {
            extreme_block<kind, T, Mark, lanes>(Register{}, src, shape, rows, k, channel, out, arg,
                                                arg_is_far);
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
#if defined(VP_X86)
    if (arg_is_far) _mm_sfence();
#endif
  }
};

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

}  // namespace voxelpool
