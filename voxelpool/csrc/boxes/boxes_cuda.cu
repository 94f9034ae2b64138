// One thread a pair. Suppression runs over chunks of boxes, best first: one kernel writes, for
// every box of the chunk, a bit for each later box that it would suppress; a second one, a single
// block, walks those bits in order. Its result depends on no order of execution.
#include <algorithm>

#include "../cuda_common.h"
#include "boxes.h"
#include "geometry.h"

namespace voxelpool {
namespace {

using Word = unsigned long long;
constexpr int kWordBits = 64;

__host__ __device__ constexpr int64_t words_of(int64_t n) {
  return (n + kWordBits - 1) / kWordBits;
}

// Boxes whose bits are in memory at once: a multiple of 64, at most 4096 and 32 MiB of bits.
int64_t chunk_rows(int64_t n) {
  const int64_t words = std::max<int64_t>(1, words_of(n));
  const int64_t rows = std::min<int64_t>({4096, words * kWordBits, (int64_t{1} << 22) / words});
  return std::max<int64_t>(kWordBits, rows / kWordBits * kWordBits);
}

__global__ void prepare_kernel(const double* boxes, int64_t n, PreparedBox* prepared) {
  for (int64_t i = global_thread(); i < n; i += global_stride()) {
    prepared[i] = prepare_box(boxes + i * kBoxColumns);
  }
}

template <typename Out>
__global__ void iou_kernel(const PreparedBox* a, int64_t n, const PreparedBox* b, int64_t m,
                           bool volume, Out* out) {
  const int64_t count = n * m;
  for (int64_t k = global_thread(); k < count; k += global_stride()) {
    const int64_t i = k / m, j = k - i * m;
    out[k] = static_cast<Out>(volume ? iou_3d(a[i], b[j]) : iou_bev(a[i], b[j]));
  }
}

template <typename Point>
__global__ void membership_kernel(const Point* points, int64_t n, int64_t stride,
                                  const PreparedBox* boxes, int64_t m, bool* inside) {
  const int64_t count = n * m;
  for (int64_t k = global_thread(); k < count; k += global_stride()) {
    const int64_t i = k / m, j = k - i * m;
    const Point* point = points + i * stride;
    inside[k] = point_in_box(point[0], point[1], point[2], boxes[j]);
  }
}

// Bit c of bits[row - first][word]: box `row` suppresses the later box 64 * word + c. Words before
// the row's own are left unwritten and unread. One block: 64 rows against one word of columns.
__global__ void suppression_kernel(const PreparedBox* boxes, int64_t n, Suppression rule,
                                   int64_t first, int64_t rows, const Word* removed, Word* bits) {
  const int64_t words = words_of(n);
  const int64_t word = first / kWordBits + blockIdx.x;
  const int64_t row_word = first / kWordBits + blockIdx.y;
  if (word < row_word) return;
  __shared__ PreparedBox columns[kWordBits];
  const int64_t column = word * kWordBits + threadIdx.x;
  if (column < n) columns[threadIdx.x] = boxes[column];
  __syncthreads();

  const int64_t row = row_word * kWordBits + threadIdx.x;
  if (row >= n || row >= first + rows) return;
  Word suppressed = 0;
  if (((removed[row_word] >> threadIdx.x) & 1) == 0) {
    const PreparedBox box = boxes[row];
    const Word gone = removed[word];
    const int begin = word == row_word ? static_cast<int>(threadIdx.x) + 1 : 0;
    const int end =
        static_cast<int>(n - word * kWordBits < kWordBits ? n - word * kWordBits : kWordBits);
    for (int c = begin; c < end; ++c) {
      if (((gone >> c) & 1) == 0 && suppresses(box, columns[c], rule)) {
        suppressed |= Word{1} << c;
      }
    }
  }
  bits[(row - first) * words + word] = suppressed;
}

// A single block. Sixty-four boxes a step: the first thread decides them, then all threads strike
// out what the kept ones suppress.
__global__ void selection_kernel(int64_t n, int64_t first, int64_t rows, const Word* bits,
                                 Word* removed, bool* keep) {
  const int64_t words = words_of(n);
  __shared__ Word own[kWordBits];
  __shared__ Word kept;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t stop = n < first + rows ? n : first + rows;
  for (int64_t start = first; start < stop; start += kWordBits) {
    const int64_t word = start / kWordBits;
    const int count = static_cast<int>(stop - start < kWordBits ? stop - start : kWordBits);
    const Word* block = bits + (start - first) * words;
    if (thread < count) own[thread] = block[thread * words + word];
    __syncthreads();
    if (thread == 0) {
      Word gone = removed[word];
      Word chosen = 0;
      for (int i = 0; i < count; ++i) {
        if ((gone >> i) & 1) continue;
        chosen |= Word{1} << i;
        gone |= own[i];
      }
      kept = chosen;
    }
    __syncthreads();
    const Word chosen = kept;
    if (thread < count) keep[start + thread] = ((chosen >> thread) & 1) != 0;
    for (int64_t column = word + 1 + thread; column < words; column += blockDim.x) {
      Word gone = removed[column];
      for (int i = 0; i < count; ++i) {
        if ((chosen >> i) & 1) gone |= block[i * words + column];
      }
      removed[column] = gone;
    }
    __syncthreads();
  }
}

void prepare(const double* boxes, int64_t n, PreparedBox* prepared, cudaStream_t stream) {
  if (n == 0) return;
  prepare_kernel<<<grid_size(n), kBlock, 0, stream>>>(boxes, n, prepared);
  check_cuda(cudaGetLastError(), "prepare_boxes");
}

}  // namespace

int64_t boxes_cuda_scratch(int64_t boxes) {
  return boxes * static_cast<int64_t>(sizeof(PreparedBox));
}

int64_t nms_cuda_scratch(int64_t n) {
  const int64_t words = words_of(n) * (1 + chunk_rows(n));
  return boxes_cuda_scratch(n) + words * static_cast<int64_t>(sizeof(Word));
}

void boxes_iou_cuda(const double* a, int64_t n, const double* b, int64_t m, bool volume, void* out,
                    bool out_is_double, void* scratch, int device, void* stream_pointer) {
  if (n == 0 || m == 0) return;
  const DeviceGuard guard(device);
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_pointer);
  PreparedBox* pa = static_cast<PreparedBox*>(scratch);
  PreparedBox* pb = pa + n;
  prepare(a, n, pa, stream);
  prepare(b, m, pb, stream);
  if (out_is_double) {
    iou_kernel<<<grid_size(n * m), kBlock, 0, stream>>>(pa, n, pb, m, volume,
                                                        static_cast<double*>(out));
  } else {
    iou_kernel<<<grid_size(n * m), kBlock, 0, stream>>>(pa, n, pb, m, volume,
                                                        static_cast<float*>(out));
  }
  check_cuda(cudaGetLastError(), "boxes_iou");
}

