#include "point_keys.h"

#include "../compiler.h"

#if defined(VP_X86)
#include <immintrin.h>
#endif

namespace voxelpool {
namespace {

template <typename Word>
int64_t scalar_keys(const VoxelizeInput& input, int64_t first, int64_t last, Word* keys,
                    Word* index, int64_t* bad) {
  const int64_t per_frame = input.grid.cells_per_frame();
  int64_t to = 0;
  for (int64_t i = first; i < last; ++i) {
    int64_t frame = 0;
    if (input.batch != nullptr) {
      frame = input.batch[i];
      if (frame < 0 || frame >= input.batch_size) {
        if (input.drop_bad_frames) continue;
        *bad = i;
        return to;
      }
    }
    const int64_t cell = point_cell(input.grid, input.points + i * input.stride);
    keys[to] = static_cast<Word>(frame * per_frame + cell);
    index[to] = static_cast<Word>(i);
    to += cell >= 0;
  }
  return to;
}

#if defined(VP_X86)

#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in GCC 12's own headers
#endif

// Both versions take blocks of points while at least one more point follows (a row is read as four
// floats), stop before a block with a frame out of range, and leave the rest to scalar_keys. Keys
// have 32 bits.
struct Progress {
  int64_t next;     // the first point that is not done
  int64_t written;  // keys so far
};

#define VP_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,popcnt")))

VP_AVX512 inline __m512 rows_of_four(const float* row, int64_t stride) {
  __m512 rows = _mm512_castps128_ps512(_mm_loadu_ps(row));
  rows = _mm512_insertf32x4(rows, _mm_loadu_ps(row + 4 * stride), 1);
  rows = _mm512_insertf32x4(rows, _mm_loadu_ps(row + 8 * stride), 2);
  return _mm512_insertf32x4(rows, _mm_loadu_ps(row + 12 * stride), 3);
}

VP_AVX512 inline __mmask16 within(__m512 p, float low, float high) {
  return _mm512_cmp_ps_mask(p, _mm512_set1_ps(low), _CMP_GE_OQ) &
         _mm512_cmp_ps_mask(p, _mm512_set1_ps(high), _CMP_LT_OQ);
}

VP_AVX512 inline __m512i cells_of(__m512 p, float low, float size, int64_t cells) {
  const __m512 quotient =
      _mm512_div_ps(_mm512_sub_ps(p, _mm512_set1_ps(low)), _mm512_set1_ps(size));
  // What does not fit into 31 bits becomes 2^31, which lies beyond the last cell, too.
  return _mm512_min_epu32(_mm512_cvttps_epi32(quotient),
                          _mm512_set1_epi32(static_cast<int>(cells - 1)));
}

VP_AVX512 Progress keys_avx512(const VoxelizeInput& input, int64_t first, int64_t last,
                               uint32_t* keys, uint32_t* index) {
  const Grid& grid = input.grid;
  const __m512i width = _mm512_set1_epi32(static_cast<int>(grid.cells[0]));
  const __m512i height = _mm512_set1_epi32(static_cast<int>(grid.cells[1]));
  const __m512i per_frame = _mm512_set1_epi32(static_cast<int>(grid.cells_per_frame()));
  const __m512i batch_size = _mm512_set1_epi64(input.batch_size);
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const int64_t stride = input.stride;
  Progress at{first, 0};
  for (; at.next + 16 < last; at.next += 16) {
    const float* row = input.points + at.next * stride;
    const __m512 a = rows_of_four(row, stride), b = rows_of_four(row + stride, stride);
    const __m512 c = rows_of_four(row + 2 * stride, stride);
    const __m512 d = rows_of_four(row + 3 * stride, stride);
    // Row 4 j + k lies in quarter j of the k-th: transposing each quarter keeps the order.
    const __m512 ab = _mm512_unpacklo_ps(a, b), cd = _mm512_unpacklo_ps(c, d);
    const __m512 x = _mm512_shuffle_ps(ab, cd, 0x44), y = _mm512_shuffle_ps(ab, cd, 0xEE);
    const __m512 z = _mm512_shuffle_ps(_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d), 0x44);
    __mmask16 inside = within(x, grid.low[0], grid.high[0]) & within(y, grid.low[1], grid.high[1]) &
                       within(z, grid.low[2], grid.high[2]);
    __m512i frame = _mm512_setzero_si512();
    if (input.batch != nullptr) {
      const __m512i low = _mm512_loadu_si512(input.batch + at.next);
      const __m512i high = _mm512_loadu_si512(input.batch + at.next + 8);
      const __mmask16 valid =  // compared without sign, a negative frame is too large
          static_cast<__mmask16>(_mm512_cmplt_epu64_mask(low, batch_size) |
                                 (_mm512_cmplt_epu64_mask(high, batch_size) << 8));
      if (valid != 0xFFFF && !input.drop_bad_frames) return at;
      inside &= valid;
      frame = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi64_epi32(low)),
                                 _mm512_cvtepi64_epi32(high), 1);
    }
    if (inside == 0) continue;
    __m512i key = cells_of(z, grid.low[2], grid.size[2], grid.cells[2]);
    key = _mm512_add_epi32(_mm512_mullo_epi32(key, height),
                           cells_of(y, grid.low[1], grid.size[1], grid.cells[1]));
    key = _mm512_add_epi32(_mm512_mullo_epi32(key, width),
                           cells_of(x, grid.low[0], grid.size[0], grid.cells[0]));
    key = _mm512_add_epi32(key, _mm512_mullo_epi32(frame, per_frame));
    const __m512i row_number =
        _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(at.next)), lanes);
    _mm512_storeu_si512(keys + at.written, _mm512_maskz_compress_epi32(inside, key));
    _mm512_storeu_si512(index + at.written, _mm512_maskz_compress_epi32(inside, row_number));
    at.written += __builtin_popcount(inside);
  }
  return at;
}

