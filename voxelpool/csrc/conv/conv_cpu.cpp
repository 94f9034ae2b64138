#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "../aligned_floats.h"
#include "../thread_pool.h"
#include "../vectors.h"
#include "conv.h"

namespace voxelpool {
namespace {

// The kernels of one instruction set, by the number of vectors that make up a block of channels.
struct Kernels {
  int lanes;
  void (*multiply[4])(int64_t count, const float* const* rows, float* const* sums,
                      const float* weight, int64_t units);
  void (*accumulate[4])(int64_t pairs, const float* const* rows, int64_t in_channels,
                        const float* const* grads, float* sums);
};

namespace plain {
using Isa = PlainVectors;
#define VP_TARGET VP_TARGET_PLAIN
#include "conv_kernel.h"
#undef VP_TARGET
}  // namespace plain

#if defined(VP_X86)
namespace avx2 {
using Isa = Avx2Vectors;
#define VP_TARGET VP_TARGET_AVX2
#include "conv_kernel.h"
#undef VP_TARGET
}  // namespace avx2

namespace avx512 {
using Isa = Avx512Vectors;
#define VP_TARGET VP_TARGET_AVX512
#include "conv_kernel.h"
#undef VP_TARGET
}  // namespace avx512

namespace avx512_bfloat16 {
#define VP_TARGET __attribute__((target("avx512f,avx512bf16")))
// Lanes of two bfloat16 each.
struct Isa : Avx512Vectors {
  VP_TARGET static VP_INLINE Vector multiply_add(Vector a, Vector b, Vector sum) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
};
#include "conv_kernel.h"
#undef VP_TARGET
}  // namespace avx512_bfloat16
#endif

const Kernels& float_kernels() {
#if defined(VP_X86)
  if (has_avx512()) return avx512::kernels;
  if (has_avx2()) return avx2::kernels;
#endif
  return plain::kernels;
}

const Kernels& kernels_for(DType dtype) {
#if defined(VP_X86)
  if (dtype == DType::kBFloat16) return avx512_bfloat16::kernels;
#endif
  return float_kernels();
}

// How the out channels are cut: into blocks of a few vectors, even ones, at most 64 channels wide.
struct Blocks {
  int vectors, width;
  int64_t count;
  Blocks(int64_t channels, int lanes) {
    const int64_t most = 4;
    const int64_t needed = (channels + lanes - 1) / lanes;
    count = std::max<int64_t>(1, (needed + most - 1) / most);
    vectors = static_cast<int>(std::max<int64_t>(1, (needed + count - 1) / count));
    width = vectors * lanes;
  }
};

uint16_t to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (value != value) return 0x7fc0;
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Blocks of out channels, each (taps, units, width), times the scale; missing channels are 0.
void pack(bool half, const ConvWeight& weight, int64_t taps, int64_t units, const float* scale,
          const Blocks& blocks, float* packed, int threads) {
  const int64_t block_size = taps * units * blocks.width;
  run_tasks(blocks.count * taps, threads, [&](int64_t task) {
    const int64_t block = task / taps, t = task % taps;
    float* to = packed + block * block_size + t * units * blocks.width;
    for (int64_t w = 0; w < blocks.width; ++w) {
      const int64_t channel = block * blocks.width + w;
      if (channel >= weight.out_channels) {
        for (int64_t u = 0; u < units; ++u) to[u * blocks.width + w] = 0;
        continue;
      }
      const float* from = weight.data + t * weight.tap_stride + channel * weight.out_stride;
      const float factor = scale ? scale[channel] : 1.0f;
      for (int64_t u = 0; u < units; ++u) {
        if (half) {
          const uint32_t low = to_bfloat16(from[2 * u * weight.in_stride] * factor);
          const uint32_t high = to_bfloat16(from[(2 * u + 1) * weight.in_stride] * factor);
          const uint32_t pair = low | high << 16;
          std::memcpy(to + u * blocks.width + w, &pair, sizeof pair);
        } else {
          to[u * blocks.width + w] = from[u * weight.in_stride] * factor;
        }
      }
    }
  });
}

[[noreturn]] void fail_entry(const Table& table, int64_t cell, int64_t tap) {
  throw std::out_of_range("table[" + std::to_string(cell) + ", " + std::to_string(tap) + "] is " +
                          std::to_string(table.entries[cell * table.taps + tap]) +
                          ", expected -1 to " + std::to_string(table.rows - 1) + ", the rows");
}

// The row of a cell and tap, or -1.
VP_INLINE int64_t entry(const Table& table, int64_t cell, int64_t tap) {
  const int64_t row = table.entries[cell * table.taps + tap];
  if (row >= table.rows) fail_entry(table, cell, tap);
  return row;
}

constexpr int64_t kSums = 96 * 64;  // sums that are worked on at once: they stay in the cache
constexpr int64_t kCells = 96;      // cells whose gradients are worked on at once

}  // namespace

bool gather_conv_bfloat16() {
#if defined(VP_X86)
  return has_avx512() && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

void gather_conv_cpu(DType dtype, const void* rows, const Table& table, const ConvWeight& weight,
                     const float* scale, const float* bias, bool relu, void* out, int threads) {
  const bool half = dtype == DType::kBFloat16;
  const Kernels& kernels = kernels_for(dtype);
  const Blocks blocks(weight.out_channels, kernels.lanes);
  const int64_t units = half ? weight.in_channels / 2 : weight.in_channels;
  const int64_t width = blocks.width, taps = table.taps, channels = weight.out_channels;
  AlignedFloats packed(blocks.count * taps * units * width);
  if (table.cells) pack(half, weight, taps, units, scale, blocks, packed.data(), threads);

  const auto multiply = kernels.multiply[blocks.vectors - 1];
  const int64_t most = kSums / width;
  const int64_t pieces = (table.cells + most - 1) / most;
  run_tasks(pieces, threads, [&](int64_t piece) {
    const int64_t first = piece * most;
    const int64_t cells = std::min(most, table.cells - first);
    AlignedFloats sums(cells * width);
    // The cells that each tap finds a row for, tap after tap.
    std::vector<const float*> from(taps * cells);
    std::vector<float*> to(taps * cells);
    std::vector<int64_t> ends(taps);
    int64_t end = 0;
    for (int64_t t = 0; t < taps; ++t) {
      for (int64_t n = 0; n < cells; ++n) {
        const int64_t row = entry(table, first + n, t);
        if (row < 0) continue;
        from[end] = static_cast<const float*>(rows) + row * units;
        to[end++] = sums.data() + n * width;
      }
      ends[t] = end;
    }
    for (int64_t block = 0; block < blocks.count; ++block) {
      const int64_t channel = block * width;
      const int64_t valid = std::min<int64_t>(width, channels - channel);
      for (int64_t n = 0; n < cells; ++n) {
        float* sum = sums.data() + n * width;
        for (int64_t w = 0; w < width; ++w) sum[w] = bias && w < valid ? bias[channel + w] : 0.0f;
      }
      for (int64_t t = 0, begin = 0; t < taps; begin = ends[t++]) {
        multiply(ends[t] - begin, from.data() + begin, to.data() + begin,
                 packed.data() + (block * taps + t) * units * width, units);
      }
      for (int64_t n = 0; n < cells; ++n) {
        float* sum = sums.data() + n * width;
        if (relu) {
          for (int64_t w = 0; w < width; ++w) sum[w] = sum[w] < 0.0f ? 0.0f : sum[w];
        }
        const int64_t at = (first + n) * channels + channel;
        if (half) {
          uint16_t* result = static_cast<uint16_t*>(out) + at;
          for (int64_t w = 0; w < valid; ++w) result[w] = to_bfloat16(sum[w]);
        } else {
          std::memcpy(static_cast<float*>(out) + at, sum, valid * sizeof(float));
        }
      }
    }
  });
}

void gather_conv_weight_cpu(const float* rows, const Table& table, const float* grad,
                            int64_t in_channels, int64_t out_channels, float* weight_grad,
                            int threads) {
  const Kernels& kernels = float_kernels();
  const Blocks blocks(out_channels, kernels.lanes);
  const int64_t width = blocks.width;
  const auto accumulate = kernels.accumulate[blocks.vectors - 1];
  std::vector<int32_t> by_tap(table.cells * table.taps);  // the table, tap after tap
  parallel_for(table.cells, 4096, threads, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      for (int64_t t = 0; t < table.taps; ++t) {
        by_tap[t * table.cells + n] = static_cast<int32_t>(entry(table, n, t));
      }
    }
  });
  run_tasks(blocks.count * table.taps, threads, [&](int64_t task) {
    const int64_t t = task / blocks.count, channel = task % blocks.count * width;
    const int64_t valid = std::min<int64_t>(width, out_channels - channel);
    AlignedFloats sums(in_channels * width), copies(valid < width ? kCells * width : 0);
    std::fill_n(sums.data(), in_channels * width, 0.0f);
    const float *from[kCells], *grads[kCells];
    int64_t pairs = 0;
    const auto flush = [&] {
      accumulate(pairs, from, in_channels, grads, sums.data());
      pairs = 0;
    };
    for (int64_t n = 0; n < table.cells; ++n) {
      const int64_t row = by_tap[t * table.cells + n];
      if (row < 0) continue;
      from[pairs] = rows + row * in_channels;
      grads[pairs] = grad + n * out_channels + channel;
      if (valid < width) {  // a full vector would read beyond the row
        float* copy = copies.data() + pairs * width;
        std::memcpy(copy, grads[pairs], valid * sizeof(float));
        std::fill(copy + valid, copy + width, 0.0f);
        grads[pairs] = copy;
      }
      if (++pairs == kCells) flush();
    }
    flush();
    for (int64_t c = 0; c < in_channels; ++c) {
      std::memcpy(weight_grad + (t * in_channels + c) * out_channels + channel,
                  sums.data() + c * width, valid * sizeof(float));
    }
  });
}

