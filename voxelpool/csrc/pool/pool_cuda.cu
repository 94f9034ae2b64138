// A thread works on up to 16 bytes of neighbouring channels where the layout allows it, else on one
// channel. Neighbouring threads take neighbouring channels, so that reads coalesce; no atomics.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "../cuda_common.h"
#include "pool.h"

namespace voxelpool {
namespace {

template <typename T>
struct Arithmetic {
  using Compare = T;
  using Sum = std::conditional_t<std::is_integral<T>::value, int64_t, T>;
  template <typename Value>
  static __device__ Value load(T value) {
    return static_cast<Value>(value);
  }
  template <typename Value>
  static __device__ T store(Value value) {
    return static_cast<T>(value);
  }
};
template <>
struct Arithmetic<__half> {
  using Compare = float;
  using Sum = float;
  template <typename Value>
  static __device__ float load(__half value) {
    return __half2float(value);
  }
  template <typename Value>
  static __device__ __half store(float value) {
    return __float2half_rn(value);
  }
};
template <>
struct Arithmetic<__nv_bfloat16> {
  using Compare = float;
  using Sum = float;
  template <typename Value>
  static __device__ float load(__nv_bfloat16 value) {
    return __bfloat162float(value);
  }
  template <typename Value>
  static __device__ __nv_bfloat16 store(float value) {
    return __float2bfloat16_rn(value);
  }
};

template <typename Function>
void dispatch(DType dtype, Function&& function) {
  dispatch_dtype<__half, __nv_bfloat16>(dtype, function);
}

// Elements side by side that are loaded and stored at once.
template <typename T, int width>
struct alignas(sizeof(T) * width) Pack {
  T at[width];
};

// Of bytes fewer, as their sums and rows, 8 bytes each, would fill the registers.
template <typename T>
constexpr int kWide = sizeof(T) == 1 ? 4 : 16 / sizeof(T);

bool aligned16(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// Calls function(width) with std::integral_constant: kWide elements, or 1.
template <typename T, typename Function>
void dispatch_width(int64_t channels, bool aligned, Function&& function) {
  if (aligned && channels % kWide<T> == 0) {
    function(std::integral_constant<int, kWide<T>>{});
  } else {
    function(std::integral_constant<int, 1>{});
  }
}

template <typename Function>
void dispatch_word(DType dtype, Function&& function) {
  dispatch(dtype, [&](auto example) {
    if constexpr (sizeof(example) == 1) {
      function(uint8_t{});
    } else if constexpr (sizeof(example) == 2) {
      function(uint16_t{});
    } else if constexpr (sizeof(example) == 4) {
      function(uint32_t{});
    } else {
      function(uint64_t{});
    }
  });
}

__device__ int64_t clamp_row(int64_t row, int64_t rows) {
  return row < 0 ? 0 : (row > rows ? rows : row);
}

// The places of one group, within bounds.
struct Range {
  int64_t begin, end;
  __device__ Range(const Groups& shape, int64_t k)
      : begin(clamp_row(shape.offsets[k], shape.rows)),
        end(clamp_row(shape.offsets[k + 1], shape.rows)) {}
};

__device__ int64_t row_at(const Groups& shape, int64_t place) {
  return shape.order ? static_cast<int64_t>(shape.order[place]) : place;
}

// --- reductions ----------------------------------------------------------------------------------
//
// A thread takes one group and one pack of channels, row by row, with the loads of kAhead rows
// under way at once. The first kLongBlocks blocks look for groups of more than kLong rows, which
// the others leave out: a block shares the rows of such a group among its threads, always in the
// same way. A Reducer says what becomes of the rows; its State is what one thread has found so far.
// Loops over rows are not unrolled further: what they wait for is memory, and code is kept small.

constexpr int kAhead = 4;
constexpr int64_t kLong = 512;
constexpr int kLongBlocks = 256;
constexpr int kLongLanes = 8;  // packs of channels side by side
constexpr int kLongRows = kBlock / kLongLanes;

template <Extreme kind, typename T, int width>
struct ExtremeReducer {
  using Rule = Arithmetic<T>;
  using Value = typename Rule::Compare;
  const T* src;
  T* out;
  int64_t* arg;

  struct State {
    Value best[width];
    int64_t place[width];
  };

  static __device__ void clear(State& state) {
#pragma unroll
    for (int i = 0; i < width; ++i) {
      state.best[i] = Value(0);
      state.place[i] = -1;
    }
  }
  static __device__ void take(State& state, const Pack<T, width>& pack, int64_t place) {
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const Value value = Rule::template load<Value>(pack.at[i]);
      if (state.place[i] < 0 || replaces<kind>(value, state.best[i])) {
        state.best[i] = value;
        state.place[i] = place;
      }
    }
  }
  // `other` saw other rows, before or after.
  static __device__ void merge(State& state, const State& other) {
#pragma unroll
    for (int i = 0; i < width; ++i) {
      if (other.place[i] < 0) continue;
      const bool later = state.place[i] >= 0 && state.place[i] < other.place[i];
      const bool wins = later ? replaces<kind>(other.best[i], state.best[i])
                              : state.place[i] < 0 || !replaces<kind>(state.best[i], other.best[i]);
      if (wins) {
        state.best[i] = other.best[i];
        state.place[i] = other.place[i];
      }
    }
  }
  __device__ void store(const State& state, const Groups& shape, int64_t k, int64_t c,
                        const Range&) const {
    Pack<T, width> values;
    Pack<int64_t, width == 1 ? 1 : 2> rows[(width + 1) / 2];
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const bool empty = state.place[i] < 0;
      const int64_t row = empty ? shape.rows : row_at(shape, state.place[i]);
      rows[i / 2].at[i % 2] = row;
      if constexpr (std::is_same<T, Value>::value) {
        values.at[i] = state.best[i];
      } else {
        values.at[i] =
            empty ? Rule::template store<Value>(Value(0)) : src[row * shape.channels + c + i];
      }
    }
    const int64_t at = k * shape.channels + c;
    *reinterpret_cast<Pack<T, width>*>(out + at) = values;
    auto* to = reinterpret_cast<Pack<int64_t, width == 1 ? 1 : 2>*>(arg + at);
#pragma unroll
    for (int i = 0; i < (width + 1) / 2; ++i) to[i] = rows[i];
  }
};

template <typename T, int width>
struct FoldReducer {
  using Rule = Arithmetic<T>;
  using Value = typename Rule::Sum;
  const T* src;
  T* out;
  Fold fold;

