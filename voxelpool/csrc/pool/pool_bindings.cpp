#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>

#include <array>
#include <string>

#include "../addresses.h"
#include "pool.h"

namespace nb = nanobind;
using namespace voxelpool;

namespace {

using Shape = std::array<int64_t, 4>;  // groups, rows, channels, partial

Groups make_groups(Pointer offsets, Pointer order, const Shape& shape) {
  return Groups{at<const int64_t>(offsets), shape[0],     shape[1], shape[2],
                at<const uint32_t>(order),  shape[3] != 0};
}

int native(int value) { return value; }
void* native(Pointer stream) { return at<void>(stream); }

// The kernels of one device. `Where` are the last arguments: threads, or device and stream.
template <auto extreme, auto fold, auto spread, auto place, auto offsets_of, auto keys,
          auto scatter_spread, auto scatter_place, typename... Where>
void bind_device(nb::module_& m, const std::string& device) {
  using Release = nb::call_guard<nb::gil_scoped_release>;
  const auto name = [&](const char* kernel) { return kernel + ("_" + device); };
  m.def(
      name("segment_extreme").c_str(),
      [](bool max, int dtype, Pointer src, Pointer offsets, Pointer order, Shape shape, Pointer out,
         Pointer arg, Where... where) {
        extreme(max ? Extreme::kMax : Extreme::kMin, static_cast<DType>(dtype), at<void>(src),
                make_groups(offsets, order, shape), at<void>(out), at<int64_t>(arg),
                native(where)...);
      },
      Release());
  m.def(
      name("segment_fold").c_str(),
      [](int how, int dtype, Pointer src, Pointer offsets, Pointer order, Shape shape, Pointer out,
         Where... where) {
        fold(static_cast<Fold>(how), static_cast<DType>(dtype), at<void>(src),
             make_groups(offsets, order, shape), at<void>(out), native(where)...);
      },
      Release());
  m.def(
      name("segment_spread").c_str(),
      [](bool mean, int dtype, Pointer src, Pointer offsets, Shape shape, Pointer out,
         Where... where) {
        spread(mean, static_cast<DType>(dtype), at<void>(src), make_groups(offsets, 0, shape),
               at<void>(out), native(where)...);
      },
      Release());
  m.def(
      name("segment_place").c_str(),
      [](int dtype, Pointer src, Pointer arg, Pointer offsets, Shape shape, Pointer out,
         Where... where) {
        place(static_cast<DType>(dtype), at<void>(src), at<int64_t>(arg),
              make_groups(offsets, 0, shape), at<void>(out), native(where)...);
      },
      Release());
  m.def(
      name("sorted_offsets").c_str(),
      [](Pointer index, int64_t rows, int64_t groups, Pointer offsets, Where... where) {
        offsets_of(at<int64_t>(index), rows, groups, at<int64_t>(offsets), native(where)...);
      },
      Release());
  m.def(
      name("scatter_keys").c_str(),
      [](Pointer index, int64_t outer, int64_t rows, int64_t inner, int64_t groups, Pointer out,
         Where... where) {
        keys(at<int64_t>(index), outer, rows, inner, groups, at<int64_t>(out), native(where)...);
      },
      Release());
  m.def(
      name("scatter_spread").c_str(),
      [](int dtype, Pointer src, Pointer index, int64_t rows, int64_t groups, int64_t channels,
         Pointer out, Where... where) {
        scatter_spread(static_cast<DType>(dtype), at<void>(src), at<int64_t>(index), rows, groups,
                       channels, at<void>(out), native(where)...);
      },
      Release());
  m.def(
      name("scatter_place").c_str(),
      [](int dtype, Pointer src, Pointer arg, Pointer index, int64_t rows, int64_t groups,
         int64_t channels, Pointer out, Where... where) {
        scatter_place(static_cast<DType>(dtype), at<void>(src), at<int64_t>(arg),
                      at<int64_t>(index), rows, groups, channels, at<void>(out), native(where)...);
      },
      Release());
}

}  // namespace

void bind_pool(nb::module_& m) {
  using Release = nb::call_guard<nb::gil_scoped_release>;
  bind_device<segment_extreme_cpu, segment_fold_cpu, segment_spread_cpu, segment_place_cpu,
              sorted_offsets_cpu, scatter_keys_cpu, scatter_spread_cpu, scatter_place_cpu, int>(
      m, "cpu");
  m.def(
      "group_rows_cpu",
      [](Pointer index, int64_t rows, int64_t groups, Pointer order, Pointer offsets, int threads) {
        group_rows_cpu(at<int64_t>(index), rows, groups, at<uint32_t>(order), at<int64_t>(offsets),
                       threads);
      },
      Release());
#ifdef VOXELPOOL_WITH_CUDA
  bind_device<segment_extreme_cuda, segment_fold_cuda, segment_spread_cuda, segment_place_cuda,
              sorted_offsets_cuda, scatter_keys_cuda, scatter_spread_cuda, scatter_place_cuda, int,
              Pointer>(m, "cuda");
  m.def("group_rows_scratch", &group_rows_scratch);
  m.def(
      "group_rows_cuda",
      [](Pointer index, int64_t rows, int64_t groups, Pointer order, Pointer offsets,
         Pointer scratch, int64_t scratch_bytes, int device, Pointer stream) {
        group_rows_cuda(at<int64_t>(index), rows, groups, at<uint32_t>(order), at<int64_t>(offsets),
                        at<void>(scratch), scratch_bytes, device, at<void>(stream));
      },
      Release());
#endif
}