void gather_conv_inverse_cpu(const Table& table, int64_t shared, const float* grad,
                             int64_t channels, int32_t* inverse, float* sums, int threads) {
  const int64_t taps = table.taps, first = table.rows - shared;
  std::fill_n(inverse, table.rows * taps, -1);
  std::fill_n(sums, shared * taps * channels, 0.0f);
  // A few taps at a time, so that the table is read a few times alone; who adds to a sum is one
  // task, in the order of the cells.
  const int64_t group = (taps + 3) / 4;
  run_tasks((taps + group - 1) / group, threads, [&](int64_t task) {
    const int64_t begin = task * group, end = std::min(taps, begin + group);
    for (int64_t n = 0; n < table.cells; ++n) {
      for (int64_t t = begin; t < end; ++t) {
        const int64_t row = entry(table, n, t);
        if (row < 0) continue;
        int32_t& at = inverse[row * taps + t];
        if (row < first) {
          if (at >= 0) {
            throw std::invalid_argument("table: row " + std::to_string(row) +
                                        " is read twice with tap " + std::to_string(t) +
                                        ", but is not among the shared rows");
          }
          at = static_cast<int32_t>(n);
        } else {
          const int64_t sum = (row - first) * taps + t;
          at = static_cast<int32_t>(table.cells + sum);
          float* to = sums + sum * channels;
          for (int64_t c = 0; c < channels; ++c) to[c] += grad[n * channels + c];
        }
      }
    }
  });
}

