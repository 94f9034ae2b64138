// Points to voxels. What decides a result (a point's cell, the random order) is here once, for both
// devices; ops/reference/voxelize.py says the same in PyTorch.
//
// A point belongs to the cell floor((p - low) / size), all in float32, if low <= p < high on each
// axis; a quotient that rounds up to the number of cells stays in the last one. Cells are numbered
// ((frame * D + z) * H + y) * W + x in 64 bits.
//
// Where a voxel holds more than max_points points, those with the smallest random number stay, the
// number being drawn by the point's place in its own frame; where a frame has more than max_voxels
// voxels, those with the smallest random number stay, drawn by the cell. Ties go to the lower place
// or cell. So a frame gives the same voxels alone and in any batch.
#pragma once

#include <cmath>
#include <memory>

#include "../common.h"

namespace voxelpool {

constexpr uint64_t kPointSalt = 0x706F696E74ull;  // "point"
constexpr uint64_t kVoxelSalt = 0x766F78656Cull;  // "voxel"

// Axes in the order x, y, z.
struct Grid {
  float low[3];
  float high[3];
  float size[3];
  int64_t cells[3];

  VP_HOST_DEVICE int64_t cells_per_frame() const { return cells[0] * cells[1] * cells[2]; }
};

VP_HOST_DEVICE bool axis_cell(const Grid& grid, int axis, float p, int64_t* cell) {
  if (!(p >= grid.low[axis] && p < grid.high[axis])) return false;
#if defined(__CUDA_ARCH__)
  const float quotient = __fdiv_rn(__fsub_rn(p, grid.low[axis]), grid.size[axis]);
#else
  const float quotient = (p - grid.low[axis]) / grid.size[axis];
#endif
  const int64_t floor = static_cast<int64_t>(quotient);  // the quotient is not negative
  const int64_t last = grid.cells[axis] - 1;
  *cell = floor < last ? floor : last;
  return true;
}

// The cell of a point within its frame, or -1 where it lies outside.
VP_HOST_DEVICE int64_t point_cell(const Grid& grid, const float* point) {
  int64_t x, y, z;
  const bool inside = axis_cell(grid, 0, point[0], &x) && axis_cell(grid, 1, point[1], &y) &&
                      axis_cell(grid, 2, point[2], &z);
  return inside ? (z * grid.cells[1] + y) * grid.cells[0] + x : -1;
}

// Writes (frame, z, y, x).
VP_HOST_DEVICE void write_coords(const Grid& grid, int64_t key, int32_t* coords) {
  int64_t rest = key;
  coords[3] = static_cast<int32_t>(rest % grid.cells[0]);
  rest /= grid.cells[0];
  coords[2] = static_cast<int32_t>(rest % grid.cells[1]);
  rest /= grid.cells[1];
  coords[1] = static_cast<int32_t>(rest % grid.cells[2]);
  coords[0] = static_cast<int32_t>(rest / grid.cells[2]);
}

struct VoxelizeInput {
  const float* points;  // (n, stride), x, y, z first
  int64_t n;
  int64_t stride;
  const int64_t* batch;  // (n,) or null: all in frame 0
  int64_t batch_size;
  Grid grid;
  int64_t max_points;  // no limit where negative
  int64_t max_voxels;
  int64_t seed;
  bool drop_bad_frames;  // whether points of a frame out of range are dropped, or an error
};

// The largest draw that stays of a group, and the position of the one that drew it: the lower
// position goes first where two draws are equal (three never are, see random63).
struct Limit {
  int64_t draw;
  int64_t position;
};

VP_HOST_DEVICE bool stays(const Limit& limit, int64_t draw, int64_t position) {
  return draw < limit.draw || (draw == limit.draw && position <= limit.position);
}

// The voxels of a cloud, found at construction; write() puts them where the caller says, once he
// has made room for num_voxels() and num_points(). Throws std::invalid_argument for a frame out of
// range that is not to be dropped.
class VoxelizeCpu {
 public:
  VoxelizeCpu(const VoxelizeInput& input, int threads);
  ~VoxelizeCpu();
  int64_t num_voxels() const;
  int64_t num_points() const;
  void write(int32_t* coords, int64_t* offsets, int64_t* point_index, int threads) const;

  class Plan;

 private:
  std::unique_ptr<Plan> plan_;
};

// CUDA: everything on `stream` of `device`, nothing waits for it. 0 < n < 2^31. Points of a frame
// out of range are always dropped; plan and write take the same input and workspace.

// Bytes of workspace.
int64_t voxelize_workspace_cuda(const VoxelizeInput& input, int device);
// Finds the voxels. Then the workspace holds, as int64 from byte 8 n on: voxels * 2^32 + points,
// and n - the first point whose frame is out of range, or 0.
void voxelize_plan_cuda(const VoxelizeInput& input, void* workspace, int64_t bytes, int device,
                        void* stream);

// Where the voxels go; what is beyond them is filled up, coords with -1, offsets with the number of
// points and point_index with 0.
struct VoxelizeOutput {
  int32_t* coords;   // (capacity, 4)
  int64_t* offsets;  // (capacity + 1,)
  int64_t capacity;
  int64_t* point_index;  // (index_capacity,)
  int64_t index_capacity;
  int64_t* num_voxels;  // or null
};
void voxelize_write_cuda(const VoxelizeInput& input, void* workspace, const VoxelizeOutput& output,
                         int device, void* stream);

}  // namespace voxelpool
