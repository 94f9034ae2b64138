// The check of CSR offsets, for kernels on the CPU.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace voxelpool {

// Throws std::invalid_argument unless the groups + 1 offsets start at 0, never fall and end at
// rows.
inline void check_offsets(const int64_t* offsets, int64_t groups, int64_t rows) {
  const auto fail = [](int64_t at, int64_t value, const std::string& expected) {
    throw std::invalid_argument("offsets[" + std::to_string(at) + "] is " + std::to_string(value) +
                                ", expected " + expected);
  };
  if (offsets[0] != 0) fail(0, offsets[0], "0");
  bool sorted = true;
  for (int64_t k = 0; k < groups; ++k) sorted &= offsets[k] <= offsets[k + 1];
  for (int64_t k = 0; !sorted && k < groups; ++k) {
    if (offsets[k] > offsets[k + 1]) {
      fail(k + 1, offsets[k + 1], "at least the offset before it, " + std::to_string(offsets[k]));
    }
  }
  if (offsets[groups] != rows) {
    fail(groups, offsets[groups], std::to_string(rows) + ", the number of rows");
  }
}

}  // namespace voxelpool
