// Vectors of floats, one struct an instruction set, all with the same members, so that a kernel is
// written once and compiled for each. It stands in functions marked with the VP_TARGET_… of its
// struct, and runs where the machine has that. Included by .cpp files alone.
#pragma once

#include <cstring>

#include "compiler.h"

#if defined(VP_X86)
#include <immintrin.h>
#define VP_TARGET_AVX2 __attribute__((target("avx2,fma")))
#define VP_TARGET_AVX512 __attribute__((target("avx512f")))
#endif
#define VP_TARGET_PLAIN

namespace voxelpool {

struct PlainVectors {
  struct Vector {
    float lane[4];
  };
  static constexpr int lanes = 4;
  static VP_INLINE Vector load(const float* from) { return {{from[0], from[1], from[2], from[3]}}; }
  static VP_INLINE void store(float* to, Vector value) { std::memcpy(to, value.lane, 16); }
  static VP_INLINE Vector broadcast(float value) { return {{value, value, value, value}}; }
  static VP_INLINE Vector multiply_add(Vector a, Vector b, Vector sum) {
    for (int l = 0; l < lanes; ++l) {
#if defined(VP_X86)  // where a fused multiply-add is a call
      sum.lane[l] += a.lane[l] * b.lane[l];
#else
      sum.lane[l] = __builtin_fmaf(a.lane[l], b.lane[l], sum.lane[l]);
#endif
    }
    return sum;
  }
};

#if defined(VP_X86)
struct Avx2Vectors {
  using Vector = __m256;
  static constexpr int lanes = 8;
  VP_TARGET_AVX2 static VP_INLINE Vector load(const float* from) { return _mm256_loadu_ps(from); }
  VP_TARGET_AVX2 static VP_INLINE void store(float* to, Vector value) {
    _mm256_storeu_ps(to, value);
  }
  VP_TARGET_AVX2 static VP_INLINE Vector broadcast(float value) { return _mm256_set1_ps(value); }
  VP_TARGET_AVX2 static VP_INLINE Vector multiply_add(Vector a, Vector b, Vector sum) {
    return _mm256_fmadd_ps(a, b, sum);
  }
};

struct Avx512Vectors {
  using Vector = __m512;
  static constexpr int lanes = 16;
  VP_TARGET_AVX512 static VP_INLINE Vector load(const float* from) { return _mm512_loadu_ps(from); }
  VP_TARGET_AVX512 static VP_INLINE void store(float* to, Vector value) {
    _mm512_storeu_ps(to, value);
  }
  VP_TARGET_AVX512 static VP_INLINE Vector broadcast(float value) { return _mm512_set1_ps(value); }
  VP_TARGET_AVX512 static VP_INLINE Vector multiply_add(Vector a, Vector b, Vector sum) {
    return _mm512_fmadd_ps(a, b, sum);
  }
};

inline bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
inline bool has_avx512() { return __builtin_cpu_supports("avx512f"); }
#endif

}  // namespace voxelpool
