// What the kernels of pool.h on the CPU share: dtypes, threads, instruction sets, the order of
// rows.
#pragma once

#include <algorithm>
#include <type_traits>

#include "../compiler.h"
#include "../offsets.h"
#include "../thread_pool.h"
#include "half_types.h"
#include "huge_pages.h"
#include "pool.h"

// Sanitizers take long to compile: there one variant, of the widest registers, stands for all.
#if defined(VOXELPOOL_SANITIZE)
#define VP_PLAIN_BYTES 64
#else
#define VP_PLAIN_BYTES 16
#endif
#if defined(VP_X86) && !defined(VOXELPOOL_SANITIZE)
#define VP_AVX2 __attribute__((target("avx2,f16c")))
#define VP_AVX512 __attribute__((target("avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")))
#endif

namespace voxelpool {

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

template <typename Function>
void dispatch(DType dtype, Function&& function) {
  dispatch_dtype<Float16, BFloat16>(dtype, function);
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
  const auto begin = [&](int64_t piece) {
    return piece_begin(shape.offsets, shape.groups, shape.rows, piece, pieces);
  };
  const auto channel = [&](int64_t cut) {
    return cut == cuts ? shape.channels : shape.channels * cut / cuts / kCut * kCut;
  };
  run_tasks(pieces * cuts, threads, [&](int64_t task) {
    const int64_t piece = task / cuts, cut = task % cuts;
    body(begin(piece), begin(piece + 1), channel(cut), channel(cut + 1));
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
    kernel(Bytes<VP_PLAIN_BYTES>{}, arguments...);
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
  if (shape.channels == 0) return;
  const auto function = best_of<int64_t, int64_t, int64_t, int64_t>(kernel);
  for_each_piece(shape, threads, [&](int64_t first, int64_t last, int64_t from, int64_t to) {
    function(kernel, first, last, from, to);
  });
}

template <typename Kernel>
void run_on_rows(int64_t rows, int64_t channels, int threads, const Kernel& kernel) {
  if (channels == 0) return;
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

template <typename Function>
void with_rows(const Groups& shape, Function&& function) {
  const int64_t places = shape.offsets[shape.groups];
  if (shape.order) return function(Listed{places, shape.order});
  check_offsets(shape.offsets, shape.groups, shape.rows, shape.partial);
  function(AsTheyLie{places});
}

}  // namespace voxelpool
