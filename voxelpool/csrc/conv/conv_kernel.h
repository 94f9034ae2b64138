// The inner loops of conv_cpu.cpp, which includes this file once for each instruction set, inside a
// namespace with its `Isa` and with VP_TARGET naming it. No include guard for that reason.
//
// A unit is 32 bits of a row: one float, or two bfloat16.

// sums[c][0..width) += rows[c][0..units) @ weight (units, width), for `cells` cells at once.
template <int vectors, int cells>
VP_TARGET VP_INLINE void multiply_cells(const float* const* rows, float* const* sums,
                                        const float* weight, int64_t units) {
  Isa::Vector sum[cells][vectors];
  for (int c = 0; c < cells; ++c) {
    for (int v = 0; v < vectors; ++v) sum[c][v] = Isa::load(sums[c] + v * Isa::lanes);
  }
  for (int64_t u = 0; u < units; ++u, weight += vectors * Isa::lanes) {
    Isa::Vector column[vectors];
    for (int v = 0; v < vectors; ++v) column[v] = Isa::load(weight + v * Isa::lanes);
    for (int c = 0; c < cells; ++c) {
      const Isa::Vector value = Isa::broadcast(rows[c][u]);
      for (int v = 0; v < vectors; ++v) {
        sum[c][v] = Isa::multiply_add(column[v], value, sum[c][v]);
      }
    }
  }
  for (int c = 0; c < cells; ++c) {
    for (int v = 0; v < vectors; ++v) Isa::store(sums[c] + v * Isa::lanes, sum[c][v]);
  }
}

template <int vectors>
VP_TARGET void multiply(int64_t count, const float* const* rows, float* const* sums,
                        const float* weight, int64_t units) {
  for (; count >= 6; count -= 6, rows += 6, sums += 6) {
    multiply_cells<vectors, 6>(rows, sums, weight, units);
  }
  switch (count) {
    case 5:
      return multiply_cells<vectors, 5>(rows, sums, weight, units);
    case 4:
      return multiply_cells<vectors, 4>(rows, sums, weight, units);
    case 3:
      return multiply_cells<vectors, 3>(rows, sums, weight, units);
    case 2:
      return multiply_cells<vectors, 2>(rows, sums, weight, units);
    case 1:
      return multiply_cells<vectors, 1>(rows, sums, weight, units);
    default:
      return;
  }
}

// sums[c] (width) += sum over pairs p of rows[p][c] * grads[p][0..width), for `channels` rows c.
template <int vectors, int channels>
VP_TARGET VP_INLINE void accumulate_channels(int64_t pairs, const float* const* rows, int64_t first,
                                             const float* const* grads, float* sums) {
  constexpr int width = vectors * Isa::lanes;
  Isa::Vector sum[channels][vectors];
  for (int c = 0; c < channels; ++c) {
    for (int v = 0; v < vectors; ++v) sum[c][v] = Isa::load(sums + c * width + v * Isa::lanes);
  }
  for (int64_t p = 0; p < pairs; ++p) {
    Isa::Vector grad[vectors];
    for (int v = 0; v < vectors; ++v) grad[v] = Isa::load(grads[p] + v * Isa::lanes);
    for (int c = 0; c < channels; ++c) {
      const Isa::Vector value = Isa::broadcast(*(rows[p] + first + c));
      for (int v = 0; v < vectors; ++v) {
        sum[c][v] = Isa::multiply_add(grad[v], value, sum[c][v]);
      }
    }
  }
  for (int c = 0; c < channels; ++c) {
    for (int v = 0; v < vectors; ++v) Isa::store(sums + c * width + v * Isa::lanes, sum[c][v]);
  }
}

template <int vectors>
VP_TARGET void accumulate(int64_t pairs, const float* const* rows, int64_t in_channels,
                          const float* const* grads, float* sums) {
  constexpr int width = vectors * Isa::lanes;
  int64_t c = 0;
  for (; c + 6 <= in_channels; c += 6) {
    accumulate_channels<vectors, 6>(pairs, rows, c, grads, sums + c * width);
  }
  for (; c + 2 <= in_channels; c += 2) {
    accumulate_channels<vectors, 2>(pairs, rows, c, grads, sums + c * width);
  }
  if (c < in_channels) accumulate_channels<vectors, 1>(pairs, rows, c, grads, sums + c * width);
}

inline constexpr Kernels kernels = {
    Isa::lanes,
    {multiply<1>, multiply<2>, multiply<3>, multiply<4>},
    {accumulate<1>, accumulate<2>, accumulate<3>, accumulate<4>},
};
