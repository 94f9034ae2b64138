// Keys, a stable radix sort by key, one scan over the occupied cells, then the output: about a
// dozen launches, none of which waits for the host. Every number on the way is below 2^32, but for
// keys of vast grids and the sums of the scan, which hold two such numbers.
#include <thrust/iterator/counting_iterator.h>
#include <thrust/iterator/transform_iterator.h>

#include <cub/block/block_scan.cuh>
#include <cub/device/device_scan.cuh>
#include <cub/device/device_select.cuh>

#include "../cuda_common.h"
#include "../sort_cuda.h"
#include "voxelize.h"

namespace voxelpool {
namespace {

constexpr int kSelectBlock = 256;  // threads that choose a sample together: one a digit
constexpr int kLanes = 8;          // threads that copy the points of a voxel
constexpr unsigned kMostBlocks = 4096;

unsigned blocks_for(int64_t n, int block = kBlock) {
  return static_cast<unsigned>(
      std::max<int64_t>(1, std::min<int64_t>((n + block - 1) / block, kMostBlocks)));
}

// Parts of the workspace. scan, first_bad and so on lie where voxelize_plan_cuda promises.
template <typename Key>
struct Workspace {
  uint64_t* scan;          // (n + 1,) before each cell: voxels * 2^32 + points
  uint64_t* first_bad;     // n - the first point of a bad frame, or 0
  uint32_t* num_cells;     // occupied ones, and one more for the points outside
  uint32_t* num_overfull;  // voxels with more points than they may keep
  Key* keys[2];            // (n,) before and after sorting
  uint32_t* index[2];      // (n,)
  uint32_t* starts;        // (n,) the first sorted point of each cell
  uint32_t* places;        // (n,) of each point in its own frame; or null: as in the input
  uint32_t* overfull;      // cells of such voxels, in any order
  Limit* limits;           // (batch_size,) of the voxels of a frame; or null: no limit
  char* cub;               // what lies behind is CUB's
};

struct Carver {
  char* base;
  int64_t used = 0;

  template <typename T>
  T* take(int64_t n) {
    T* part = reinterpret_cast<T*>(base + used);
    used += (n * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
    return part;
  }
};

// Whether a voxel may hold more points than it may keep.
bool samples(const VoxelizeInput& input) {
  return input.max_points >= 0 && input.n > input.max_points;
}

template <typename Key>
Workspace<Key> carve(const VoxelizeInput& input, void* base) {
  Carver carver{static_cast<char*>(base)};
  Workspace<Key> work{};
  const int64_t n = input.n;
  uint64_t* scan_and_counts = carver.take<uint64_t>(n + 3);
  work.scan = scan_and_counts;
  work.first_bad = scan_and_counts + n + 1;
  work.num_overfull = reinterpret_cast<uint32_t*>(scan_and_counts + n + 2);
  work.num_cells = work.num_overfull + 1;
  for (int side = 0; side < 2; ++side) {
    work.keys[side] = carver.take<Key>(n);
    work.index[side] = carver.take<uint32_t>(n);
  }
  work.starts = carver.take<uint32_t>(n);
  const bool alone = input.batch == nullptr || (input.batch_size == 1 && !input.drop_bad_frames);
  if (samples(input)) {
    if (!alone) work.places = carver.take<uint32_t>(n);
    work.overfull = carver.take<uint32_t>(n / (input.max_points + 1));
  }
  if (input.max_voxels >= 0) work.limits = carver.take<Limit>(input.batch_size);
  work.cub = carver.take<char>(0);
  return work;
}

uint64_t all_cells(const VoxelizeInput& input) {
  return static_cast<uint64_t>(input.batch_size) *
         static_cast<uint64_t>(input.grid.cells_per_frame());
}

int bits_of(uint64_t value) {
  int bits = 1;
  while (value >> bits != 0) ++bits;
  return bits;
}

// --- what the steps compute ----------------------------------------------------------------------

template <typename Key>
struct StartsCell {
  const Key* keys;

  __host__ __device__ bool operator()(uint32_t i) const { return i == 0 || keys[i] != keys[i - 1]; }
};

// The occupied cells in order; the last of them may stand for all points outside.
template <typename Key>
struct Cells {
  const Key* keys;
  const uint32_t* starts;
  const uint32_t* num_cells;
  uint64_t outside;  // the key of points outside
  uint32_t n;

