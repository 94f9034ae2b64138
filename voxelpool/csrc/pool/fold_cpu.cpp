// Sum, mean and product of groups.
#include "pool_cpu.h"

namespace voxelpool {
namespace {

// Lanes of the widest block of channels kept in registers through a group. Products are rare: few
// variants are compiled.
template <typename T, bool product>
constexpr int kLanes = product          ? 16
                       : sizeof(T) >= 8 ? 32
                                        : 64;

template <bool product, typename T, typename Rows>
struct FoldKernel {
  using Value = typename Accumulator<T>::Type;
  const T* src;
  Groups shape;
  Rows rows;
  T* out;
  bool mean;

  template <int lanes, bool whole>
  VP_INLINE void block(int64_t k, int64_t channel, int some) const {
    const int width = whole ? lanes : some;
    const int64_t begin = shape.offsets[k], end = shape.offsets[k + 1];
    Value total[lanes];
    for (int l = 0; l < width; ++l) total[l] = product ? 1 : 0;
    for (int64_t p = begin; p < end; ++p) {
      rows.template fetch<lanes * sizeof(T)>(src + channel, shape.channels, p);
      const T* from = src + rows.row(p) * shape.channels + channel;
      for (int l = 0; l < width; ++l) {
        const Value value = static_cast<Value>(from[l]);
        total[l] = product ? multiply(total[l], value) : add(total[l], value);
      }
    }
    T* to = out + k * shape.channels + channel;
    if (mean && end > begin) {
      for (int l = 0; l < width; ++l) total[l] = divide(total[l], end - begin);
    }
    for (int l = 0; l < width; ++l) to[l] = static_cast<T>(total[l]);
  }

  template <typename Register>
  VP_INLINE void operator()(Register, int64_t first, int64_t last, int64_t c_begin,
                            int64_t c_end) const {
    for (int64_t k = first; k < last; ++k) {
      const int64_t c = cover<kLanes<Value, product>, 8>(
          c_begin, c_end, [&](auto lanes, int64_t channel) VP_INLINE_LAMBDA {
            block<lanes, true>(k, channel, lanes);
          });
      if (c < c_end) block<8, false>(k, c, static_cast<int>(c_end - c));
    }
  }
};

}  // namespace

void segment_fold_cpu(Fold fold, DType dtype, const void* src, Groups shape, void* out,
                      int threads) {
  with_rows(shape, [&](auto rows) {
    dispatch(dtype, [&](auto example) {
      using T = decltype(example);
      using Rows = decltype(rows);
      const T* from = static_cast<const T*>(src);
      T* to = static_cast<T*>(out);
      expect_write(to, shape.groups * shape.channels * sizeof(T));
      if (fold == Fold::kProduct) {
        run_on_groups(shape, threads, FoldKernel<true, T, Rows>{from, shape, rows, to, false});
      } else {
        run_on_groups(shape, threads,
                      FoldKernel<false, T, Rows>{from, shape, rows, to, fold == Fold::kMean});
      }
    });
  });
}

}  // namespace voxelpool
