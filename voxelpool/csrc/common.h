// What every kernel family shares: host/device macros, the hash, dtype codes and the CUDA helpers.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#if defined(__CUDACC__)
#define VP_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define VP_HOST_DEVICE inline
#endif

namespace voxelpool {

// Codes of torch dtypes; ops/_native.py holds the same list.
enum class DType : int {
  kFloat32 = 0,
  kFloat64 = 1,
  kFloat16 = 2,
  kBFloat16 = 3,
  kInt8 = 4,
  kUInt8 = 5,
  kInt16 = 6,
  kInt32 = 7,
  kInt64 = 8,
};

// The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): a bijection of 64 bits.
VP_HOST_DEVICE uint64_t mix64(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

// Number `index` of the random stream `stream`, as 63 bits so that signed comparison orders it.
VP_HOST_DEVICE int64_t random63(uint64_t stream, uint64_t index) {
  return static_cast<int64_t>(mix64(stream + (index + 1) * 0x9E3779B97F4A7C15ull) >> 1);
}

// Streams for one seed: independent uses take different salts.
VP_HOST_DEVICE uint64_t random_stream(int64_t seed, uint64_t salt) {
  return mix64(static_cast<uint64_t>(seed) ^ salt);
}

}  // namespace voxelpool
