// Box kernels on plain pointers. Boxes are (N, 7) double, row-major; `out_is_double` chooses
// between float and double results.
#pragma once

#include <cstdint>

namespace voxelpool {

// Row of the first box with a number that is not finite or a negative size; -1 without any.
int64_t first_invalid_box_cpu(const double* boxes, int64_t n);

// Pairwise IoU, (n, m): of rectangles seen from above, or of volumes.
void boxes_iou_cpu(const double* a, int64_t n, const double* b, int64_t m, bool volume, void* out,
                   bool out_is_double, int threads);

// Greedy suppression of boxes sorted best first; keep is (n) bool.
void nms_cpu(const double* boxes, int64_t n, double threshold, bool* keep, int threads);

// inside is (n, m) bool; a point is the first three numbers of a row of `stride` numbers.
void points_in_boxes_cpu(const void* points, bool points_are_double, int64_t n, int64_t stride,
                         const double* boxes, int64_t m, bool* inside, int threads);

#ifdef VOXELPOOL_WITH_CUDA
// The same on a CUDA stream. `scratch` is device memory, of the number of bytes that the function
// beside it tells.
int64_t boxes_cuda_scratch(int64_t boxes);
int64_t nms_cuda_scratch(int64_t n);

void boxes_iou_cuda(const double* a, int64_t n, const double* b, int64_t m, bool volume, void* out,
                    bool out_is_double, void* scratch, int device, void* stream);
void nms_cuda(const double* boxes, int64_t n, double threshold, bool* keep, void* scratch,
              int device, void* stream);
void points_in_boxes_cuda(const void* points, bool points_are_double, int64_t n, int64_t stride,
                          const double* boxes, int64_t m, bool* inside, void* scratch, int device,
                          void* stream);
#endif

}  // namespace voxelpool