  struct State {
    Value total[width];
  };

  __device__ void clear(State& state) const {
#pragma unroll
    for (int i = 0; i < width; ++i) state.total[i] = Value(fold == Fold::kProduct);
  }
  __device__ void take(State& state, const Pack<T, width>& pack, int64_t) const {
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const Value value = Rule::template load<Value>(pack.at[i]);
      state.total[i] =
          fold == Fold::kProduct ? multiply(state.total[i], value) : add(state.total[i], value);
    }
  }
  __device__ void merge(State& state, const State& other) const {
#pragma unroll
    for (int i = 0; i < width; ++i) {
      state.total[i] = fold == Fold::kProduct ? multiply(state.total[i], other.total[i])
                                              : add(state.total[i], other.total[i]);
    }
  }
  __device__ void store(const State& state, const Groups& shape, int64_t k, int64_t c,
                        const Range& range) const {
    Pack<T, width> values;
    const int64_t count = range.end - range.begin;
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const Value total = state.total[i];
      values.at[i] = Rule::template store<Value>(
          fold == Fold::kMean && count > 0 ? divide(total, count) : total);
    }
    *reinterpret_cast<Pack<T, width>*>(out + k * shape.channels + c) = values;
  }
};

// Takes the rows at begin, begin + step, … before end.
template <typename T, int width, typename Reducer>
__device__ void take_rows(const Reducer& reducer, typename Reducer::State& state,
                          const Groups& shape, int64_t begin, int64_t end, int64_t step,
                          int64_t c) {
  const T* src = reducer.src + c;
  int64_t place = begin;
#pragma unroll 1
  for (; place + (kAhead - 1) * step < end; place += kAhead * step) {
    Pack<T, width> packs[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      packs[a] = *reinterpret_cast<const Pack<T, width>*>(src + row_at(shape, place + a * step) *
                                                                    shape.channels);
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) reducer.take(state, packs[a], place + a * step);
  }
#pragma unroll 1
  for (; place < end; place += step) {
    reducer.take(
        state,
        *reinterpret_cast<const Pack<T, width>*>(src + row_at(shape, place) * shape.channels),
        place);
  }
}

