// The register tile of encode_cpu.cpp, included there once for each instruction set, inside a
// namespace with its `Isa` and with VP_TARGET naming it. No include guard for that reason.

// Rows first_row, … of a panel of vectors * Isa::lanes channels.
template <bool pointwise, int rows, int vectors>
VP_TARGET VP_INLINE void tile(const TileJob& job, int64_t first_row, int64_t channel,
                              const float* weights) {
  Isa::Vector sum[rows][vectors];
  VP_UNROLL
  for (int r = 0; r < rows; ++r) {
    const float* start = job.start + channel;
    if (pointwise) start += job.start_stride * job.voxel[first_row + r];
    VP_UNROLL
    for (int n = 0; n < vectors; ++n) sum[r][n] = Isa::load(start + n * Isa::lanes);
  }
  const float* x = job.x + first_row * job.x_stride;
  for (int64_t k = 0; k < job.depth; ++k, ++x, weights += vectors * Isa::lanes) {
    Isa::Vector weight[vectors];
    VP_UNROLL
    for (int n = 0; n < vectors; ++n) weight[n] = Isa::load(weights + n * Isa::lanes);
    VP_UNROLL
    for (int r = 0; r < rows; ++r) {
      const Isa::Vector value = Isa::broadcast(x[r * job.x_stride]);
      VP_UNROLL
      for (int n = 0; n < vectors; ++n) sum[r][n] = Isa::multiply_add(value, weight[n], sum[r][n]);
    }
  }
  if (job.out != nullptr) {
    VP_UNROLL
    for (int r = 0; r < rows; ++r) {
      float* to = job.out + (first_row + r) * job.out_stride + channel;
      VP_UNROLL
      for (int n = 0; n < vectors; ++n) {
        Isa::store(to + n * Isa::lanes, pointwise ? Isa::rectify(sum[r][n]) : sum[r][n]);
      }
    }
  }
  if (pointwise) {
    VP_UNROLL
    for (int r = 0; r < rows; ++r) {
      if (first_row + r >= job.rows) break;
      float* best = job.pooled + job.width * job.voxel[first_row + r] + channel;
      VP_UNROLL
      for (int n = 0; n < vectors; ++n) {
        Isa::store(best + n * Isa::lanes,
                   Isa::take_larger(Isa::load(best + n * Isa::lanes), sum[r][n]));
      }
    }
  }
}

template <bool pointwise, int rows, int vectors>
VP_TARGET VP_INLINE void panel(const TileJob& job, int64_t channel) {
  const float* weights = job.weights + channel * job.depth;
  for (int64_t row = 0; row < job.rows; row += rows) {
    tile<pointwise, rows, vectors>(job, row, channel, weights);
  }
}

template <bool pointwise>
VP_TARGET void layer(const TileJob& job) {
  int64_t channel = 0;
  for (; channel + Isa::panel_vectors * Isa::lanes <= job.width;
       channel += Isa::panel_vectors * Isa::lanes) {
    panel<pointwise, Isa::large_rows, Isa::panel_vectors>(job, channel);
  }
  const int64_t left = (job.width - channel) / Isa::lanes;
  if (Isa::panel_vectors > 3 && left == 3) panel<pointwise, Isa::small_rows, 3>(job, channel);
  if (Isa::panel_vectors > 2 && left == 2) panel<pointwise, Isa::small_rows, 2>(job, channel);
  if (left == 1) panel<pointwise, Isa::small_rows, 1>(job, channel);
}

inline constexpr InstructionSet instruction_set = {
    &layer<true>,
    &layer<false>,
    Isa::panel_vectors * Isa::lanes,
};
