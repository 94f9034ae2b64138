#include "../cuda_common.h"
#include "voxelize.h"

namespace voxelpool {
namespace {

__global__ void keys_kernel(VoxelizeInput input, int64_t* keys, int64_t* first_bad) {
  const int64_t per_frame = input.grid.cells_per_frame();
  for (int64_t i = global_thread(); i < input.n; i += global_stride()) {
    int64_t frame = input.batch == nullptr ? 0 : input.batch[i];
    if (frame < 0 || frame >= input.batch_size) {
      atomicMin(reinterpret_cast<long long*>(first_bad), static_cast<long long>(i));
      frame = 0;
    }
    const int64_t cell = point_cell(input.grid, input.points + i * input.stride);
    keys[i] = cell < 0 ? input.batch_size * per_frame : frame * per_frame + cell;
  }
}

__global__ void random_kernel(uint64_t stream, const int64_t* index, int64_t n, int64_t* out) {
  for (int64_t i = global_thread(); i < n; i += global_stride()) {
    out[i] = random63(stream, static_cast<uint64_t>(index[i]));
  }
}

__global__ void coords_kernel(Grid grid, const int64_t* keys, int64_t n, int32_t* coords) {
  for (int64_t i = global_thread(); i < n; i += global_stride()) {
    write_coords(grid, keys[i], coords + 4 * i);
  }
}

}  // namespace

void voxelize_keys_cuda(const VoxelizeInput& input, int64_t* keys, int64_t* first_bad, int device,
                        void* stream) {
  if (input.n == 0) return;
  const DeviceGuard guard(device);
  keys_kernel<<<grid_size(input.n), kBlock, 0, static_cast<cudaStream_t>(stream)>>>(input, keys,
                                                                                    first_bad);
  check_cuda(cudaGetLastError(), "voxelize (keys)");
}

void voxelize_random_cuda(int64_t seed, uint64_t salt, const int64_t* index, int64_t n,
                          int64_t* out, int device, void* stream) {
  if (n == 0) return;
  const DeviceGuard guard(device);
  random_kernel<<<grid_size(n), kBlock, 0, static_cast<cudaStream_t>(stream)>>>(
      random_stream(seed, salt), index, n, out);
  check_cuda(cudaGetLastError(), "voxelize (random numbers)");
}

void voxelize_coords_cuda(const Grid& grid, const int64_t* keys, int64_t n, int32_t* coords,
                          int device, void* stream) {
  if (n == 0) return;
  const DeviceGuard guard(device);
  coords_kernel<<<grid_size(n), kBlock, 0, static_cast<cudaStream_t>(stream)>>>(grid, keys, n,
                                                                                coords);
  check_cuda(cudaGetLastError(), "voxelize (coords)");
}

}  // namespace voxelpool
