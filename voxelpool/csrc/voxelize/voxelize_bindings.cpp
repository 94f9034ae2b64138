#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>

#include <array>

#include "voxelize.h"

namespace nb = nanobind;
using namespace voxelpool;

namespace {

using Pointer = uintptr_t;

template <typename T>
T* at(Pointer pointer) {
  return reinterpret_cast<T*>(pointer);
}

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
  nb::class_<VoxelizeCpu>(m, "VoxelizeCpu")
      .def(
          "__init__",
          [](VoxelizeCpu* self, Pointer points, int64_t n, int64_t stride, Pointer batch,
             int64_t batch_size, const std::array<double, 6>& range,
             const std::array<double, 3>& size, const std::array<int64_t, 3>& cells,
             int64_t max_points, int64_t max_voxels, int64_t seed, bool drop_bad_frames,
             int threads) {
            new (self) VoxelizeCpu(VoxelizeInput{at<float>(points), n, stride, at<int64_t>(batch),
                                                 batch_size, make_grid(range, size, cells),
                                                 max_points, max_voxels, seed, drop_bad_frames},
                                   threads);
          },
          Release())
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
  m.def(
      "voxelize_keys_cuda",
      [](Pointer points, int64_t n, int64_t stride, Pointer batch, int64_t batch_size,
         const std::array<double, 6>& range, const std::array<double, 3>& size,
         const std::array<int64_t, 3>& cells, Pointer keys, Pointer first_bad, int device,
         Pointer stream) {
        voxelize_keys_cuda(VoxelizeInput{at<float>(points), n, stride, at<int64_t>(batch),
                                         batch_size, make_grid(range, size, cells), -1, -1, 0},
                           at<int64_t>(keys), at<int64_t>(first_bad), device, at<void>(stream));
      },
      Release());
  m.def(
      "voxelize_random_cuda",
      [](int64_t seed, int64_t salt, Pointer index, int64_t n, Pointer out, int device,
         Pointer stream) {
        voxelize_random_cuda(seed, static_cast<uint64_t>(salt), at<int64_t>(index), n,
                             at<int64_t>(out), device, at<void>(stream));
      },
      Release());
  m.def(
      "voxelize_coords_cuda",
      [](const std::array<double, 6>& range, const std::array<double, 3>& size,
         const std::array<int64_t, 3>& cells, Pointer keys, int64_t n, Pointer coords, int device,
         Pointer stream) {
        voxelize_coords_cuda(make_grid(range, size, cells), at<int64_t>(keys), n,
                             at<int32_t>(coords), device, at<void>(stream));
      },
      Release());
#endif
}
