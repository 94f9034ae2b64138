// float16 and bfloat16 on the CPU: storage as 16 bits, arithmetic in float. Branch-free, so that
// loops over channels vectorise.
#pragma once

#include <cstdint>
#include <cstring>

namespace voxelpool {

inline float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t bits_of_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// a where the condition holds, else b, by masks: a conditional that held floating-point work would
// not be vectorised, since that work might trap.
inline uint32_t select_bits(bool condition, uint32_t a, uint32_t b) {
  const uint32_t mask = 0u - static_cast<uint32_t>(condition);
  return (a & mask) | (b & ~mask);
}

struct BFloat16 {
  uint16_t bits;
  BFloat16() = default;
  explicit BFloat16(float value) {
    const uint32_t b = bits_of_float(value);
    const uint32_t rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;  // to nearest, ties to even
    bits = static_cast<uint16_t>((b & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
  }
  explicit operator float() const { return float_from_bits(static_cast<uint32_t>(bits) << 16); }
};

struct Float16 {
  uint16_t bits;
  Float16() = default;
  explicit Float16(float value) {
    const uint32_t b = bits_of_float(value);
    const uint32_t magnitude = b & 0x7fffffffu;
    const uint32_t rebased = magnitude - (112u << 23);
    const uint32_t normal = (rebased + 0xfffu + ((rebased >> 13) & 1u)) >> 13;
    // Below 2^-14 float16 counts in steps of 2^-24, which is the last bit of floats in [0.5, 1).
    const uint32_t subnormal = bits_of_float(float_from_bits(magnitude) + 0.5f) - 0x3f000000u;
    uint32_t half = select_bits(magnitude < (113u << 23), subnormal, normal);
    half = select_bits(magnitude >= 0x477ff000u, 0x7c00u, half);  // 65520 and more: infinity
    half = select_bits(magnitude > 0x7f800000u, 0x7e00u, half);
    bits = static_cast<uint16_t>(half | ((b >> 16) & 0x8000u));
  }
  explicit operator float() const {
    const uint32_t magnitude = bits & 0x7fffu;
    const uint32_t normal = (magnitude << 13) + (112u << 23);
    const uint32_t special = 0x7f800000u | (magnitude & 0x3ffu) << 13;
    const uint32_t subnormal =
        bits_of_float(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
    uint32_t value = select_bits(magnitude < 0x400u, subnormal, normal);
    value = select_bits(magnitude >= 0x7c00u, special, value);
    return float_from_bits(value | static_cast<uint32_t>(bits & 0x8000u) << 16);
  }
};

}  // namespace voxelpool
