// The seam of row_norm: arguments and kernels. Statistics are taken over *sets*, each inside one sample.
//
// Four memory orders, which say where the elements of a set lie. In all of them work is cut into units by the shape
// alone, never by the number of threads, and partial sums are added in the order of units: the bits do not depend on
// threads, and in the forward not on the other samples.
#pragma once

#include "math/general_relu.h"
#include "math/norm.h"
#include "op/tensor.h"

namespace fastnorm {

enum class RowOrder : uint8_t {
  runs,       // x [N, G, K]: a set is a run of K elements, each with a weight of its own; S is 1
  planes,     // x [N, G, K, S]: a set is K planes of S elements, a weight for each plane
  columns,    // x [N, S, G, K]: a set is K neighbouring columns over the S rows of a sample, a weight for each column
  positions,  // x [N, K, S]: a set is the K elements at one of S positions, a weight for each k; G is 1
};

struct RowNormShape {
  RowOrder order = RowOrder::runs;
  int64_t N = 0, G = 0, K = 0, S = 0;

  int64_t sets() const { return order == RowOrder::positions ? N * S : N * G; }
  int64_t set_size() const { return order == RowOrder::positions ? K : K * S; }
  int64_t width() const { return G * K; }  // weights
  int64_t sample() const { return G * K * S; }
  int64_t elements() const { return N * sample(); }
};

// Weights and biases are of the arithmetic's type, dense, in the order of memory: [G, K]; null where absent, but a bias
// has a weight.
struct RowNormFwd {
  const void *x, *residual;  // residual may be null
  void* y;
  void *mean, *rstd;  // one per set, out: fp32, or fp64 for fp64 x; mean is null for rms
  const void *weight, *bias;
  RowNormShape shape;
  Dtype dtype;
  ActivationSpec act;
  double eps;
  bool rms, unbiased, stream;
};

struct RowNormBwd {
  const void *dy, *x, *residual;  // residual only with an activation
  const void *mean, *rstd, *weight, *bias;
  void *dx, *dresidual;  // each may be null: not wanted
  void* parameters;      // [units, 2, width] of the arithmetic's type: partial dweight and dbias; may be null
  RowNormShape shape;
  Dtype dtype;
  ActivationSpec act;
  bool rms, unbiased, stream;
};

// A chunk of a set that is a run in memory (runs, planes): the unit of work where threads share a set.
constexpr int64_t kSetChunk = 16384;
FASTNORM_INLINE int64_t chunks_of_set(const RowNormShape& s) { return (s.set_size() + kSetChunk - 1) / kSetChunk; }

// runs: sets longer than a chunk are taken chunk by chunk, shorter ones several at a time. The backward writes the long
// ones in tiles.
FASTNORM_INLINE bool long_runs(const RowNormShape& s) { return s.K > kSetChunk; }
constexpr int64_t kLongTile = 2048;

// runs: samples that share partial parameter gradients, few enough for chains of additions in fp32.
FASTNORM_INLINE int64_t samples_of_block(const RowNormShape& s) {
  if (long_runs(s)) return 64;
  const int64_t share = (s.N + 31) / 32;
  return share < 16 ? 16 : share > 256 ? 256 : share;
}

// planes: a plane is cut into pieces, each with its own sums.
FASTNORM_INLINE int64_t pieces_of_plane(const RowNormShape& s) { return (s.S + kSetChunk - 1) / kSetChunk; }

// columns: rows of one block.
constexpr int64_t kBlockRows = 256;
FASTNORM_INLINE int64_t blocks_of_sample(const RowNormShape& s) { return (s.S + kBlockRows - 1) / kBlockRows; }

// positions: positions of one tile, few enough for the tile to stay in L2 between its sweeps.
FASTNORM_INLINE int64_t positions_of_tile(const RowNormShape& s, Dtype dtype) {
  constexpr int64_t kBytes = 256 << 10, kLeast = 64, kMost = 256;
  const int64_t fitting = kBytes / (s.K * size_of(dtype)) / kLeast * kLeast;
  const int64_t count = fitting < kLeast ? kLeast : fitting < kMost ? fitting : kMost;
  return count < s.S ? count : s.S;
}
FASTNORM_INLINE int64_t tiles_of_positions(const RowNormShape& s, Dtype dtype) {
  const int64_t count = positions_of_tile(s, dtype);
  return s.N * ((s.S + count - 1) / count);
}

// positions: tiles that share partial parameter gradients.
FASTNORM_INLINE int64_t tiles_of_block(const RowNormShape& s, Dtype dtype) {
  const int64_t share = tiles_of_positions(s, dtype) / 32;
  return share < 1 ? 1 : share > 16 ? 16 : share;
}

// The number of partial parameter gradients.
FASTNORM_INLINE int64_t parameter_units(const RowNormShape& s, Dtype dtype) {
  if (s.order == RowOrder::runs) return (s.N + samples_of_block(s) - 1) / samples_of_block(s);
  if (s.order == RowOrder::positions) {
    const int64_t block = tiles_of_block(s, dtype);
    return (tiles_of_positions(s, dtype) + block - 1) / block;
  }
  return s.N;
}

// A weight, bias or gradient of one. Number (i, j, k) in the order of x's memory, of [outer, rows, columns], is element
// i * outer_stride + j * row_stride + k * column_stride; where the column stride is 0 the columns of a row share it.
struct Parameter {
  void* data = nullptr;
  Dtype dtype = Dtype::f32;
  int64_t outer = 1, rows = 1, columns = 0;
  int64_t outer_stride = 0, row_stride = 0, column_stride = 1;

