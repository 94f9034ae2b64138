#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "../aligned_floats.h"
#include "../offsets.h"
#include "../thread_pool.h"
#include "../vectors.h"
#include "encode.h"

namespace voxelpool {
namespace {

// Channels are padded to a multiple of the widest vector, rows to a multiple of the tallest tile.
constexpr int64_t kPad = 16;
constexpr int64_t kTallest = 8;

int64_t padded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// One linear layer on the rows of a block: `rows` points, or voxels for what acts on the maximum.
struct TileJob {
  const float* x;  // (rows, depth), rows of x_stride
  int64_t x_stride;
  int64_t depth;
  const float* weights;  // panels of channels, each (depth, channels of the panel)
  const float* start;    // what the sums start from: (width) or, for points, (voxels, width)
  int64_t start_stride;
  const int32_t* voxel;  // of each point, within the block
  float* out;            // (rows, width), or null
  int64_t out_stride;
  float* pooled;  // (voxels, width), for points alone
  int64_t rows;
  int64_t width;  // a multiple of kPad
};

struct InstructionSet {
  void (*points)(const TileJob&);
  void (*voxels)(const TileJob&);
  int64_t panel;  // channels
};

#if defined(VP_X86)
namespace avx512 {
#define VP_TARGET VP_TARGET_AVX512
struct Isa : Avx512Vectors {
  static constexpr int panel_vectors = 4, large_rows = 6, small_rows = 8;
  // The second operand is the result where one is NaN.
  VP_TARGET static VP_INLINE Vector rectify(Vector value) {
    return _mm512_maskz_max_ps(0xffff, _mm512_setzero_ps(), value);
  }
  VP_TARGET static VP_INLINE Vector take_larger(Vector best, Vector value) {
    const __mmask16 further = _mm512_cmp_ps_mask(value, best, _CMP_NLE_UQ);
    const __mmask16 replaces = _mm512_mask_cmp_ps_mask(further, best, best, _CMP_ORD_Q);
    return _mm512_mask_mov_ps(best, replaces, value);
  }
};
#include "encode_tile.h"
#undef VP_TARGET
}  // namespace avx512

namespace avx2 {
#define VP_TARGET VP_TARGET_AVX2
struct Isa : Avx2Vectors {
  static constexpr int panel_vectors = 2, large_rows = 6, small_rows = 8;
  VP_TARGET static VP_INLINE Vector rectify(Vector value) {
    return _mm256_max_ps(_mm256_setzero_ps(), value);
  }
  VP_TARGET static VP_INLINE Vector take_larger(Vector best, Vector value) {
    const __m256 further = _mm256_cmp_ps(value, best, _CMP_NLE_UQ);
    const __m256 ordered = _mm256_cmp_ps(best, best, _CMP_ORD_Q);
    return _mm256_blendv_ps(best, value, _mm256_and_ps(further, ordered));
  }
};
#include "encode_tile.h"
#undef VP_TARGET
}  // namespace avx2
#endif

namespace plain {
#define VP_TARGET VP_TARGET_PLAIN
struct Isa : PlainVectors {
  static constexpr int panel_vectors = 2, large_rows = 4, small_rows = 4;
  static VP_INLINE Vector rectify(Vector value) {
    for (int l = 0; l < lanes; ++l) value.lane[l] = rectified(value.lane[l]);
    return value;
  }
  static VP_INLINE Vector take_larger(Vector best, Vector value) {
    for (int l = 0; l < lanes; ++l) best.lane[l] = larger(best.lane[l], value.lane[l]);
    return best;
  }
};
#include "encode_tile.h"
#undef VP_TARGET
}  // namespace plain

InstructionSet best_instruction_set() {
#if defined(VP_X86)
  if (has_avx512()) return avx512::instruction_set;
  if (has_avx2()) return avx2::instruction_set;
#endif
  return plain::instruction_set;
}

// A layer's parameters, in panels.
struct PackedLayer {
  int64_t own_depth;     // columns of a point
  int64_t pooled_depth;  // columns of its voxel's maximum; 0 in the first layer
  int64_t width;
  int64_t padded_width;
  AlignedFloats own, pooled, bias;
};

void pack(const float* weight, int64_t depth, int64_t width, int64_t padded_width, int64_t panel,
          AlignedFloats& to) {
  to.grow(depth * padded_width);
  float* out = to.data();
  for (int64_t first = 0; first < width; first += panel) {
    const int64_t panel_width = std::min(panel, padded_width - first);
    const int64_t real = std::min(panel_width, width - first);
    for (int64_t k = 0; k < depth; ++k, out += panel_width) {
      std::memcpy(out, weight + k * width + first, real * sizeof(float));
    }
  }
}

std::vector<PackedLayer> pack_layers(const EncodeLayers& layers, int64_t code_columns,
                                     int64_t panel) {
  std::vector<PackedLayer> packed;
  const float* from = layers.parameters;
  int64_t own = code_columns, pooled = 0;
  for (const int64_t width : layers.widths) {
    PackedLayer layer{own, pooled, width, padded(width, kPad), {}, {}, {}};
    pack(from, own, width, layer.padded_width, panel, layer.own);
    from += own * width;
    pack(from, pooled, width, layer.padded_width, panel, layer.pooled);
    from += pooled * width;
    layer.bias.grow(layer.padded_width);
    std::memcpy(layer.bias.data(), from, width * sizeof(float));
    from += width;
    packed.push_back(std::move(layer));
    own = pooled = width;
  }
  return packed;
}

// Encodes runs of voxels, in blocks that stay in the caches near the core.
class Encoder {
 public:
  Encoder(const EncodeInput& input, const std::vector<PackedLayer>& layers,
          const InstructionSet& instructions, float* out)
      : input_(input), layers_(layers), instructions_(instructions), out_(out) {
    for (const PackedLayer& layer : layers) widest_ = std::max(widest_, layer.padded_width);
    const int64_t voxels = kBlockRows + kTallest;
    for (AlignedFloats* per_voxel : {&pooled_[0], &pooled_[1], &start_}) {
      per_voxel->grow(voxels * widest_);
    }
  }

