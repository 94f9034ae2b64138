#pragma once

namespace voxelpool {

// 0 where this build's kernels can run on `device`, else the code of the CUDA runtime error
// (35: the driver is older than the toolkit; 209: built for other architectures).
int cuda_probe(int device);

}  // namespace voxelpool
