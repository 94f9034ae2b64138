// Reductions over groups of rows. `src` is (rows, channels). Groups come sorted or listed:
//  - segment: group k is rows offsets[k] up to offsets[k + 1]; offsets has groups + 1 entries.
//  - scatter: index names the group of each row. `group_rows` sorts the rows by group, stably, and
//    the segment kernels read them through that order, so that both give the same bits.
//
// The rules, the same on every device and for any number of threads:
//  - max and min: NaN wins, then the extreme value; among equals (0.0 and -0.0 are equal) the
//    lowest row. arg is that row. An empty group gives 0 and arg = rows.
//  - sum, mean and product: rows are taken in order (on CUDA those of a long group in another
//    order, always the same), half types in float32, integers in int64. The mean of integers is
//    rounded down. An empty group gives 0, its product 1.
#pragma once

#include <type_traits>

#include "../common.h"

namespace voxelpool {

enum class Extreme { kMax, kMin };
enum class Fold : int { kSum = 0, kMean = 1, kProduct = 2 };

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

template <typename Value>
VP_HOST_DEVICE Value multiply(Value a, Value b) {
  if constexpr (std::is_integral<Value>::value) {
    return static_cast<Value>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b));
  } else {
    return a * b;
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

// Calls function with a value of the type that the code stands for.
template <typename Half, typename BrainHalf, typename Function>
void dispatch_dtype(DType dtype, const Function& function) {
  switch (dtype) {
    case DType::kFloat32:
      return function(float{});
    case DType::kFloat64:
      return function(double{});
    case DType::kFloat16:
      return function(Half{});
    case DType::kBFloat16:
      return function(BrainHalf{});
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

struct Groups {
  const int64_t* offsets;  // (groups + 1,)
  int64_t groups;
  int64_t rows;
  int64_t channels;
  // Place i of the groups holds row order[i]; null where place i holds row i.
  const uint32_t* order = nullptr;
  // Whether rows before offsets[0] or after offsets[groups] may be there: they belong to no group.
  bool partial = false;
};

// CPU. Offsets and indices that do not fit throw std::invalid_argument.
void segment_extreme_cpu(Extreme kind, DType dtype, const void* src, Groups shape, void* out,
                         int64_t* arg, int threads);
void segment_fold_cpu(Fold fold, DType dtype, const void* src, Groups shape, void* out,
                      int threads);
// Spreads (groups, channels) over the rows; `mean` divides by the size of the group. A row of no
// group gets 0.
void segment_spread_cpu(bool mean, DType dtype, const void* src, Groups shape, void* out,
                        int threads);
// out[arg[k, c], c] = src[k, c], zero elsewhere.
void segment_place_cpu(DType dtype, const void* src, const int64_t* arg, Groups shape, void* out,
                       int threads);

// Sorts the rows by group, stably: `order` (rows,) and `offsets` (groups + 1,).
void group_rows_cpu(const int64_t* index, int64_t rows, int64_t groups, uint32_t* order,
                    int64_t* offsets, int threads);
// The offsets of an index that is sorted already.
void sorted_offsets_cpu(const int64_t* index, int64_t rows, int64_t groups, int64_t* offsets,
                        int threads);
// One group number for each entry of an index (outer, rows, inner) whose columns are apart:
// (o * groups + index) * inner + i.
void scatter_keys_cpu(const int64_t* index, int64_t outer, int64_t rows, int64_t inner,
                      int64_t groups, int64_t* keys, int threads);
// As segment_spread and segment_place, for rows in any order.
void scatter_spread_cpu(DType dtype, const void* src, const int64_t* index, int64_t rows,
                        int64_t groups, int64_t channels, void* out, int threads);
void scatter_place_cpu(DType dtype, const void* src, const int64_t* arg, const int64_t* index,
                       int64_t rows, int64_t groups, int64_t channels, void* out, int threads);

// CUDA: as above on `stream` of `device`. Nothing is thrown for offsets and indices that do not
// fit: a row of such a group is left out (its gradient is 0), and nothing is read or written out of
// bounds. An index out of range has the key -1.
void segment_extreme_cuda(Extreme kind, DType dtype, const void* src, Groups shape, void* out,
                          int64_t* arg, int device, void* stream);
void segment_fold_cuda(Fold fold, DType dtype, const void* src, Groups shape, void* out, int device,
                       void* stream);
void segment_spread_cuda(bool mean, DType dtype, const void* src, Groups shape, void* out,
                         int device, void* stream);
void segment_place_cuda(DType dtype, const void* src, const int64_t* arg, Groups shape, void* out,
                        int device, void* stream);
// Bytes of scratch that group_rows_cuda takes.
int64_t group_rows_scratch(int64_t rows, int64_t groups, int device);
void group_rows_cuda(const int64_t* index, int64_t rows, int64_t groups, uint32_t* order,
                     int64_t* offsets, void* scratch, int64_t scratch_bytes, int device,
                     void* stream);
void sorted_offsets_cuda(const int64_t* index, int64_t rows, int64_t groups, int64_t* offsets,
                         int device, void* stream);
void scatter_keys_cuda(const int64_t* index, int64_t outer, int64_t rows, int64_t inner,
                       int64_t groups, int64_t* keys, int device, void* stream);
void scatter_spread_cuda(DType dtype, const void* src, const int64_t* index, int64_t rows,
                         int64_t groups, int64_t channels, void* out, int device, void* stream);
void scatter_place_cuda(DType dtype, const void* src, const int64_t* arg, const int64_t* index,
                        int64_t rows, int64_t groups, int64_t channels, void* out, int device,
                        void* stream);

}  // namespace voxelpool