  void run(int64_t first, int64_t last) {
    const int64_t* offsets = input_.offsets;
    while (first < last) {
      int64_t end = first + 1;
      while (end < last && end - first < kBlockRows &&
             offsets[end + 1] - offsets[first] <= kBlockRows) {
        ++end;
      }
      block(first, end);
      first = end;
    }
  }

 private:
  // 96 rows of 64 channels are 24 KiB, half of a common first-level cache.
  static constexpr int64_t kBlockRows = 96;

  void block(int64_t first, int64_t last) {
    const int64_t rows = input_.offsets[last] - input_.offsets[first], voxels = last - first;
    const int64_t capacity = padded(rows, kTallest) + kTallest;
    const int64_t code_columns = input_.code_columns();
    own_[0].grow(capacity * std::max(widest_, code_columns));
    own_[1].grow(capacity * widest_);
    voxel_.resize(std::max<int64_t>(voxel_.size(), capacity));
    read_codes(first, last);
    std::fill(voxel_.begin() + rows, voxel_.begin() + capacity, static_cast<int32_t>(voxels - 1));

    const float* x = own_[0].data();
    int64_t x_stride = code_columns;
    for (size_t l = 0; l < layers_.size(); ++l) {
      const PackedLayer& layer = layers_[l];
      float* pooled = pooled_[l % 2].data();
      const float* start = layer.bias.data();
      if (layer.pooled_depth > 0) {
        instructions_.voxels({pooled_[(l + 1) % 2].data(), padded(layer.pooled_depth, kPad),
                              layer.pooled_depth, layer.pooled.data(), start, 0, nullptr,
                              start_.data(), layer.padded_width, nullptr, voxels,
                              layer.padded_width});
        start = start_.data();
      }
      std::fill(pooled, pooled + voxels * layer.padded_width, 0.0f);
      float* own = l + 1 < layers_.size() ? own_[(l + 1) % 2].data() : nullptr;
      instructions_.points({x, x_stride, layer.own_depth, layer.own.data(), start,
                            layer.pooled_depth > 0 ? layer.padded_width : 0, voxel_.data(), own,
                            layer.padded_width, pooled, rows, layer.padded_width});
      x = own;
      x_stride = layer.padded_width;
    }
    const PackedLayer& layer = layers_.back();
    const float* pooled = pooled_[(layers_.size() - 1) % 2].data();
    for (int64_t v = 0; v < voxels; ++v) {
      std::memcpy(out_ + (first + v) * layer.width, pooled + v * layer.padded_width,
                  layer.width * sizeof(float));
    }
  }

