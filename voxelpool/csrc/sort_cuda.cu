#include <cub/device/device_radix_sort.cuh>

#include "sort_cuda.h"

namespace voxelpool {

cudaError_t sort_pairs(void* memory, size_t* bytes, const uint32_t* keys, uint32_t* sorted_keys,
                       const uint32_t* values, uint32_t* sorted_values, int64_t n, int bits,
                       cudaStream_t stream) {
  return cub::DeviceRadixSort::SortPairs(memory, *bytes, keys, sorted_keys, values, sorted_values,
                                         static_cast<int>(n), 0, bits, stream);
}

cudaError_t sort_pairs(void* memory, size_t* bytes, const uint64_t* keys, uint64_t* sorted_keys,
                       const uint32_t* values, uint32_t* sorted_values, int64_t n, int bits,
                       cudaStream_t stream) {
  return cub::DeviceRadixSort::SortPairs(memory, *bytes, keys, sorted_keys, values, sorted_values,
                                         static_cast<int>(n), 0, bits, stream);
}

}  // namespace voxelpool
