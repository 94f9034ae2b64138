// CSR offsets for kernels on the CPU: their check, and their division into pieces of like work.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace voxelpool {

// Throws std::invalid_argument unless the groups + 1 offsets start at 0, never fall and end at
// rows; where `partial`, they may start later and end earlier.
inline void check_offsets(const int64_t* offsets, int64_t groups, int64_t rows,
                          bool partial = false) {
  const auto fail = [](int64_t at, int64_t value, const std::string& expected) {
    throw std::invalid_argument("offsets[" + std::to_string(at) + "] is " + std::to_string(value) +
                                ", expected " + expected);
  };
  if (partial ? offsets[0] < 0 : offsets[0] != 0) {
    fail(0, offsets[0], partial ? "at least 0" : "0");
  }
  bool sorted = true;
  for (int64_t k = 0; k < groups; ++k) sorted &= offsets[k] <= offsets[k + 1];
  for (int64_t k = 0; !sorted && k < groups; ++k) {
    if (offsets[k] > offsets[k + 1]) {
      fail(k + 1, offsets[k + 1], "at least the offset before it, " + std::to_string(offsets[k]));
    }
  }
  const int64_t end = offsets[groups];
  if (partial ? end > rows : end != rows) {
    fail(groups, end, (partial ? "at most " : "") + std::to_string(rows) + ", the number of rows");
  }
}

// Where piece `piece` of `pieces` begins, if a row costs as much as a group's result: the first
// group k at which k groups and their rows make up the share of the pieces before.
inline int64_t piece_begin(const int64_t* offsets, int64_t groups, int64_t rows, int64_t piece,
                           int64_t pieces) {
  if (piece == pieces) return groups;
  const int64_t share = (rows + groups) * piece / pieces;
  int64_t low = 0, high = groups;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (offsets[middle] + middle < share) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace voxelpool