template <typename T, int width, typename Reducer>
__device__ void reduce_long_groups(const Reducer& reducer, const Groups& shape, int64_t packs) {
  __shared__ typename Reducer::State states[kBlock];
  __shared__ int64_t found[kBlock];
  __shared__ int found_count;
  // Blocks side by side share the groups they look at, and take other channels.
  const int64_t tiles = (packs + kLongLanes - 1) / kLongLanes;
  const int sharing = static_cast<int>(tiles < 16 ? tiles : 16);
  const int block = blockIdx.x;
  const int teams = kLongBlocks / sharing;
  if (block / sharing >= teams) return;
  const int lane = threadIdx.x % kLongLanes, line = threadIdx.x / kLongLanes;
  for (int64_t base = int64_t{block / sharing} * kBlock; base < shape.groups;
       base += int64_t{teams} * kBlock) {
    if (threadIdx.x == 0) found_count = 0;
    __syncthreads();
    const int64_t mine = base + threadIdx.x;
    if (mine < shape.groups) {
      const Range range(shape, mine);
      if (range.end - range.begin > kLong) found[atomicAdd(&found_count, 1)] = mine;
    }
    __syncthreads();
    const int count = found_count;
    for (int f = 0; f < count; ++f) {
      const int64_t k = found[f];
      const Range range(shape, k);
      for (int64_t tile = block % sharing; tile < tiles; tile += sharing) {
        const int64_t pack = tile * kLongLanes + lane;
        typename Reducer::State state;
        reducer.clear(state);
        if (pack < packs) {
          take_rows<T, width>(reducer, state, shape, range.begin + line, range.end, kLongRows,
                              pack * width);
        }
        states[threadIdx.x] = state;
        __syncthreads();
        for (int half = kLongRows / 2; half > 0; half /= 2) {
          if (line < half) {
            reducer.merge(states[threadIdx.x], states[threadIdx.x + half * kLongLanes]);
          }
          __syncthreads();
        }
        if (line == 0 && pack < packs) {
          reducer.store(states[threadIdx.x], shape, k, pack * width, range);
        }
        __syncthreads();
      }
    }
    __syncthreads();
  }
}

template <typename T, int width, typename Reducer>
__global__ void __launch_bounds__(kBlock) reduce_kernel(Reducer reducer, Groups shape) {
  const int64_t packs = shape.channels / width;
  if (blockIdx.x < kLongBlocks) return reduce_long_groups<T, width>(reducer, shape, packs);
  constexpr int64_t kSkipped = int64_t{kLongBlocks} * kBlock;
  const int64_t count = shape.groups * packs;
  for (int64_t i = global_thread() - kSkipped; i < count; i += global_stride() - kSkipped) {
    const int64_t k = i / packs, c = (i - k * packs) * width;
    const Range range(shape, k);
    if (range.end - range.begin > kLong) continue;
    typename Reducer::State state;
    reducer.clear(state);
    take_rows<T, width>(reducer, state, shape, range.begin, range.end, 1, c);
    reducer.store(state, shape, k, c, range);
  }
}

template <typename T, int width, typename Reducer>
void launch_reduce(const Reducer& reducer, const Groups& shape, int device, void* stream) {
  const int64_t count = shape.groups * (shape.channels / width);
  if (count == 0) return;
  const DeviceGuard guard(device);
  reduce_kernel<T, width>
      <<<grid_size(count) + kLongBlocks, kBlock, 0, static_cast<cudaStream_t>(stream)>>>(reducer,
                                                                                         shape);
}