void nms_cuda(const double* boxes, int64_t n, double threshold, bool* keep, void* scratch,
              int device, void* stream_pointer) {
  if (n == 0) return;
  const DeviceGuard guard(device);
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_pointer);
  if (threshold >= 1.0) {  // no IoU is above it
    check_cuda(cudaMemsetAsync(keep, 1, n * sizeof(bool), stream), "nms_rotated");
    return;
  }
  const Suppression rule = suppression_above(threshold);
  const int64_t words = words_of(n), chunk = chunk_rows(n);
  PreparedBox* prepared = static_cast<PreparedBox*>(scratch);
  Word* removed = reinterpret_cast<Word*>(prepared + n);
  Word* bits = removed + words;
  prepare(boxes, n, prepared, stream);
  check_cuda(cudaMemsetAsync(removed, 0, words * sizeof(Word), stream), "nms_rotated");
  for (int64_t first = 0; first < n; first += chunk) {
    const int64_t rows = std::min(chunk, n - first);
    const dim3 grid(static_cast<unsigned>(words - first / kWordBits),
                    static_cast<unsigned>(words_of(rows)));
    suppression_kernel<<<grid, kWordBits, 0, stream>>>(prepared, n, rule, first, rows, removed,
                                                       bits);
    check_cuda(cudaGetLastError(), "nms_rotated");
    selection_kernel<<<1, 1024, 0, stream>>>(n, first, rows, bits, removed, keep);
    check_cuda(cudaGetLastError(), "nms_rotated");
  }
}

void points_in_boxes_cuda(const void* points, bool points_are_double, int64_t n, int64_t stride,
                          const double* boxes, int64_t m, bool* inside, void* scratch, int device,
                          void* stream_pointer) {
  if (n == 0 || m == 0) return;
  const DeviceGuard guard(device);
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_pointer);
  PreparedBox* prepared = static_cast<PreparedBox*>(scratch);
  prepare(boxes, m, prepared, stream);
  if (points_are_double) {
    membership_kernel<<<grid_size(n * m), kBlock, 0, stream>>>(static_cast<const double*>(points),
                                                               n, stride, prepared, m, inside);
  } else {
    membership_kernel<<<grid_size(n * m), kBlock, 0, stream>>>(static_cast<const float*>(points), n,
                                                               stride, prepared, m, inside);
  }
  check_cuda(cudaGetLastError(), "points_in_boxes");
}

}  // namespace voxelpool
