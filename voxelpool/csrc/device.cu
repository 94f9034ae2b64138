#include "cuda_common.h"
#include "device.h"

namespace voxelpool {

__global__ void probe_kernel() {}

int cuda_probe(int device) {
  int previous = 0;
  cudaError_t status = cudaGetDevice(&previous);
  if (status == cudaSuccess) status = cudaSetDevice(device);
  cudaFuncAttributes attributes;
  if (status == cudaSuccess) status = cudaFuncGetAttributes(&attributes, probe_kernel);
  cudaSetDevice(previous);
  cudaGetLastError();
  return static_cast<int>(status);
}

}  // namespace voxelpool
