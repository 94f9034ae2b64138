// The stable radix sort of the CUDA kernels: compiled once for all of them, as it is large.
// Included by .cu files alone.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace voxelpool {

// Sorts n < 2^31 values by the lowest `bits` bits of their keys. Without memory, it sets *bytes to
// what it needs instead; pointers are then not looked at.
cudaError_t sort_pairs(void* memory, size_t* bytes, const uint32_t* keys, uint32_t* sorted_keys,
                       const uint32_t* values, uint32_t* sorted_values, int64_t n, int bits,
                       cudaStream_t stream);
cudaError_t sort_pairs(void* memory, size_t* bytes, const uint64_t* keys, uint64_t* sorted_keys,
                       const uint32_t* values, uint32_t* sorted_values, int64_t n, int bits,
                       cudaStream_t stream);

}  // namespace voxelpool