  // The codes of the block's points into own_[0], and the voxel of each.
  void read_codes(int64_t first, int64_t last) {
    const int64_t begin = input_.offsets[first], columns = input_.columns;
    float* code = own_[0].data();
    if (input_.point_index == nullptr) {
      std::copy(input_.values + begin * columns, input_.values + input_.offsets[last] * columns,
                code);
    }
    for (int64_t k = first; k < last; ++k) {
      const int64_t count = input_.offsets[k + 1] - input_.offsets[k];
      std::fill_n(voxel_.begin() + (input_.offsets[k] - begin), count,
                  static_cast<int32_t>(k - first));
      if (input_.point_index != nullptr) code = write_codes(k, code);
    }
  }

  float* write_codes(int64_t k, float* code) {
    const int64_t columns = input_.columns, width = input_.code_columns();
    const int64_t begin = input_.offsets[k], end = input_.offsets[k + 1];
    float sum[3] = {0.0f, 0.0f, 0.0f};
    for (int64_t i = begin; i < end; ++i) {
      const int64_t point = input_.point_index[i];
      if (point < 0 || point >= input_.num_points) {
        throw std::invalid_argument("point_index[" + std::to_string(i) + "] is " +
                                    std::to_string(point) + ", expected a row of " +
                                    std::to_string(input_.num_points) + " points");
      }
      const float* from = input_.values + point * columns;
      float* to = code + (i - begin) * width;
      for (int64_t c = 0; c < columns; ++c) to[c] = from[c];
      for (int axis = 0; axis < 3; ++axis) sum[axis] += from[axis];
    }
    for (int axis = 0; axis < 3; ++axis) sum[axis] = mean_of(sum[axis], end - begin);
    for (int64_t i = begin; i < end; ++i, code += width) {
      for (int axis = 0; axis < 3; ++axis) code[columns + axis] = code[axis] - sum[axis];
      if (input_.centers == nullptr) continue;
      for (int axis = 0; axis < 3; ++axis) {
        code[columns + 3 + axis] = code[axis] - input_.centers[3 * k + axis];
      }
    }
    return code;
  }

  const EncodeInput& input_;
  const std::vector<PackedLayer>& layers_;
  const InstructionSet instructions_;
  float* const out_;
  int64_t widest_ = kPad;
  AlignedFloats own_[2], pooled_[2], start_;
  std::vector<int32_t> voxel_;
};

}  // namespace

void encode_voxels_cpu(const EncodeInput& input, const EncodeLayers& layers, float* out,
                       int threads) {
  check_offsets(input.offsets, input.voxels, input.rows);
  if (input.voxels == 0) return;
  const InstructionSet instructions = best_instruction_set();
  const std::vector<PackedLayer> packed =
      pack_layers(layers, input.code_columns(), instructions.panel);
  const int64_t pieces =
      std::min<int64_t>((input.rows + input.voxels + 255) / 256, int64_t{threads} * 4);
  const auto begin = [&](int64_t piece) {
    return piece_begin(input.offsets, input.voxels, input.rows, piece, pieces);
  };
  run_tasks(pieces, threads, [&](int64_t piece) {
    Encoder(input, packed, instructions, out).run(begin(piece), begin(piece + 1));
  });
}

}  // namespace voxelpool
