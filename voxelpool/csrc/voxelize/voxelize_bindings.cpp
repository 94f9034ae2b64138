#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>

#include <array>

#include "../addresses.h"
#include "voxelize.h"

namespace nb = nanobind;
using namespace voxelpool;

namespace {

// range: x0, y0, z0, x1, y1, z1. cells: D, H, W.
Grid make_grid(const std::array<double, 6>& range, const std::array<double, 3>& size,
               const std::array<int64_t, 3>& cells) {
  Grid grid;
  for (int axis = 0; axis < 3; ++axis) {
    grid.low[axis] = static_cast<float>(range[axis]);
    grid.high[axis] = static_cast<float>(range[axis + 3]);
    grid.size[axis] = static_cast<float>(size[axis]);
    grid.cells[axis] = cells[2 - axis];
  }
  return grid;
}

}  // namespace

void bind_voxelize(nb::module_& m) {
  using Release = nb::call_guard<nb::gil_scoped_release>;
  nb::class_<VoxelizeInput>(m, "VoxelizeInput")
      .def("__init__",
           [](VoxelizeInput* self, Pointer points, int64_t n, int64_t stride, Pointer batch,
              int64_t batch_size, const std::array<double, 6>& range,
              const std::array<double, 3>& size, const std::array<int64_t, 3>& cells,
              int64_t max_points, int64_t max_voxels, int64_t seed, bool drop_bad_frames) {
             new (self) VoxelizeInput{at<float>(points),  n,          stride,
                                      at<int64_t>(batch), batch_size, make_grid(range, size, cells),
                                      max_points,         max_voxels, seed,
                                      drop_bad_frames};
           });
  nb::class_<VoxelizeCpu>(m, "VoxelizeCpu")
      .def(nb::init<const VoxelizeInput&, int>(), Release())
      .def_prop_ro("num_voxels", &VoxelizeCpu::num_voxels)
      .def_prop_ro("num_points", &VoxelizeCpu::num_points)
      .def(
          "write",
          [](const VoxelizeCpu& self, Pointer coords, Pointer offsets, Pointer point_index,
             int threads) {
            self.write(at<int32_t>(coords), at<int64_t>(offsets), at<int64_t>(point_index),
                       threads);
          },
          Release());
#ifdef VOXELPOOL_WITH_CUDA
  m.def("voxelize_workspace_cuda", &voxelize_workspace_cuda, Release());
  m.def(
      "voxelize_plan_cuda",
      [](const VoxelizeInput& input, Pointer workspace, int64_t bytes, int device, Pointer stream) {
        voxelize_plan_cuda(input, at<void>(workspace), bytes, device, at<void>(stream));
      },
      Release());
  m.def(
      "voxelize_write_cuda",
      [](const VoxelizeInput& input, Pointer workspace, Pointer coords, Pointer offsets,
         int64_t capacity, Pointer point_index, int64_t index_capacity, Pointer num_voxels,
         int device, Pointer stream) {
        const VoxelizeOutput output{
            at<int32_t>(coords),      at<int64_t>(offsets), capacity,
            at<int64_t>(point_index), index_capacity,       at<int64_t>(num_voxels)};
        voxelize_write_cuda(input, at<void>(workspace), output, device, at<void>(stream));
      },
      Release());
#endif
}