  VP_HOST_DEVICE uint64_t key(uint32_t cell) const { return keys[starts[cell]]; }
  VP_HOST_DEVICE uint32_t end(uint32_t cell) const {
    return cell + 1 < *num_cells ? starts[cell + 1] : n;
  }

  // The first cell whose key is not below `bound`.
  VP_HOST_DEVICE uint32_t lower_bound(uint64_t bound) const {
    uint32_t first = 0, last = *num_cells;
    while (first < last) {
      const uint32_t middle = first + (last - first) / 2;
      if (key(middle) < bound) {
        first = middle + 1;
      } else {
        last = middle;
      }
    }
    return first;
  }
};

// What a cell adds to the output: 2^32 + points kept, or 0 where it is none or left out.
template <typename Key>
struct Contribution {
  Cells<Key> cells;
  const Limit* limits;
  uint64_t per_frame;
  uint64_t stream;      // of the draws of voxels
  uint32_t max_points;  // 2^32 - 1: no limit

  __host__ __device__ uint64_t operator()(uint32_t cell) const {
    if (cell >= *cells.num_cells) return 0;
    const uint64_t key = cells.key(cell);
    if (key >= cells.outside) return 0;
    if (limits != nullptr) {
      const uint64_t frame = key / per_frame, in_frame = key % per_frame;
      if (!stays(limits[frame], random63(stream, in_frame), cell)) return 0;
    }
    const uint32_t points = cells.end(cell) - cells.starts[cell];
    return (uint64_t{1} << 32) + (points < max_points ? points : max_points);
  }
};

template <typename Key>
Cells<Key> cells_of(const VoxelizeInput& input, const Workspace<Key>& work) {
  return {work.keys[1], work.starts, work.num_cells, all_cells(input),
          static_cast<uint32_t>(input.n)};
}

template <typename Key>
Contribution<Key> contribution_of(const VoxelizeInput& input, const Workspace<Key>& work) {
  return {cells_of(input, work), work.limits, static_cast<uint64_t>(input.grid.cells_per_frame()),
          random_stream(input.seed, kVoxelSalt),
          input.max_points < 0
              ? ~uint32_t{0}
              : static_cast<uint32_t>(std::min<int64_t>(input.max_points, ~uint32_t{0}))};
}

// --- the library's steps, by name ----------------------------------------------------------------

// Each as CUB takes it: without memory, sets *bytes to what it needs.
template <typename Key>
cudaError_t sort_by_key(void* memory, size_t* bytes, const Workspace<Key>& work, int64_t n,
                        int bits, cudaStream_t stream) {
  return sort_pairs(memory, bytes, work.keys[0], work.keys[1], work.index[0], work.index[1], n,
                    bits, stream);
}

template <typename Key>
cudaError_t list_starts(void* memory, size_t* bytes, const Workspace<Key>& work, int64_t n,
                        cudaStream_t stream) {
  return cub::DeviceSelect::If(memory, *bytes, thrust::counting_iterator<uint32_t>(0), work.starts,
                               work.num_cells, static_cast<int>(n), StartsCell<Key>{work.keys[1]},
                               stream);
}

template <typename Key>
cudaError_t scan_cells(void* memory, size_t* bytes, const Workspace<Key>& work,
                       const VoxelizeInput& input, cudaStream_t stream) {
  const auto contributions = thrust::make_transform_iterator(thrust::counting_iterator<uint32_t>(0),
                                                             contribution_of(input, work));
  return cub::DeviceScan::ExclusiveSum(memory, *bytes, contributions, work.scan,
                                       static_cast<int>(input.n) + 1, stream);
}

template <typename Key>
int64_t workspace_bytes(const VoxelizeInput& input) {
  const Workspace<Key> work = carve<Key>(input, nullptr);
  const int64_t n = input.n;
  size_t most = 0, bytes = 0;
  check_cuda(sort_by_key(nullptr, &bytes, work, n, static_cast<int>(8 * sizeof(Key)), nullptr),
             "voxelize (memory to sort)");
  most = std::max(most, bytes);
  check_cuda(list_starts(nullptr, &bytes, work, n, nullptr), "voxelize (memory to list cells)");
  most = std::max(most, bytes);
  check_cuda(scan_cells(nullptr, &bytes, work, input, nullptr), "voxelize (memory to scan)");
  most = std::max(most, bytes);
  return reinterpret_cast<intptr_t>(work.cub) + static_cast<int64_t>(most);
}

// --- kernels -------------------------------------------------------------------------------------

VP_HOST_DEVICE bool frame_of_point(const VoxelizeInput& input, int64_t i, int64_t* frame) {
  *frame = input.batch == nullptr ? 0 : input.batch[i];
  return *frame >= 0 && *frame < input.batch_size;
}

template <typename Key>
__global__ void frames_kernel(VoxelizeInput input, Workspace<Key> work) {
  for (int64_t i = global_thread(); i < input.n; i += global_stride()) {
    int64_t frame;
    const bool valid = frame_of_point(input, i, &frame);
    work.keys[0][i] = static_cast<Key>(valid ? frame : input.batch_size);
    work.index[0][i] = static_cast<uint32_t>(i);
  }
}

// Points lie sorted by frame.
template <typename Key>
__global__ void places_kernel(int64_t n, Workspace<Key> work) {
  const Key* frames = work.keys[1];
  for (int64_t i = global_thread(); i < n; i += global_stride()) {
    const Key frame = frames[i];
    int64_t first = 0, last = i;  // the first point of the frame is not behind this one
    while (first < last) {
      const int64_t middle = (first + last) / 2;
      if (frames[middle] < frame) {
        first = middle + 1;
      } else {
        last = middle;
      }
    }
    work.places[work.index[1][i]] = static_cast<uint32_t>(i - first);
  }
}

template <typename Key>
__global__ void keys_kernel(VoxelizeInput input, uint64_t outside, Workspace<Key> work) {
  const int64_t per_frame = input.grid.cells_per_frame();
  for (int64_t i = global_thread(); i < input.n; i += global_stride()) {
    int64_t frame;
    const bool valid = frame_of_point(input, i, &frame);
    if (!valid) {
      atomicMax(reinterpret_cast<unsigned long long*>(work.first_bad),
                static_cast<unsigned long long>(input.n - i));
    }
    const int64_t cell = point_cell(input.grid, input.points + i * input.stride);
    work.keys[0][i] = static_cast<Key>(
        valid && cell >= 0 ? static_cast<uint64_t>(frame * per_frame + cell) : outside);
    work.index[0][i] = static_cast<uint32_t>(i);
  }
}

struct SelectMemory {
  typename cub::BlockScan<uint32_t, kSelectBlock>::TempStorage scan;
  uint32_t counts[kSelectBlock];
  uint32_t digit;
  uint32_t before;
  uint32_t equal;
  uint32_t lowest;
};

// The limit that lets `most` of draw(0), …, draw(n - 1) stay, 0 < most < n, found digit by digit
// from the top by the whole block.
template <typename Draw>
__device__ Limit block_limit(uint32_t n, uint32_t most, const Draw& draw, SelectMemory& memory) {
  const uint32_t thread = threadIdx.x;
  uint64_t prefix = 0;
  for (int shift = 56;; shift -= 8) {
    memory.counts[thread] = 0;
    __syncthreads();
    for (uint32_t i = thread; i < n; i += kSelectBlock) {
      const uint64_t number = static_cast<uint64_t>(draw(i)) >> shift;
      if (number >> 8 == prefix) atomicAdd(&memory.counts[number & 255], 1u);
    }
    __syncthreads();
    const uint32_t count = memory.counts[thread];
    uint32_t before;
    cub::BlockScan<uint32_t, kSelectBlock>(memory.scan).ExclusiveSum(count, before);
    if (before < most && most <= before + count) {  // true for one thread
      memory.digit = thread;
      memory.before = before;
      memory.equal = count;
    }
    __syncthreads();
    prefix = prefix << 8 | memory.digit;
    most -= memory.before;
    const uint32_t equal = memory.equal;
    if (equal == most) {  // all that share these digits stay
      const uint64_t rest = (uint64_t{1} << shift) - 1;
      __syncthreads();
      return {static_cast<int64_t>(prefix << shift | rest), static_cast<int64_t>(n)};
    }
    if (shift == 0) {  // two equal draws, of which the first stays
      if (thread == 0) memory.lowest = n;
      __syncthreads();
      for (uint32_t i = thread; i < n; i += kSelectBlock) {
        if (static_cast<uint64_t>(draw(i)) == prefix) atomicMin(&memory.lowest, i);
      }
      __syncthreads();
      const uint32_t lowest = memory.lowest;
      __syncthreads();
      return {static_cast<int64_t>(prefix), static_cast<int64_t>(lowest)};
    }
    __syncthreads();
  }
}

// One block a frame.
template <typename Key>
__global__ void limits_kernel(int64_t batch_size, int64_t max_voxels, Contribution<Key> voxels,
                              Limit* limits) {
  __shared__ SelectMemory memory;
  for (int64_t frame = blockIdx.x; frame < batch_size; frame += gridDim.x) {
    const uint64_t first_key = static_cast<uint64_t>(frame) * voxels.per_frame;
    const uint32_t first = voxels.cells.lower_bound(first_key);
    const uint32_t last = voxels.cells.lower_bound(first_key + voxels.per_frame);
    Limit limit{INT64_MAX, INT64_MAX};
    if (last - first > max_voxels) {
      limit = block_limit(
          last - first, static_cast<uint32_t>(max_voxels),
          [&](uint32_t i) {
            return random63(voxels.stream, voxels.cells.key(first + i) - first_key);
          },
          memory);
      limit.position += first;
    }
    if (threadIdx.x == 0) limits[frame] = limit;
  }
}

template <typename Key>
__global__ void write_kernel(VoxelizeInput input, Cells<Key> cells, Workspace<Key> work,
                             VoxelizeOutput output) {
  const uint64_t total = work.scan[input.n];
  const int64_t voxels = static_cast<int64_t>(total >> 32);
  const int64_t points = static_cast<int64_t>(total & 0xFFFFFFFFull);
  const int64_t thread = global_thread(), stride = global_stride();
  if (thread == 0) {
    output.offsets[0] = 0;
    if (output.num_voxels != nullptr) *output.num_voxels = voxels;
  }
  const uint32_t lane = static_cast<uint32_t>(thread % kLanes);
  for (int64_t cell = thread / kLanes; cell < *cells.num_cells; cell += stride / kLanes) {
    const uint64_t here = work.scan[cell], added = work.scan[cell + 1] - here;
    if (added == 0) continue;
    const int64_t voxel = static_cast<int64_t>(here >> 32);
    const int64_t offset = static_cast<int64_t>(here & 0xFFFFFFFFull);
    const uint32_t kept = static_cast<uint32_t>(added);
    const uint32_t start = cells.starts[cell];
    const bool all = cells.end(static_cast<uint32_t>(cell)) - start == kept;
    if (lane == 0) {
      write_coords(input.grid, static_cast<int64_t>(cells.keys[start]), output.coords + 4 * voxel);
      output.offsets[voxel + 1] = offset + kept;
      if (!all) work.overfull[atomicAdd(work.num_overfull, 1u)] = static_cast<uint32_t>(cell);
    }
    if (!all) continue;
    for (uint32_t i = lane; i < kept; i += kLanes) {
      output.point_index[offset + i] = work.index[1][start + i];
    }
  }
  for (int64_t voxel = voxels + thread; voxel < output.capacity; voxel += stride) {
    for (int axis = 0; axis < 4; ++axis) output.coords[4 * voxel + axis] = -1;
    output.offsets[voxel + 1] = points;
  }
  for (int64_t i = points + thread; i < output.index_capacity; i += stride) {
    output.point_index[i] = 0;
  }
}

// One block a voxel.
template <typename Key>
__global__ void sample_kernel(uint64_t stream, Cells<Key> cells, Workspace<Key> work,
                              int64_t* point_index) {
  __shared__ SelectMemory memory;
  for (uint32_t j = blockIdx.x; j < *work.num_overfull; j += gridDim.x) {
    const uint32_t cell = work.overfull[j];
    const uint64_t here = work.scan[cell];
    const uint32_t kept = static_cast<uint32_t>(work.scan[cell + 1] - here);
    const uint32_t* points = work.index[1] + cells.starts[cell];
    const uint32_t n = cells.end(cell) - cells.starts[cell];
    const auto draw = [&](uint32_t i) {
      return random63(stream, work.places == nullptr ? points[i] : work.places[points[i]]);
    };
    const Limit limit = block_limit(n, kept, draw, memory);
    int64_t* to = point_index + (here & 0xFFFFFFFFull);
    for (uint32_t first = 0; first < n; first += kSelectBlock) {
      const uint32_t i = first + threadIdx.x;
      const uint32_t keep = i < n && stays(limit, draw(i), i);
      uint32_t before, all;
      cub::BlockScan<uint32_t, kSelectBlock>(memory.scan).ExclusiveSum(keep, before, all);
      if (keep) to[before] = points[i];
      to += all;
      __syncthreads();
    }
  }
}

// --- the whole -----------------------------------------------------------------------------------

template <typename Key>
void plan(const VoxelizeInput& input, void* workspace, int64_t workspace_size,
          cudaStream_t stream) {
  const Workspace<Key> work = carve<Key>(input, workspace);
  const int64_t n = input.n;
  const unsigned blocks = grid_size(n);
  size_t bytes = static_cast<size_t>(static_cast<char*>(workspace) + workspace_size - work.cub);
  if (work.places != nullptr) {
    frames_kernel<<<blocks, kBlock, 0, stream>>>(input, work);
    check_cuda(cudaGetLastError(), "voxelize (frames)");
    check_cuda(sort_by_key(work.cub, &bytes, work, n,
                           bits_of(static_cast<uint64_t>(input.batch_size)), stream),
               "voxelize (sort by frame)");
    places_kernel<<<blocks, kBlock, 0, stream>>>(n, work);
    check_cuda(cudaGetLastError(), "voxelize (places)");
  }
  check_cuda(cudaMemsetAsync(work.first_bad, 0, 2 * sizeof(uint64_t), stream),
             "voxelize (counters)");
  const uint64_t outside = all_cells(input);
  keys_kernel<<<blocks, kBlock, 0, stream>>>(input, outside, work);
  check_cuda(cudaGetLastError(), "voxelize (keys)");
  check_cuda(sort_by_key(work.cub, &bytes, work, n, bits_of(outside), stream), "voxelize (sort)");
  check_cuda(list_starts(work.cub, &bytes, work, n, stream), "voxelize (cells)");
  if (work.limits != nullptr) {
    const unsigned frames = static_cast<unsigned>(std::min<int64_t>(input.batch_size, kMostBlocks));
    limits_kernel<<<frames, kSelectBlock, 0, stream>>>(input.batch_size, input.max_voxels,
                                                       contribution_of(input, work), work.limits);
    check_cuda(cudaGetLastError(), "voxelize (choice of voxels)");
  }
  check_cuda(scan_cells(work.cub, &bytes, work, input, stream), "voxelize (scan)");
}

template <typename Key>
void write(const VoxelizeInput& input, void* workspace, const VoxelizeOutput& output,
           cudaStream_t stream) {
  const Workspace<Key> work = carve<Key>(input, workspace);
  const Cells<Key> cells = cells_of(input, work);
  const int64_t most = std::max({input.n, output.capacity, output.index_capacity});
  write_kernel<<<blocks_for(most), kBlock, 0, stream>>>(input, cells, work, output);
  check_cuda(cudaGetLastError(), "voxelize (output)");
  if (samples(input)) {
    sample_kernel<<<blocks_for(input.n / (input.max_points + 1), 1), kSelectBlock, 0, stream>>>(
        random_stream(input.seed, kPointSalt), cells, work, output.point_index);
    check_cuda(cudaGetLastError(), "voxelize (samples)");
  }
}

bool fits_32_bits(const VoxelizeInput& input) { return all_cells(input) < uint64_t{1} << 32; }

}  // namespace

int64_t voxelize_workspace_cuda(const VoxelizeInput& input, int device) {
  const DeviceGuard guard(device);
  return fits_32_bits(input) ? workspace_bytes<uint32_t>(input) : workspace_bytes<uint64_t>(input);
}

void voxelize_plan_cuda(const VoxelizeInput& input, void* workspace, int64_t bytes, int device,
                        void* stream) {
  const DeviceGuard guard(device);
  const auto run = fits_32_bits(input) ? plan<uint32_t> : plan<uint64_t>;
  run(input, workspace, bytes, static_cast<cudaStream_t>(stream));
}

void voxelize_write_cuda(const VoxelizeInput& input, void* workspace, const VoxelizeOutput& output,
                         int device, void* stream) {
  const DeviceGuard guard(device);
  const auto run = fits_32_bits(input) ? write<uint32_t> : write<uint64_t>;
  run(input, workspace, output, static_cast<cudaStream_t>(stream));
}

}  // namespace voxelpool