  int64_t numbers() const { return outer * rows * columns; }
};

// Rows of a parameter's gradient that are stored at a time: whole cache lines, also where memory orders differ.
constexpr int64_t kParameterRows = 16;

// What one instruction set offers. Units are, forward: sets (runs, group_planes), samples (group_columns), tiles
// (positions); backward: as parameter_units counts them, sets for group_planes. Where threads share a set or a sample,
// the other kernels apply: sums of units, which are chunks (runs, group_planes), blocks of rows (group_columns) or
// pieces of planes (group_planes, backward), and what is written afterwards, in the order of memory.
struct RowNormKernels {
  void (*load_parameter)(const Parameter&, Dtype arithmetic, void* out);
  // The sum over units of partial [units, stride], stored as rows [row0, row1) of all outer * rows of the gradient.
  void (*store_parameter)(const Parameter&, Dtype arithmetic, const void* partial, int64_t units, int64_t stride,
                          int64_t row0, int64_t row1);

  void (*sets_shift)(const RowNormFwd&, double* shift, int64_t set0, int64_t set1);
  void (*sets_sum)(const RowNormFwd&, const double* shift, ChannelSums* partial, int64_t unit0, int64_t unit1);
  void (*runs_fwd)(const RowNormFwd&, int64_t set0, int64_t set1);
  void (*runs_write)(const RowNormFwd&, int64_t unit0, int64_t unit1);
  void (*planes_fwd)(const RowNormFwd&, int64_t set0, int64_t set1);
  void (*planes_write)(const RowNormFwd&, int64_t unit0, int64_t unit1);
  void (*columns_fwd)(const RowNormFwd&, int64_t n0, int64_t n1);
  void (*columns_shift)(const RowNormFwd&, double* shift, int64_t n0, int64_t n1);
  void (*columns_sum)(const RowNormFwd&, const double* shift, ChannelSums* partial, int64_t unit0, int64_t unit1);
  bool (*columns_finish)(const RowNormFwd&, int64_t n, const ChannelSums* partial, double* shift, bool again);
  void (*columns_write)(const RowNormFwd&, int64_t unit0, int64_t unit1);
  void (*positions_fwd)(const RowNormFwd&, int64_t tile0, int64_t tile1);

  void (*runs_bwd)(const RowNormBwd&, int64_t block0, int64_t block1);
  void (*long_grad_sum)(const RowNormBwd&, ChannelSums* partial, int64_t n0, int64_t unit0, int64_t unit1);
  void (*long_grad_write)(const RowNormBwd&, const RowGrad* grads, int64_t n0, int64_t n1, int64_t unit0,
                          int64_t unit1);
  void (*planes_bwd)(const RowNormBwd&, int64_t set0, int64_t set1);
  void (*planes_grad_sum)(const RowNormBwd&, ChannelSums* partial, int64_t unit0, int64_t unit1);
  RowGrad (*planes_grad_finish)(const RowNormBwd&, int64_t set, const ChannelSums* partial);
  void (*planes_grad_write)(const RowNormBwd&, const RowGrad* grads, int64_t unit0, int64_t unit1);
  void (*columns_bwd)(const RowNormBwd&, int64_t n0, int64_t n1);
  void (*columns_grad_sum)(const RowNormBwd&, ChannelSums* partial, int64_t unit0, int64_t unit1);
  void (*columns_grad_finish)(const RowNormBwd&, int64_t n, ChannelSums* partial, RowGrad* grads);
  void (*columns_grad_write)(const RowNormBwd&, const RowGrad* grads, int64_t unit0, int64_t unit1);
  void (*positions_bwd)(const RowNormBwd&, int64_t block0, int64_t block1);
};

// Stores the statistics of sets whose chunks were summed one by one, or, where a shift was too far off (and this is not
// `again` the second look), moves that shift to the mean just found and returns false: sum again.
bool row_norm_finish_fwd(const RowNormFwd& args, const ChannelSums* partial, double* shift, bool again);
// Long runs: the numbers of `sets` sets from `set0` on, whose chunks' sums begin at partial.
void row_norm_finish_bwd(const RowNormBwd& args, const ChannelSums* partial, int64_t set0, int64_t sets,
                         RowGrad* grads);

}  // namespace fastnorm
