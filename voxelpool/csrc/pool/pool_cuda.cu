// One thread a result: (group, channel) to reduce, (row, channel) to spread. Neighbouring threads
// take neighbouring channels, so that reads coalesce; no atomics.
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
  switch (dtype) {
    case DType::kFloat32:
      return function(float{});
    case DType::kFloat64:
      return function(double{});
    case DType::kFloat16:
      return function(__half{});
    case DType::kBFloat16:
      return function(__nv_bfloat16{});
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

__device__ int64_t clamp_row(int64_t row, int64_t rows) {
  return row < 0 ? 0 : (row > rows ? rows : row);
}

// The last group that starts at or before `row`, or -1 where the row belongs to none.
__device__ int64_t group_of_row(const Groups& shape, int64_t row) {
  int64_t low = 0, high = shape.groups + 1;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (shape.offsets[middle] <= row) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low > shape.groups ? -1 : low - 1;
}

template <Extreme kind, typename T>
__global__ void extreme_kernel(const T* src, Groups shape, T* out, int64_t* arg) {
  using Value = typename Arithmetic<T>::Compare;
  const int64_t count = shape.groups * shape.channels;
  for (int64_t i = global_thread(); i < count; i += global_stride()) {
    const int64_t k = i / shape.channels, c = i - k * shape.channels;
    const int64_t begin = clamp_row(shape.offsets[k], shape.rows);
    const int64_t end = clamp_row(shape.offsets[k + 1], shape.rows);
    if (begin >= end) {
      out[i] = Arithmetic<T>::template store<Value>(Value(0));
      arg[i] = shape.rows;
      continue;
    }
    int64_t best_row = begin;
    Value best = Arithmetic<T>::template load<Value>(src[begin * shape.channels + c]);
    for (int64_t r = begin + 1; r < end; ++r) {
      const Value value = Arithmetic<T>::template load<Value>(src[r * shape.channels + c]);
      if (replaces<kind>(value, best)) {
        best = value;
        best_row = r;
      }
    }
    out[i] = src[best_row * shape.channels + c];
    arg[i] = best_row;
  }
}

template <typename T>
__global__ void sum_kernel(bool mean, const T* src, Groups shape, T* out) {
  using Value = typename Arithmetic<T>::Sum;
  const int64_t count = shape.groups * shape.channels;
  for (int64_t i = global_thread(); i < count; i += global_stride()) {
    const int64_t k = i / shape.channels, c = i - k * shape.channels;
    const int64_t begin = clamp_row(shape.offsets[k], shape.rows);
    const int64_t end = clamp_row(shape.offsets[k + 1], shape.rows);
    Value sum = 0;
    for (int64_t r = begin; r < end; ++r) {
      sum = add(sum, Arithmetic<T>::template load<Value>(src[r * shape.channels + c]));
    }
    if (mean && end > begin) sum = divide(sum, end - begin);
    out[i] = Arithmetic<T>::template store<Value>(sum);
  }
}

template <typename T>
__global__ void spread_kernel(bool mean, const T* src, Groups shape, T* out) {
  using Value = typename Arithmetic<T>::Sum;
  const int64_t count = shape.rows * shape.channels;
  for (int64_t i = global_thread(); i < count; i += global_stride()) {
    const int64_t r = i / shape.channels, c = i - r * shape.channels;
    const int64_t k = group_of_row(shape, r);
    T value = Arithmetic<T>::template store<Value>(Value(0));
    if (k >= 0) {
      value = src[k * shape.channels + c];
      if (mean) {
        value = Arithmetic<T>::template store<Value>(divide(
            Arithmetic<T>::template load<Value>(value), shape.offsets[k + 1] - shape.offsets[k]));
      }
    }
    out[i] = value;
  }
}

template <typename Word>
__global__ void place_kernel(const Word* src, const int64_t* arg, Groups shape, Word* out) {
  const int64_t count = shape.rows * shape.channels;
  for (int64_t i = global_thread(); i < count; i += global_stride()) {
    const int64_t r = i / shape.channels, c = i - r * shape.channels;
    const int64_t k = group_of_row(shape, r);
    const int64_t from = k * shape.channels + c;
    out[i] = k >= 0 && arg[from] == r ? src[from] : Word(0);
  }
}

}  // namespace

void segment_extreme_cuda(Extreme kind, DType dtype, const void* src, Groups shape, void* out,
                          int64_t* arg, int device, void* stream) {
  const int64_t count = shape.groups * shape.channels;
  if (count == 0) return;
  const DeviceGuard guard(device);
  dispatch(dtype, [&](auto example) {
    using T = decltype(example);
    const auto kernel = kind == Extreme::kMax ? &extreme_kernel<Extreme::kMax, T>
                                              : &extreme_kernel<Extreme::kMin, T>;
    kernel<<<grid_size(count), kBlock, 0, static_cast<cudaStream_t>(stream)>>>(
        static_cast<const T*>(src), shape, static_cast<T*>(out), arg);
  });
  check_cuda(cudaGetLastError(), "segment_max/min");
}

void segment_sum_cuda(bool mean, DType dtype, const void* src, Groups shape, void* out, int device,
                      void* stream) {
  const int64_t count = shape.groups * shape.channels;
  if (count == 0) return;
  const DeviceGuard guard(device);
  dispatch(dtype, [&](auto example) {
    using T = decltype(example);
    sum_kernel<T><<<grid_size(count), kBlock, 0, static_cast<cudaStream_t>(stream)>>>(
        mean, static_cast<const T*>(src), shape, static_cast<T*>(out));
  });
  check_cuda(cudaGetLastError(), "segment_sum/mean");
}

void segment_spread_cuda(bool mean, DType dtype, const void* src, Groups shape, void* out,
                         int device, void* stream) {
  const int64_t count = shape.rows * shape.channels;
  if (count == 0) return;
  const DeviceGuard guard(device);
  dispatch(dtype, [&](auto example) {
    using T = decltype(example);
    spread_kernel<T><<<grid_size(count), kBlock, 0, static_cast<cudaStream_t>(stream)>>>(
        mean, static_cast<const T*>(src), shape, static_cast<T*>(out));
  });
  check_cuda(cudaGetLastError(), "segment_spread");
}

void segment_place_cuda(DType dtype, const void* src, const int64_t* arg, Groups shape, void* out,
                        int device, void* stream) {
  const int64_t count = shape.rows * shape.channels;
  if (count == 0) return;
  const DeviceGuard guard(device);
  dispatch(dtype, [&](auto example) {
    using Word = std::conditional_t<
        sizeof(example) == 1, uint8_t,
        std::conditional_t<sizeof(example) == 2, uint16_t,
                           std::conditional_t<sizeof(example) == 4, uint32_t, uint64_t>>>;
    place_kernel<Word><<<grid_size(count), kBlock, 0, static_cast<cudaStream_t>(stream)>>>(
        static_cast<const Word*>(src), arg, shape, static_cast<Word*>(out));
  });
  check_cuda(cudaGetLastError(), "segment_place");
}

}  // namespace voxelpool
