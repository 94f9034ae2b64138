// The register tile of encode_cpu.cpp, included there once for each instruction set, inside a
// namespace that defines VP_TARGET, Vector, kLanes, kPanelVectors, kSmallRows, kLargeRows and the
// functions on vectors. No include guard.

// Rows first_row, … of a panel of vectors * kLanes channels.
template <bool pointwise, int rows, int vectors>
VP_TARGET VP_INLINE void tile(const TileJob& job, int64_t first_row, int64_t channel,
                              const float* weights) {
  Vector sum[rows][vectors];
  VP_UNROLL
  for (int r = 0; r < rows; ++r) {
    const float* start = job.start + channel;
    if (pointwise) start += job.start_stride * job.voxel[first_row + r];
    VP_UNROLL
    for (int n = 0; n < vectors; ++n) sum[r][n] = load(start + n * kLanes);
  }
  const float* x = job.x + first_row * job.x_stride;
  for (int64_t k = 0; k < job.depth; ++k, ++x, weights += vectors * kLanes) {
    Vector weight[vectors];
    VP_UNROLL
    for (int n = 0; n < vectors; ++n) weight[n] = load(weights + n * kLanes);
    VP_UNROLL
    for (int r = 0; r < rows; ++r) {
      const Vector value = broadcast(x[r * job.x_stride]);
      VP_UNROLL
      for (int n = 0; n < vectors; ++n) sum[r][n] = multiply_add(value, weight[n], sum[r][n]);
    }
  }
  if (job.out != nullptr) {
    VP_UNROLL
    for (int r = 0; r < rows; ++r) {
      float* to = job.out + (first_row + r) * job.out_stride + channel;
      VP_UNROLL
      for (int n = 0; n < vectors; ++n) {
        store(to + n * kLanes, pointwise ? rectify(sum[r][n]) : sum[r][n]);
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
        store(best + n * kLanes, take_larger(load(best + n * kLanes), sum[r][n]));
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
  for (; channel + kPanelVectors * kLanes <= job.width; channel += kPanelVectors * kLanes) {
    panel<pointwise, kLargeRows, kPanelVectors>(job, channel);
  }
  const int64_t left = (job.width - channel) / kLanes;
  if (kPanelVectors > 3 && left == 3) panel<pointwise, kSmallRows, 3>(job, channel);
  if (kPanelVectors > 2 && left == 2) panel<pointwise, kSmallRows, 2>(job, channel);
  if (left == 1) panel<pointwise, kSmallRows, 1>(job, channel);
}
