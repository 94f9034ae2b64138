#include <nanobind/nanobind.h>

#include "../addresses.h"
#include "boxes.h"

namespace nb = nanobind;
using namespace voxelpool;

void bind_boxes(nb::module_& m) {
  using Release = nb::call_guard<nb::gil_scoped_release>;
  m.def(
      "first_invalid_box_cpu",
      [](Pointer boxes, int64_t n) { return first_invalid_box_cpu(at<double>(boxes), n); },
      Release());
  m.def(
      "boxes_iou_cpu",
      [](Pointer a, int64_t n, Pointer b, int64_t m, bool volume, Pointer out, bool out_is_double,
         int threads) {
        boxes_iou_cpu(at<double>(a), n, at<double>(b), m, volume, at<void>(out), out_is_double,
                      threads);
      },
      Release());
  m.def(
      "nms_cpu",
      [](Pointer boxes, int64_t n, double threshold, Pointer keep, int threads) {
        nms_cpu(at<double>(boxes), n, threshold, at<bool>(keep), threads);
      },
      Release());
  m.def(
      "points_in_boxes_cpu",
      [](Pointer points, bool points_are_double, int64_t n, int64_t stride, Pointer boxes,
         int64_t m, Pointer inside, int threads) {
        points_in_boxes_cpu(at<void>(points), points_are_double, n, stride, at<double>(boxes), m,
                            at<bool>(inside), threads);
      },
      Release());
#ifdef VOXELPOOL_WITH_CUDA
  m.def("boxes_cuda_scratch", &boxes_cuda_scratch);
  m.def("nms_cuda_scratch", &nms_cuda_scratch);
  m.def(
      "boxes_iou_cuda",
      [](Pointer a, int64_t n, Pointer b, int64_t m, bool volume, Pointer out, bool out_is_double,
         Pointer scratch, int device, Pointer stream) {
        boxes_iou_cuda(at<double>(a), n, at<double>(b), m, volume, at<void>(out), out_is_double,
                       at<void>(scratch), device, at<void>(stream));
      },
      Release());
  m.def(
      "nms_cuda",
      [](Pointer boxes, int64_t n, double threshold, Pointer keep, Pointer scratch, int device,
         Pointer stream) {
        nms_cuda(at<double>(boxes), n, threshold, at<bool>(keep), at<void>(scratch), device,
                 at<void>(stream));
      },
      Release());
  m.def(
      "points_in_boxes_cuda",
      [](Pointer points, bool points_are_double, int64_t n, int64_t stride, Pointer boxes,
         int64_t m, Pointer inside, Pointer scratch, int device, Pointer stream) {
        points_in_boxes_cuda(at<void>(points), points_are_double, n, stride, at<double>(boxes), m,
                             at<bool>(inside), at<void>(scratch), device, at<void>(stream));
      },
      Release());
#endif
}
