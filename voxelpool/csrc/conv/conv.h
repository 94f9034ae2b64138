// Convolutions between lists of rows: a table says which row of the input each tap of each output
// cell reads. Strides, padding, holes in the map and shared rows are all matters of the table.
//
//   out[n] = sum over taps t with table[n][t] >= 0 of rows[table[n][t]] @ weight[t]
//
// Each cell adds its taps in order whatever the number of threads, so results are the same to the
// bit; instruction sets may differ in the last bits, as those without fused multiply-add round
// more.
#pragma once

#include <vector>

#include "../common.h"

namespace voxelpool {

struct Table {
  const int32_t* entries;  // (cells, taps): a row, or -1 for none
  int64_t cells, taps, rows;
};

// A float32 weight (taps, in, out) of any strides, in elements.
struct ConvWeight {
  const float* data;
  int64_t tap_stride, in_stride, out_stride;
  int64_t in_channels, out_channels;
};

// rows (table.rows, in) and out (table.cells, out) are float32 or bfloat16, with float32 sums; then
// out * scale + bias and max(out, 0) where given. bfloat16 takes an even number of in channels and
// a machine for which gather_conv_bfloat16() holds. Throws std::out_of_range for an entry beyond
// rows.
void gather_conv_cpu(DType dtype, const void* rows, const Table& table, const ConvWeight& weight,
                     const float* scale, const float* bias, bool relu, void* out, int threads);

// Whether this machine multiplies bfloat16 natively.
bool gather_conv_bfloat16();

// weight_grad[t] = sum over cells of rows[table[n][t]]^T grad[n]; all float32 and contiguous.
void gather_conv_weight_cpu(const float* rows, const Table& table, const float* grad,
                            int64_t in_channels, int64_t out_channels, float* weight_grad,
                            int threads);

// The table of the gradient with respect to the rows: inverse (rows, taps) names the cell that
// reads a row with a tap. Each of the last `shared` rows may be read by many cells with one tap;
// their gradients are added up in sums (shared * taps, channels), and inverse names row
// cells + (row - first shared) * taps + tap. Throws std::invalid_argument if another row is read
// twice with one tap.
void gather_conv_inverse_cpu(const Table& table, int64_t shared, const float* grad,
                             int64_t channels, int32_t* inverse, float* sums, int threads);

// A convolution's geometry, each (z, y, x).
struct ConvShape {
  int64_t in[3], out[3], kernel[3], stride[3], padding[3];
};

// The table of a convolution: index (batch, in) holds the row of each cell of the input, cells the
// places (batch, out) of `count` output cells, whatever lies in the padding is -1. Throws
// std::out_of_range for a place beyond batch frames.
void conv_table_cpu(const int32_t* index, int64_t batch, const int64_t* cells, int64_t count,
                    const ConvShape& shape, int32_t* table, int threads);

// Cells of a map: coords (count, 4) = frame, z, y, x, in this order, none twice.
struct Cells {
  const int32_t* coords;
  int64_t count;
};

// The table of a convolution of a list of cells, row k being cell k: as conv_table_cpu, without a
// map of rows, so memory is linear in the cells whatever the grid. Throws std::out_of_range for a
// cell beyond its map and std::invalid_argument for one out of order.
void sparse_table_cpu(const Cells& cells, const Cells& out_cells, int64_t batch,
                      const ConvShape& shape, int32_t* table, int threads);

// The output cells that see at least one of the cells, in order; found at construction, which
// throws as sparse_table_cpu. write() puts them where the caller has made room for count().
class SparseReachCpu {
 public:
  SparseReachCpu(const Cells& cells, int64_t batch, const ConvShape& shape, int threads);
  int64_t count() const;
  void write(int32_t* coords) const;

 private:
  std::vector<std::vector<int32_t>> pieces_;
};

}  // namespace voxelpool