// --- from groups to rows -------------------------------------------------------------------------

// The group of each row, or -1, from an index or from offsets.
struct GroupFinder {
  const int64_t* index;
  const int64_t* offsets;
  int64_t groups;

  // The last group that starts at or before `row`.
  __device__ int64_t find(int64_t row) const {
    if (index) return check(index[row]);
    int64_t low = 0, high = groups + 1;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (offsets[middle] <= row) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return check(low - 1);
  }
  // The same, where the row before is of group `before`.
  __device__ int64_t next(int64_t row, int64_t before) const {
    if (index) return check(index[row]);
    if (before < 0) return find(row);
    while (before < groups && offsets[before + 1] <= row) ++before;
    return check(before);
  }
  __device__ int64_t check(int64_t k) const { return k >= 0 && k < groups ? k : -1; }
};

constexpr int kRowsAThread = 8;

template <typename T, int width>
__global__ void spread_kernel(bool mean, const T* src, GroupFinder finder, int64_t rows,
                              int64_t channels, T* out) {
  using Value = typename Arithmetic<T>::Sum;
  const int64_t packs = channels / width;
  const int64_t count = (rows + kRowsAThread - 1) / kRowsAThread * packs;
  for (int64_t i = global_thread(); i < count; i += global_stride()) {
    const int64_t first = i / packs * kRowsAThread, c = i % packs * width;
    const int64_t last = first + kRowsAThread < rows ? first + kRowsAThread : rows;
    int64_t k = -2, group = finder.find(first);
    Pack<T, width> values;
#pragma unroll 1
    for (int64_t r = first; r < last; ++r) {
      if (r > first) group = finder.next(r, group);
      if (group != k) {
        k = group;
        if (k >= 0) values = *reinterpret_cast<const Pack<T, width>*>(src + k * channels + c);
#pragma unroll
        for (int e = 0; e < width; ++e) {
          if (k < 0) {
            values.at[e] = Arithmetic<T>::template store<Value>(Value(0));
          } else if (mean) {
            values.at[e] = Arithmetic<T>::template store<Value>(
                divide(Arithmetic<T>::template load<Value>(values.at[e]),
                       finder.offsets[k + 1] - finder.offsets[k]));
          }
        }
      }
      *reinterpret_cast<Pack<T, width>*>(out + r * channels + c) = values;
    }
  }
}

template <typename Word, int width>
__global__ void place_kernel(const Word* src, const int64_t* arg, GroupFinder finder, int64_t rows,
                             int64_t channels, Word* out) {
  const int64_t packs = channels / width;
  const int64_t count = (rows + kRowsAThread - 1) / kRowsAThread * packs;
  for (int64_t i = global_thread(); i < count; i += global_stride()) {
    const int64_t first = i / packs * kRowsAThread, c = i % packs * width;
    const int64_t last = first + kRowsAThread < rows ? first + kRowsAThread : rows;
    int64_t k = -2, group = finder.find(first);
    Pack<Word, width> values;
    int64_t at[width];
#pragma unroll 1
    for (int64_t r = first; r < last; ++r) {
      if (r > first) group = finder.next(r, group);
      if (group != k) {
        k = group;
        if (k >= 0) values = *reinterpret_cast<const Pack<Word, width>*>(src + k * channels + c);
#pragma unroll
        for (int e = 0; e < width; ++e) at[e] = k >= 0 ? arg[k * channels + c + e] : -1;
      }
      Pack<Word, width> result;
#pragma unroll
      for (int e = 0; e < width; ++e) result.at[e] = at[e] == r ? values.at[e] : Word(0);
      *reinterpret_cast<Pack<Word, width>*>(out + r * channels + c) = result;
    }
  }
}

template <typename T>
void launch_spread(bool mean, const void* src, const GroupFinder& finder, int64_t rows,
                   int64_t channels, void* out, int device, void* stream) {
  if (rows * channels == 0) return;
  const DeviceGuard guard(device);
  dispatch_width<T>(channels, aligned16(src) && aligned16(out), [&](auto width) {
    const int64_t count = (rows + kRowsAThread - 1) / kRowsAThread * (channels / width);
    spread_kernel<T, width><<<grid_size(count), kBlock, 0, static_cast<cudaStream_t>(stream)>>>(
        mean, static_cast<const T*>(src), finder, rows, channels, static_cast<T*>(out));
  });
  check_cuda(cudaGetLastError(), "spread");
}

