// Reductions over sorted groups of rows. Group k of `src` (rows, channels) is rows offsets[k] up to
// offsets[k + 1]; offsets has groups + 1 entries.
//
// The rules, the same on every device and for any number of threads:
//  - max and min: NaN wins, then the extreme value; among equals (0.0 and -0.0 are equal) the
//  lowest row.
//    arg is that row. An empty group gives 0 and arg = rows.
//  - sum and mean: rows are added in order, half types in float32, integers in int64. The mean of
//    integers is rounded down. An empty group gives 0.
#pragma once

#include <type_traits>

#include "../common.h"

namespace voxelpool {

enum class Extreme { kMax, kMin };

// Whether `value` takes the place of `best`, which came from a lower row.
template <Extreme kind, typename T>
VP_HOST_DEVICE bool replaces(T value, T best) {
  const bool further = kind == Extreme::kMax ? !(value <= best) : !(value >= best);
  return further & (best == best);
}

// Integers wrap, as torch's do.
template <typename Value>
VP_HOST_DEVICE Value add(Value a, Value b) {
  if constexpr (std::is_integral<Value>::value) {
    return static_cast<Value>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
  } else {
    return a + b;
  }
}

// The mean from a sum. Integers round down; nvcc's floating-point division is IEEE's by default.
template <typename Value>
VP_HOST_DEVICE Value divide(Value sum, int64_t count) {
  if constexpr (std::is_integral<Value>::value) {
    return sum / count - ((sum % count != 0) & (sum < 0));
  } else {
    return sum / static_cast<Value>(count);
  }
}

struct Groups {
  const int64_t* offsets;
  int64_t groups;
  int64_t rows;
  int64_t channels;
};

// CPU. Throws std::invalid_argument where the offsets do not start at 0, fall, or do not end at
// rows.
void segment_extreme_cpu(Extreme kind, DType dtype, const void* src, Groups shape, void* out,
                         int64_t* arg, int threads);
void segment_sum_cpu(bool mean, DType dtype, const void* src, Groups shape, void* out, int threads);
// Spreads (groups, channels) over the rows; `mean` divides by the size of the group.
void segment_spread_cpu(bool mean, DType dtype, const void* src, Groups shape, void* out,
                        int threads);
// out[arg[k, c], c] = src[k, c], zero elsewhere.
void segment_place_cpu(DType dtype, const void* src, const int64_t* arg, Groups shape, void* out,
                       int threads);

// CUDA: as above on `stream` of `device`. Offsets are taken as they are, but for bounds: a row
// outside [0, rows) is neither read nor written.
void segment_extreme_cuda(Extreme kind, DType dtype, const void* src, Groups shape, void* out,
                          int64_t* arg, int device, void* stream);
void segment_sum_cuda(bool mean, DType dtype, const void* src, Groups shape, void* out, int device,
                      void* stream);
void segment_spread_cuda(bool mean, DType dtype, const void* src, Groups shape, void* out,
                         int device, void* stream);
void segment_place_cuda(DType dtype, const void* src, const int64_t* arg, Groups shape, void* out,
                        int device, void* stream);

}  // namespace voxelpool