void conv_table_cpu(const int32_t* index, int64_t batch, const int64_t* cells, int64_t count,
                    const ConvShape& shape, int32_t* table, int threads) {
  const int64_t *in = shape.in, *out = shape.out, *kernel = shape.kernel;
  const int64_t taps = kernel[0] * kernel[1] * kernel[2];
  const int64_t places = batch * out[0] * out[1] * out[2];
  parallel_for(count, 4096, threads, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      int64_t place = cells[n];
      if (place < 0 || place >= places) {
        throw std::out_of_range("cells[" + std::to_string(n) + "] is " + std::to_string(place) +
                                ", expected 0 to " + std::to_string(places - 1));
      }
      int64_t corner[3];
      for (int axis = 2; axis >= 0; --axis) {
        corner[axis] = place % out[axis] * shape.stride[axis] - shape.padding[axis];
        place /= out[axis];
      }
      const int32_t* frame = index + place * in[0] * in[1] * in[2];
      int32_t* to = table + n * taps;
      for (int64_t z = corner[0]; z < corner[0] + kernel[0]; ++z) {
        for (int64_t y = corner[1]; y < corner[1] + kernel[1]; ++y) {
          const bool inside = z >= 0 && z < in[0] && y >= 0 && y < in[1];
          const int32_t* row = inside ? frame + (z * in[1] + y) * in[2] : nullptr;
          for (int64_t x = corner[2]; x < corner[2] + kernel[2]; ++x) {
            *to++ = inside && x >= 0 && x < in[2] ? row[x] : -1;
          }
        }
      }
    }
  });
}

}  // namespace voxelpool
