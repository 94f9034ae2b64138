// Grouping rows by index on CUDA: a stable radix sort, so that no atomics decide an order.
#include "../cuda_common.h"
#include "../sort_cuda.h"
#include "pool.h"

namespace voxelpool {
namespace {

// Rows of an index out of range sort behind all groups.
__global__ void sort_input_kernel(const int64_t* index, int64_t rows, int64_t groups,
                                  uint32_t* keys, uint32_t* numbers) {
  for (int64_t r = global_thread(); r < rows; r += global_stride()) {
    const int64_t k = index[r];
    keys[r] = static_cast<uint32_t>(k >= 0 && k < groups ? k : groups);
    numbers[r] = static_cast<uint32_t>(r);
  }
}

// offsets[k] = the first place of a key of at least k.
template <typename Key>
__global__ void offsets_kernel(const Key* keys, int64_t rows, int64_t groups, int64_t* offsets) {
  for (int64_t k = global_thread(); k <= groups; k += global_stride()) {
    int64_t low = 0, high = rows;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (static_cast<int64_t>(keys[middle]) < k) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    offsets[k] = low;
  }
}

__global__ void keys_kernel(const int64_t* index, int64_t outer, int64_t rows, int64_t inner,
                            int64_t groups, int64_t* keys) {
  const int64_t count = outer * rows * inner;
  for (int64_t i = global_thread(); i < count; i += global_stride()) {
    const int64_t line = i / inner, k = index[i];
    const bool inside = k >= 0 && k < groups;
    keys[i] = inside ? (line / rows * groups + k) * inner + (i - line * inner) : -1;
  }
}

int key_bits(int64_t groups) {
  int bits = 1;
  while (groups >> bits) ++bits;
  return bits;
}

// Scratch: keys, numbers and sorted keys, each at a multiple of 256 bytes, then the sort's own.
int64_t column_bytes(int64_t rows) { return (rows * 4 + 255) / 256 * 256; }

}  // namespace

int64_t group_rows_scratch(int64_t rows, int64_t groups, int device) {
  const DeviceGuard guard(device);
  size_t bytes = 0;
  uint32_t* const none = nullptr;
  check_cuda(sort_pairs(nullptr, &bytes, none, none, none, none, rows, key_bits(groups), nullptr),
             "group_rows");
  return 3 * column_bytes(rows) + static_cast<int64_t>(bytes);
}

void group_rows_cuda(const int64_t* index, int64_t rows, int64_t groups, uint32_t* order,
                     int64_t* offsets, void* scratch, int64_t scratch_bytes, int device,
                     void* stream) {
  const DeviceGuard guard(device);
  const auto on = static_cast<cudaStream_t>(stream);
  char* base = static_cast<char*>(scratch);
  const int64_t column = column_bytes(rows);
  auto* keys = reinterpret_cast<uint32_t*>(base);
  auto* numbers = reinterpret_cast<uint32_t*>(base + column);
  auto* sorted = reinterpret_cast<uint32_t*>(base + 2 * column);
  if (rows > 0) {
    sort_input_kernel<<<grid_size(rows), kBlock, 0, on>>>(index, rows, groups, keys, numbers);
    size_t bytes = static_cast<size_t>(scratch_bytes - 3 * column);
    check_cuda(sort_pairs(base + 3 * column, &bytes, keys, sorted, numbers, order, rows,
                          key_bits(groups), on),
               "group_rows");
  }
  offsets_kernel<<<grid_size(groups + 1), kBlock, 0, on>>>(sorted, rows, groups, offsets);
  check_cuda(cudaGetLastError(), "group_rows");
}

void sorted_offsets_cuda(const int64_t* index, int64_t rows, int64_t groups, int64_t* offsets,
                         int device, void* stream) {
  const DeviceGuard guard(device);
  offsets_kernel<<<grid_size(groups + 1), kBlock, 0, static_cast<cudaStream_t>(stream)>>>(
      index, rows, groups, offsets);
  check_cuda(cudaGetLastError(), "sorted_offsets");
}

void scatter_keys_cuda(const int64_t* index, int64_t outer, int64_t rows, int64_t inner,
                       int64_t groups, int64_t* keys, int device, void* stream) {
  const int64_t count = outer * rows * inner;
  if (count == 0) return;
  const DeviceGuard guard(device);
  keys_kernel<<<grid_size(count), kBlock, 0, static_cast<cudaStream_t>(stream)>>>(
      index, outer, rows, inner, groups, keys);
  check_cuda(cudaGetLastError(), "scatter_keys");
}

}  // namespace voxelpool
