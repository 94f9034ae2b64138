// The keys of the points in range, packed: the first pass of voxelization on the CPU.
#pragma once

#include <cstdint>

#include "voxelize.h"

namespace voxelpool {

// Writes key and index of points first to last - 1 that lie in range, in order, to keys and index,
// which have room for all of them. Returns how many; where a frame is out of range and such points
// are not to be dropped, *bad becomes the first such point. All versions give the same bits.
int64_t find_keys(const VoxelizeInput& input, int64_t first, int64_t last, uint32_t* keys,
                  uint32_t* index, int64_t* bad);
int64_t find_keys(const VoxelizeInput& input, int64_t first, int64_t last, uint64_t* keys,
                  uint64_t* index, int64_t* bad);

}  // namespace voxelpool
