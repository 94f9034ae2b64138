#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>

#include <array>

#include "../addresses.h"
#include "conv.h"

namespace nb = nanobind;
using namespace voxelpool;

namespace {

using Triple = std::array<int64_t, 3>;

Table make_table(Pointer entries, int64_t cells, int64_t taps, int64_t rows) {
  return Table{at<int32_t>(entries), cells, taps, rows};
}

ConvShape make_shape(const Triple& in, const Triple& out, const Triple& kernel,
                     const Triple& stride, const Triple& padding) {
  ConvShape shape;
  for (int axis = 0; axis < 3; ++axis) {
    shape.in[axis] = in[axis];
    shape.out[axis] = out[axis];
    shape.kernel[axis] = kernel[axis];
    shape.stride[axis] = stride[axis];
    shape.padding[axis] = padding[axis];
  }
  return shape;
}

}  // namespace

void bind_conv(nb::module_& m) {
  using Release = nb::call_guard<nb::gil_scoped_release>;
  m.def("gather_conv_bfloat16", &gather_conv_bfloat16);
  m.def(
      "gather_conv_cpu",
      [](int dtype, Pointer rows, Pointer table, int64_t cells, int64_t taps, int64_t num_rows,
         Pointer weight, int64_t tap_stride, int64_t in_stride, int64_t out_stride,
         int64_t in_channels, int64_t out_channels, Pointer scale, Pointer bias, bool relu,
         Pointer out, int threads) {
        const ConvWeight values{at<float>(weight), tap_stride,  in_stride,
                                out_stride,        in_channels, out_channels};
        gather_conv_cpu(static_cast<DType>(dtype), at<void>(rows),
                        make_table(table, cells, taps, num_rows), values, at<float>(scale),
                        at<float>(bias), relu, at<void>(out), threads);
      },
      Release());
  m.def(
      "gather_conv_weight_cpu",
      [](Pointer rows, Pointer table, int64_t cells, int64_t taps, int64_t num_rows, Pointer grad,
         int64_t in_channels, int64_t out_channels, Pointer weight_grad, int threads) {
        gather_conv_weight_cpu(at<float>(rows), make_table(table, cells, taps, num_rows),
                               at<float>(grad), in_channels, out_channels, at<float>(weight_grad),
                               threads);
      },
      Release());
  m.def(
      "gather_conv_inverse_cpu",
      [](Pointer table, int64_t cells, int64_t taps, int64_t num_rows, int64_t shared, Pointer grad,
         int64_t channels, Pointer inverse, Pointer sums, int threads) {
        gather_conv_inverse_cpu(make_table(table, cells, taps, num_rows), shared, at<float>(grad),
                                channels, at<int32_t>(inverse), at<float>(sums), threads);
      },
      Release());
  m.def(
      "conv_table_cpu",
      [](Pointer index, int64_t batch, Pointer cells, int64_t count, const Triple& in,
         const Triple& out, const Triple& kernel, const Triple& stride, const Triple& padding,
         Pointer table, int threads) {
        conv_table_cpu(at<int32_t>(index), batch, at<int64_t>(cells), count,
                       make_shape(in, out, kernel, stride, padding), at<int32_t>(table), threads);
      },
      Release());
  m.def(
      "sparse_table_cpu",
      [](Pointer coords, int64_t count, Pointer out_coords, int64_t out_count, int64_t batch,
         const Triple& in, const Triple& out, const Triple& kernel, const Triple& stride,
         const Triple& padding, Pointer table, int threads) {
        sparse_table_cpu(Cells{at<int32_t>(coords), count},
                         Cells{at<int32_t>(out_coords), out_count}, batch,
                         make_shape(in, out, kernel, stride, padding), at<int32_t>(table), threads);
      },
      Release());
  nb::class_<SparseReachCpu>(m, "SparseReachCpu")
      .def(
          "__init__",
          [](SparseReachCpu* self, Pointer coords, int64_t count, int64_t batch, const Triple& in,
             const Triple& out, const Triple& kernel, const Triple& stride, const Triple& padding,
             int threads) {
            new (self) SparseReachCpu(Cells{at<int32_t>(coords), count}, batch,
                                      make_shape(in, out, kernel, stride, padding), threads);
          },
          Release())
      .def_prop_ro("count", &SparseReachCpu::count)
      .def(
          "write",
          [](const SparseReachCpu& self, Pointer coords) { self.write(at<int32_t>(coords)); },
          Release());
}
