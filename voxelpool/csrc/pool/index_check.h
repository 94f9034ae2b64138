// What is said of an index that does not fit.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace voxelpool {

[[noreturn]] inline void fail_index(const std::string& position, int64_t value,
                                    const std::string& expected) {
  throw std::invalid_argument("index[" + position + "] is " + std::to_string(value) +
                              ", expected " + expected);
}

inline std::string index_range(int64_t groups) {
  return groups == 0 ? "no entries: there are 0 groups" : "0 to " + std::to_string(groups - 1);
}

// Names the first entry out of range; there must be one.
[[noreturn]] inline void throw_index(const int64_t* index, int64_t rows, int64_t groups) {
  int64_t r = 0;
  while (r + 1 < rows && index[r] >= 0 && index[r] < groups) ++r;
  fail_index(std::to_string(r), index[r], index_range(groups));
}

}  // namespace voxelpool
