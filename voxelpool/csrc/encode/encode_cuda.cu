// One launch a layer. A block takes kVoxels whole voxels, so that no maximum crosses blocks; a
// thread takes a channel of theirs and keeps the sums of kRows points in registers. Their columns
// lie in shared memory, from where all threads read the same one; weights come from the cache.
#include "../cuda_common.h"
#include "encode.h"

namespace voxelpool {
namespace {

constexpr int kVoxels = 8;
constexpr int kRows = 16;
constexpr int kWarp = 32;

__device__ __forceinline__ int64_t clamp_to(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : (value > high ? high : value);
}

// A warp a voxel.
__global__ void code_kernel(EncodeInput input, int64_t width, float* code) {
  const int lane = threadIdx.x % kWarp;
  const int64_t columns = input.columns;
  for (int64_t k = global_thread() / kWarp; k < input.voxels; k += global_stride() / kWarp) {
    const int64_t begin = clamp_to(input.offsets[k], 0, input.rows);
    const int64_t end = clamp_to(input.offsets[k + 1], begin, input.rows);
    const auto point = [&](int64_t row) {
      return input.values + columns * clamp_to(input.point_index[row], 0, input.num_points - 1);
    };
    float mean[3] = {0.0f, 0.0f, 0.0f};
    for (int64_t base = begin; base < end; base += kWarp) {
      const int count = static_cast<int>(end - base < kWarp ? end - base : kWarp);
      float xyz[3] = {0.0f, 0.0f, 0.0f};
      if (lane < count) {
        for (int axis = 0; axis < 3; ++axis) xyz[axis] = point(base + lane)[axis];
      }
      for (int r = 0; r < count; ++r) {
        for (int axis = 0; axis < 3; ++axis) {
          mean[axis] += __shfl_sync(0xffffffffu, xyz[axis], r);
        }
      }
    }
    for (int axis = 0; axis < 3; ++axis) mean[axis] = mean_of(mean[axis], end - begin);
    for (int64_t i = lane; i < (end - begin) * width; i += kWarp) {
      const int64_t row = begin + i / width, column = i % width;
      const int64_t offset = column - columns, axis = offset % 3;
      float value = point(row)[column < columns ? column : axis];
      if (column >= columns) {
        value -= offset >= 3 ? input.centers[3 * k + axis]
                             : (axis == 0 ? mean[0] : (axis == 1 ? mean[1] : mean[2]));
      }
      code[row * width + column] = value;
    }
  }
}

struct LayerJob {
  const int64_t* offsets;
  int64_t voxels;
  int64_t rows;
  const float* x;       // (rows, depth)
  const float* pooled;  // (voxels, depth), or null in the first layer
  int64_t depth;
  const float* weight;         // (depth, width), transposed
  const float* pooled_weight;  // (depth, width), or null
  const float* bias;           // (width)
  int64_t width;
  float* own;   // (rows, width), or null in the last layer
  float* best;  // (voxels, width)
};

// Floats between rows of a tile: whole float4.
VP_HOST_DEVICE int tile_stride(int64_t depth) { return static_cast<int>((depth + 3) / 4 * 4); }

// The columns of rows first, … of `from` (end, depth); zero from row `end` on.
__device__ void load_tile(const float* from, int64_t first, int64_t end, int rows, int depth,
                          float* tile) {
  const int stride = tile_stride(depth);
  for (int i = threadIdx.x; i < rows * depth; i += blockDim.x) {
    const int row = i / depth, column = i - row * depth;
    tile[row * stride + column] = first + row < end ? from[first * depth + i] : 0.0f;
  }
}

// Adds tile[r] . weight column by column to sum[r].
template <int rows>
__device__ __forceinline__ void accumulate(float (&sum)[rows], const float* tile, int depth,
                                           const float* weight, int64_t width) {
  const int stride = tile_stride(depth);
  int k = 0;
  for (; k + 4 <= depth; k += 4, weight += 4 * width) {
    const float w0 = __ldg(weight), w1 = __ldg(weight + width);
    const float w2 = __ldg(weight + 2 * width), w3 = __ldg(weight + 3 * width);
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      const float4 x = *reinterpret_cast<const float4*>(tile + r * stride + k);
      sum[r] = fmaf(x.x, w0, sum[r]);
      sum[r] = fmaf(x.y, w1, sum[r]);
      sum[r] = fmaf(x.z, w2, sum[r]);
      sum[r] = fmaf(x.w, w3, sum[r]);
    }
  }
  for (; k < depth; ++k, weight += width) {
    const float w = __ldg(weight);
#pragma unroll
    for (int r = 0; r < rows; ++r) sum[r] = fmaf(tile[r * stride + k], w, sum[r]);
  }
}

__global__ void layer_kernel(LayerJob job) {
  extern __shared__ __align__(16) float memory[];
  __shared__ int64_t offset[kVoxels + 1];
  __shared__ int voxel_of_row[kRows];
  const int depth = static_cast<int>(job.depth), width = static_cast<int>(job.width);
  float* tile = memory;                              // (kRows, stride)
  float* start = tile + kRows * tile_stride(depth);  // (kVoxels, width), a thread's own column
  float* best = start + kVoxels * width;             // as start

  const int64_t groups = (job.voxels + kVoxels - 1) / kVoxels;
  for (int64_t group = blockIdx.x; group < groups; group += gridDim.x) {
    const int64_t first = group * kVoxels;
    const int count = static_cast<int>(job.voxels - first < kVoxels ? job.voxels - first : kVoxels);
    if (threadIdx.x <= count) {
      offset[threadIdx.x] = clamp_to(job.offsets[first + threadIdx.x], 0, job.rows);
    }
    if (job.pooled != nullptr) load_tile(job.pooled, first, job.voxels, kVoxels, depth, tile);
    __syncthreads();
    for (int c = threadIdx.x; c < width; c += blockDim.x) {
      float sum[kVoxels];
#pragma unroll
      for (int v = 0; v < kVoxels; ++v) sum[v] = job.bias[c];
      if (job.pooled != nullptr) accumulate(sum, tile, depth, job.pooled_weight + c, width);
#pragma unroll
      for (int v = 0; v < kVoxels; ++v) {
        start[v * width + c] = sum[v];
        best[v * width + c] = 0.0f;
      }
    }
    const int64_t end = offset[count];
    for (int64_t row = offset[0]; row < end; row += kRows) {
      __syncthreads();  // all have done with the tile
      load_tile(job.x, row, end, kRows, depth, tile);
      if (threadIdx.x < kRows) {
        int voxel = 0;
        while (voxel + 1 < count && offset[voxel + 1] <= row + threadIdx.x) ++voxel;
        voxel_of_row[threadIdx.x] = voxel;
      }
      __syncthreads();
      const int real = static_cast<int>(end - row < kRows ? end - row : kRows);
      for (int c = threadIdx.x; c < width; c += blockDim.x) {
        float sum[kRows];
#pragma unroll
        for (int r = 0; r < kRows; ++r) sum[r] = start[voxel_of_row[r] * width + c];
        accumulate(sum, tile, depth, job.weight + c, width);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          if (r < real) {
            if (job.own != nullptr) job.own[(row + r) * width + c] = rectified(sum[r]);
            float& most = best[voxel_of_row[r] * width + c];
            most = larger(most, sum[r]);
          }
        }
      }
    }
    for (int c = threadIdx.x; c < width; c += blockDim.x) {
      for (int v = 0; v < count; ++v) job.best[(first + v) * width + c] = best[v * width + c];
    }
    __syncthreads();  // all have done with the tile and the offsets
  }
}

}  // namespace

