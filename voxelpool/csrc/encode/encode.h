// A stack of point layers, each followed by the maximum over the points of a voxel, in one pass.
//
// Layer l makes own[i] = relu(W x[i] + b), where x[i] is the code of point i in the first layer,
// and in the others own[i] of the layer before, followed by the maximum of those over the voxel.
// The linear layer is split there: what acts on the maximum is computed once a voxel and is where
// the sums of its points start. The result is the maximum over each voxel of the last layer's
// own[i], which is written nowhere; an empty voxel gives 0, NaN propagates.
//
// Rules, the same on CPU and CUDA: every sum starts from the bias (or the voxel's part) and takes
// the columns in their order, with fused multiply-adds. So neither threads nor neighbours of a
// voxel change a bit. (x86 without FMA rounds twice.)
#pragma once

#include <cstdint>
#include <vector>

#include "../common.h"

namespace voxelpool {

// Where points come from and how they are grouped: voxel k is rows offsets[k] up to offsets[k + 1].
struct EncodeInput {
  // The codes, (rows, columns); or where point_index is not null, points (num_points, columns) with
  // x, y, z first: row i's code is then the columns of point point_index[i], x, y, z minus their
  // mean over the voxel and, where centers (voxels, 3) is not null, x, y, z minus the center.
  const float* values;
  int64_t num_points;
  int64_t columns;
  const int64_t* point_index;
  const float* centers;
  const int64_t* offsets;
  int64_t voxels;
  int64_t rows;

  int64_t code_columns() const {
    return columns + (point_index == nullptr ? 0 : centers == nullptr ? 3 : 6);
  }
};

// For each layer, flat: the transposed weight (in, width), the bias (width).
struct EncodeLayers {
  const float* parameters;
  std::vector<int64_t> widths;
};

// NaN stays.
VP_HOST_DEVICE float rectified(float value) { return value < 0.0f ? 0.0f : value; }

// The larger of both; NaN wins, and the first of two.
VP_HOST_DEVICE float larger(float best, float value) {
  return !(value <= best) & (best == best) ? value : best;
}

// Mean and offset round as segment_mean and a subtraction do.
VP_HOST_DEVICE float mean_of(float sum, int64_t count) { return sum / static_cast<float>(count); }

// out: (voxels, widths.back()). Throws std::invalid_argument for offsets that do not start at 0,
// fall or do not end at rows, and for a point_index out of range.
void encode_voxels_cpu(const EncodeInput& input, const EncodeLayers& layers, float* out,
                       int threads);

// The widest layer or code that the CUDA kernel takes.
constexpr int64_t kEncodeMaxWidth = 256;

// On `stream` of `device`. scratch holds, in floats, the codes where they are made here, and for
// each layer but the last rows + voxels times its width. Offsets and indices are not checked, but
// for bounds: nothing is read or written out of range.
void encode_voxels_cuda(const EncodeInput& input, const EncodeLayers& layers, float* scratch,
                        float* out, int device, void* stream);

}  // namespace voxelpool