#define VP_AVX2 __attribute__((target("avx2,popcnt")))

// For each set of lanes, those lanes first, in order.
struct Compression {
  uint32_t lanes[256][8] = {};
  constexpr Compression() {
    for (int mask = 0; mask < 256; ++mask) {
      int to = 0;
      for (int lane = 0; lane < 8; ++lane) {
        if (mask >> lane & 1) lanes[mask][to++] = static_cast<uint32_t>(lane);
      }
    }
  }
};
constexpr Compression kCompression;

VP_AVX2 inline __m256 rows_of_two(const float* row, int64_t stride) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(row)),
                              _mm_loadu_ps(row + 4 * stride), 1);
}

VP_AVX2 inline __m256 inside_axis(__m256 p, float low, float high) {
  return _mm256_and_ps(_mm256_cmp_ps(p, _mm256_set1_ps(low), _CMP_GE_OQ),
                       _mm256_cmp_ps(p, _mm256_set1_ps(high), _CMP_LT_OQ));
}

VP_AVX2 inline __m256i axis_cells(__m256 p, float low, float size, int64_t cells) {
  const __m256 quotient =
      _mm256_div_ps(_mm256_sub_ps(p, _mm256_set1_ps(low)), _mm256_set1_ps(size));
  return _mm256_min_epu32(_mm256_cvttps_epi32(quotient),
                          _mm256_set1_epi32(static_cast<int>(cells - 1)));
}

VP_AVX2 Progress keys_avx2(const VoxelizeInput& input, int64_t first, int64_t last, uint32_t* keys,
                           uint32_t* index) {
  const Grid& grid = input.grid;
  const __m256i width = _mm256_set1_epi32(static_cast<int>(grid.cells[0]));
  const __m256i height = _mm256_set1_epi32(static_cast<int>(grid.cells[1]));
  const __m256i per_frame = _mm256_set1_epi32(static_cast<int>(grid.cells_per_frame()));
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const int64_t stride = input.stride;
  Progress at{first, 0};
  for (; at.next + 8 < last; at.next += 8) {
    const float* row = input.points + at.next * stride;
    const __m256 a = rows_of_two(row, stride), b = rows_of_two(row + stride, stride);
    const __m256 c = rows_of_two(row + 2 * stride, stride);
    const __m256 d = rows_of_two(row + 3 * stride, stride);
    const __m256 ab = _mm256_unpacklo_ps(a, b), cd = _mm256_unpacklo_ps(c, d);
    const __m256 x = _mm256_shuffle_ps(ab, cd, 0x44), y = _mm256_shuffle_ps(ab, cd, 0xEE);
    const __m256 z = _mm256_shuffle_ps(_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d), 0x44);
    unsigned inside = static_cast<unsigned>(
        _mm256_movemask_ps(_mm256_and_ps(_mm256_and_ps(inside_axis(x, grid.low[0], grid.high[0]),
                                                       inside_axis(y, grid.low[1], grid.high[1])),
                                         inside_axis(z, grid.low[2], grid.high[2]))));
    __m256i frame = _mm256_setzero_si256();
    if (input.batch != nullptr) {
      unsigned valid = 0;
      alignas(32) uint32_t frames[8];
      for (int lane = 0; lane < 8; ++lane) {
        const int64_t value = input.batch[at.next + lane];
        valid |= static_cast<unsigned>(value >= 0 && value < input.batch_size) << lane;
        frames[lane] = static_cast<uint32_t>(value);
      }
      if (valid != 0xFF && !input.drop_bad_frames) return at;
      inside &= valid;
      frame = _mm256_load_si256(reinterpret_cast<const __m256i*>(frames));
    }
    if (inside == 0) continue;
    __m256i key = axis_cells(z, grid.low[2], grid.size[2], grid.cells[2]);
    key = _mm256_add_epi32(_mm256_mullo_epi32(key, height),
                           axis_cells(y, grid.low[1], grid.size[1], grid.cells[1]));
    key = _mm256_add_epi32(_mm256_mullo_epi32(key, width),
                           axis_cells(x, grid.low[0], grid.size[0], grid.cells[0]));
    key = _mm256_add_epi32(key, _mm256_mullo_epi32(frame, per_frame));
    const __m256i row_number =
        _mm256_add_epi32(_mm256_set1_epi32(static_cast<int>(at.next)), lanes);
    const __m256i order =
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kCompression.lanes[inside]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(keys + at.written),
                        _mm256_permutevar8x32_epi32(key, order));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(index + at.written),
                        _mm256_permutevar8x32_epi32(row_number, order));
    at.written += __builtin_popcount(inside);
  }
  return at;
}

using BlockKeys = Progress (*)(const VoxelizeInput&, int64_t, int64_t, uint32_t*, uint32_t*);

BlockKeys best_version() {
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("popcnt")) {
    return keys_avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt")) return keys_avx2;
  return nullptr;
}

#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif  // VP_X86

}  // namespace

int64_t find_keys(const VoxelizeInput& input, int64_t first, int64_t last, uint32_t* keys,
                  uint32_t* index, int64_t* bad) {
  int64_t done = 0;
#if defined(VP_X86)
  static const BlockKeys blocks = best_version();
  if (blocks != nullptr) {
    const Progress progress = blocks(input, first, last, keys, index);
    first = progress.next;
    done = progress.written;
  }
#endif
  return done + scalar_keys(input, first, last, keys + done, index + done, bad);
}

int64_t find_keys(const VoxelizeInput& input, int64_t first, int64_t last, uint64_t* keys,
                  uint64_t* index, int64_t* bad) {
  return scalar_keys(input, first, last, keys, index, bad);
}

}  // namespace voxelpool
