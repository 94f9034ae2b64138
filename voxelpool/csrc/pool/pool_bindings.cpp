#include <nanobind/nanobind.h>

#include "pool.h"

namespace nb = nanobind;
using namespace voxelpool;

namespace {

using Pointer = uintptr_t;

Groups make_groups(Pointer offsets, int64_t groups, int64_t rows, int64_t channels) {
  return Groups{reinterpret_cast<const int64_t*>(offsets), groups, rows, channels};
}

template <typename T>
T* at(Pointer pointer) {
  return reinterpret_cast<T*>(pointer);
}

}  // namespace

void bind_pool(nb::module_& m) {
  using Release = nb::call_guard<nb::gil_scoped_release>;
  m.def(
      "segment_extreme_cpu",
      [](bool max, int dtype, Pointer src, Pointer offsets, int64_t groups, int64_t rows,
         int64_t channels, Pointer out, Pointer arg, int threads) {
        segment_extreme_cpu(max ? Extreme::kMax : Extreme::kMin, static_cast<DType>(dtype),
                            at<void>(src), make_groups(offsets, groups, rows, channels),
                            at<void>(out), at<int64_t>(arg), threads);
      },
      Release());
  m.def(
      "segment_sum_cpu",
      [](bool mean, int dtype, Pointer src, Pointer offsets, int64_t groups, int64_t rows,
         int64_t channels, Pointer out, int threads) {
        segment_sum_cpu(mean, static_cast<DType>(dtype), at<void>(src),
                        make_groups(offsets, groups, rows, channels), at<void>(out), threads);
      },
      Release());
  m.def(
      "segment_spread_cpu",
      [](bool mean, int dtype, Pointer src, Pointer offsets, int64_t groups, int64_t rows,
         int64_t channels, Pointer out, int threads) {
        segment_spread_cpu(mean, static_cast<DType>(dtype), at<void>(src),
                           make_groups(offsets, groups, rows, channels), at<void>(out), threads);
      },
      Release());
  m.def(
      "segment_place_cpu",
      [](int dtype, Pointer src, Pointer arg, Pointer offsets, int64_t groups, int64_t rows,
         int64_t channels, Pointer out, int threads) {
        segment_place_cpu(static_cast<DType>(dtype), at<void>(src), at<int64_t>(arg),
                          make_groups(offsets, groups, rows, channels), at<void>(out), threads);
      },
      Release());
#ifdef VOXELPOOL_WITH_CUDA
  m.def(
      "segment_extreme_cuda",
      [](bool max, int dtype, Pointer src, Pointer offsets, int64_t groups, int64_t rows,
         int64_t channels, Pointer out, Pointer arg, int device, Pointer stream) {
        segment_extreme_cuda(max ? Extreme::kMax : Extreme::kMin, static_cast<DType>(dtype),
                             at<void>(src), make_groups(offsets, groups, rows, channels),
                             at<void>(out), at<int64_t>(arg), device, at<void>(stream));
      },
      Release());
  m.def(
      "segment_sum_cuda",
      [](bool mean, int dtype, Pointer src, Pointer offsets, int64_t groups, int64_t rows,
         int64_t channels, Pointer out, int device, Pointer stream) {
        segment_sum_cuda(mean, static_cast<DType>(dtype), at<void>(src),
                         make_groups(offsets, groups, rows, channels), at<void>(out), device,
                         at<void>(stream));
      },
      Release());
  m.def(
      "segment_spread_cuda",
      [](bool mean, int dtype, Pointer src, Pointer offsets, int64_t groups, int64_t rows,
         int64_t channels, Pointer out, int device, Pointer stream) {
        segment_spread_cuda(mean, static_cast<DType>(dtype), at<void>(src),
                            make_groups(offsets, groups, rows, channels), at<void>(out), device,
                            at<void>(stream));
      },
      Release());
  m.def(
      "segment_place_cuda",
      [](int dtype, Pointer src, Pointer arg, Pointer offsets, int64_t groups, int64_t rows,
         int64_t channels, Pointer out, int device, Pointer stream) {
        segment_place_cuda(static_cast<DType>(dtype), at<void>(src), at<int64_t>(arg),
                           make_groups(offsets, groups, rows, channels), at<void>(out), device,
                           at<void>(stream));
      },
      Release());
#endif
}