void encode_voxels_cuda(const EncodeInput& input, const EncodeLayers& layers, float* scratch,
                        float* out, int device, void* stream) {
  if (input.voxels == 0) return;
  const DeviceGuard guard(device);
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  LayerJob job{};
  job.offsets = input.offsets;
  job.voxels = input.voxels;
  job.rows = input.rows;
  job.x = input.values;
  job.depth = input.code_columns();
  if (input.point_index != nullptr) {
    // Without points there is no row to read either.
    if (input.rows > 0 && input.num_points > 0) {
      code_kernel<<<grid_size(input.voxels * kWarp), kBlock, 0, on>>>(input, job.depth, scratch);
      check_cuda(cudaGetLastError(), "encode_points");
    } else {
      job.rows = 0;
    }
    job.x = scratch;
    scratch += input.rows * job.depth;
  }
  const float* parameters = layers.parameters;
  for (size_t l = 0; l < layers.widths.size(); ++l) {
    const bool last = l + 1 == layers.widths.size();
    job.width = layers.widths[l];
    if (job.width > kEncodeMaxWidth || job.depth > kEncodeMaxWidth) {
      throw std::invalid_argument("a layer is too wide for the CUDA kernel");
    }
    job.weight = parameters;
    parameters += job.depth * job.width;
    if (l > 0) {
      job.pooled_weight = parameters;
      parameters += job.depth * job.width;
    }
    job.bias = parameters;
    parameters += job.width;
    job.own = last ? nullptr : scratch;
    job.best = last ? out : scratch + input.rows * job.width;
    scratch += last ? 0 : (input.rows + input.voxels) * job.width;

    const int threads =
        static_cast<int>(std::min<int64_t>((job.width + kWarp - 1) / kWarp * kWarp, 4 * kWarp));
    const size_t shared =
        sizeof(float) * (kRows * tile_stride(job.depth) + 2 * kVoxels * job.width);
    layer_kernel<<<grid_size(input.voxels, kVoxels), threads, shared, on>>>(job);
    check_cuda(cudaGetLastError(), "encode_voxels");
    job.x = job.own;
    job.pooled = job.best;
    job.depth = job.width;
  }
}

}  // namespace voxelpool
