#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include "../addresses.h"
#include "encode.h"

namespace nb = nanobind;
using namespace voxelpool;

namespace {

EncodeInput make_input(Pointer values, int64_t num_points, int64_t columns, Pointer point_index,
                       Pointer centers, Pointer offsets, int64_t voxels, int64_t rows) {
  return EncodeInput{at<float>(values),  num_points,           columns, at<int64_t>(point_index),
                     at<float>(centers), at<int64_t>(offsets), voxels,  rows};
}

}  // namespace

void bind_encode(nb::module_& m) {
  using Release = nb::call_guard<nb::gil_scoped_release>;
  m.def(
      "encode_voxels_cpu",
      [](Pointer values, int64_t num_points, int64_t columns, Pointer point_index, Pointer centers,
         Pointer offsets, int64_t voxels, int64_t rows, Pointer parameters,
         std::vector<int64_t> widths, Pointer out, int threads) {
        encode_voxels_cpu(
            make_input(values, num_points, columns, point_index, centers, offsets, voxels, rows),
            EncodeLayers{at<float>(parameters), std::move(widths)}, at<float>(out), threads);
      },
      Release());
#ifdef VOXELPOOL_WITH_CUDA
  m.def(
      "encode_voxels_cuda",
      [](Pointer values, int64_t num_points, int64_t columns, Pointer point_index, Pointer centers,
         Pointer offsets, int64_t voxels, int64_t rows, Pointer parameters,
         std::vector<int64_t> widths, Pointer scratch, Pointer out, int device, Pointer stream) {
        encode_voxels_cuda(
            make_input(values, num_points, columns, point_index, centers, offsets, voxels, rows),
            EncodeLayers{at<float>(parameters), std::move(widths)}, at<float>(scratch),
            at<float>(out), device, at<void>(stream));
      },
      Release());
#endif
}
