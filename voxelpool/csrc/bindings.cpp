// The Python module voxelpool._C. Each family binds its own functions; pointers come in as plain
// integers (ops/_native.py is the only caller and has checked them).
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <string>

#include "device.h"

namespace nb = nanobind;

void bind_conv(nb::module_& m);
void bind_encode(nb::module_& m);
void bind_pool(nb::module_& m);
void bind_voxelize(nb::module_& m);
#ifdef VOXELPOOL_WITH_BOXES
void bind_boxes(nb::module_& m);
#endif

NB_MODULE(_C, m) {
  m.attr("compiler") = VOXELPOOL_COMPILER;
#ifdef VOXELPOOL_WITH_CUDA
  m.attr("cuda_version") = VOXELPOOL_CUDA_VERSION;
  m.attr("cuda_architectures") = VOXELPOOL_CUDA_ARCHITECTURES;
  m.def("cuda_probe", &voxelpool::cuda_probe, nb::arg("device"));
#else
  m.attr("cuda_version") = nb::none();
  m.attr("cuda_architectures") = "";
#endif
  bind_conv(m);
  bind_encode(m);
  bind_pool(m);
  bind_voxelize(m);
#ifdef VOXELPOOL_WITH_BOXES
  bind_boxes(m);
#endif
}