void launch_place(DType dtype, const void* src, const int64_t* arg, const GroupFinder& finder,
                  int64_t rows, int64_t channels, void* out, int device, void* stream) {
  if (rows * channels == 0) return;
  const DeviceGuard guard(device);
  dispatch_word(dtype, [&](auto word) {
    using Word = decltype(word);
    dispatch_width<Word>(channels, aligned16(src) && aligned16(out), [&](auto width) {
      const int64_t count = (rows + kRowsAThread - 1) / kRowsAThread * (channels / width);
      place_kernel<Word, width><<<grid_size(count), kBlock, 0, static_cast<cudaStream_t>(stream)>>>(
          static_cast<const Word*>(src), arg, finder, rows, channels, static_cast<Word*>(out));
    });
  });
  check_cuda(cudaGetLastError(), "place");
}

}  // namespace

void segment_extreme_cuda(Extreme kind, DType dtype, const void* src, Groups shape, void* out,
                          int64_t* arg, int device, void* stream) {
  dispatch(dtype, [&](auto example) {
    using T = decltype(example);
    const T* from = static_cast<const T*>(src);
    T* to = static_cast<T*>(out);
    const bool aligned = aligned16(src) && aligned16(out) && aligned16(arg);
    dispatch_width<T>(shape.channels, aligned, [&](auto width) {
      if (kind == Extreme::kMax) {
        launch_reduce<T, width>(ExtremeReducer<Extreme::kMax, T, width>{from, to, arg}, shape,
                                device, stream);
      } else {
        launch_reduce<T, width>(ExtremeReducer<Extreme::kMin, T, width>{from, to, arg}, shape,
                                device, stream);
      }
    });
  });
  check_cuda(cudaGetLastError(), "segment_max/min");
}

void segment_fold_cuda(Fold fold, DType dtype, const void* src, Groups shape, void* out, int device,
                       void* stream) {
  dispatch(dtype, [&](auto example) {
    using T = decltype(example);
    const T* from = static_cast<const T*>(src);
    T* to = static_cast<T*>(out);
    dispatch_width<T>(shape.channels, aligned16(src) && aligned16(out), [&](auto width) {
      launch_reduce<T, width>(FoldReducer<T, width>{from, to, fold}, shape, device, stream);
    });
  });
  check_cuda(cudaGetLastError(), "segment_sum/mean");
}

void segment_spread_cuda(bool mean, DType dtype, const void* src, Groups shape, void* out,
                         int device, void* stream) {
  const GroupFinder finder{nullptr, shape.offsets, shape.groups};
  dispatch(dtype, [&](auto example) {
    launch_spread<decltype(example)>(mean, src, finder, shape.rows, shape.channels, out, device,
                                     stream);
  });
}

void segment_place_cuda(DType dtype, const void* src, const int64_t* arg, Groups shape, void* out,
                        int device, void* stream) {
  launch_place(dtype, src, arg, {nullptr, shape.offsets, shape.groups}, shape.rows, shape.channels,
               out, device, stream);
}

void scatter_spread_cuda(DType dtype, const void* src, const int64_t* index, int64_t rows,
                         int64_t groups, int64_t channels, void* out, int device, void* stream) {
  const GroupFinder finder{index, nullptr, groups};
  dispatch(dtype, [&](auto example) {
    launch_spread<decltype(example)>(false, src, finder, rows, channels, out, device, stream);
  });
}

void scatter_place_cuda(DType dtype, const void* src, const int64_t* arg, const int64_t* index,
                        int64_t rows, int64_t groups, int64_t channels, void* out, int device,
                        void* stream) {
  launch_place(dtype, src, arg, {index, nullptr, groups}, rows, channels, out, device, stream);
}

}  // namespace voxelpool
