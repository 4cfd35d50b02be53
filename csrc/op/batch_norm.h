// The seam of batch_norm: arguments and kernels.
//
// Two memory orders. *Planes*: x is [N, C, S] contiguous, a channel is N runs of S elements. *Rows*: x is [M, C]
// contiguous (channels_last, or [N, C]), a channel is a column. In both, work is cut into units by the shape alone,
// never by the number of threads, and partial sums are added in the order of units: the bits do not depend on threads.
#pragma once

#include "math/general_relu.h"
#include "math/norm.h"
#include "op/tensor.h"

namespace fastnorm {

struct BatchNormShape {
  int64_t N = 0, C = 0, S = 0;  // rows: N is M, S is 1
  FASTNORM_INLINE int64_t per_channel() const { return N * S; }
};

struct BatchNormFwd {
  const void *x, *residual;  // residual may be null
  void* y;
  void *mean, *rstd;  // [C], out: fp32, or fp64 for fp64 x
  ChannelVector weight, bias, running_mean, running_var;
  BatchNormShape shape;
  int64_t together;  // channels that planes_fwd takes at once: see channels_together in csrc/bind
  Dtype dtype;
  ActivationSpec act;
  double momentum, eps;
  bool training, unbiased, stream;
};

// With fixed statistics (not batch_stats) dx needs no sums: the sweep that takes them writes it.
struct BatchNormBwd {
  const void *dy, *x, *residual;  // residual only with an activation
  const void *mean, *rstd;
  void *dx, *dresidual;  // each may be null: not wanted
  ChannelVector weight, bias, dweight, dbias;
  BatchNormShape shape;
  int64_t together;  // as in the forward
  Dtype dtype;
  ActivationSpec act;
  bool batch_stats, unbiased, stream;
};

// A chunk of a channel in plane order: elements [s0, s1) of planes [n0, n1), the unit of work where threads share a
// channel. Its sums are doubles (cpu/sums.h, PairSums); chunks are added in their order, whoever took them.
struct PlaneChunk {
  int64_t n0, n1, s0, s1;
};
constexpr int64_t kChunkElements = 16384;

FASTNORM_INLINE int64_t pieces_of_plane(const BatchNormShape& s) { return (s.S + kChunkElements - 1) / kChunkElements; }
FASTNORM_INLINE int64_t planes_of_chunk(const BatchNormShape& s) {
  return s.S >= kChunkElements ? 1 : kChunkElements / s.S;
}
FASTNORM_INLINE int64_t chunks_of_channel(const BatchNormShape& s) {
  const int64_t planes = planes_of_chunk(s);
  return (s.N + planes - 1) / planes * pieces_of_plane(s);
}
FASTNORM_INLINE PlaneChunk plane_chunk(const BatchNormShape& s, int64_t k) {
  const int64_t pieces = pieces_of_plane(s), planes = planes_of_chunk(s);
  const int64_t n0 = k / pieces * planes, s0 = k % pieces * kChunkElements;
  const int64_t n1 = n0 + planes, s1 = s0 + kChunkElements;
  return {n0, n1 < s.N ? n1 : s.N, s0, s1 < s.S ? s1 : s.S};
}

// Channels that a kernel takes together in plane order, at most: their planes lie side by side in memory.
constexpr int64_t kMostChannels = 64;

// Planes of less than a page: the hardware's prefetcher stops at their ends, and every plane is overhead.
FASTNORM_INLINE bool short_plane(int64_t bytes) { return bytes < 4096; }

// Rows of one block in row order; partial sums are kept per block, few enough rows for fp32.
FASTNORM_INLINE int64_t rows_of_block(const BatchNormShape& s) {
  const int64_t share = (s.N + 63) / 64;
  return share < 256 ? 256 : share > 512 ? 512 : share;
}
FASTNORM_INLINE int64_t blocks_of_rows(const BatchNormShape& s) {
  const int64_t rows = rows_of_block(s);
  return (s.N + rows - 1) / rows;
}

// What one instruction set offers. Sums are relative to shift[channel]; partial is indexed by unit (planes: channel *
// chunks + chunk; rows: block * C + channel). Written units are pieces of planes, or blocks of rows, in memory order.
struct BatchNormKernels {
  void (*planes_fwd)(const BatchNormFwd&, int64_t channel0, int64_t channel1);
  void (*planes_shift)(const BatchNormFwd&, double* shift, int64_t channel0, int64_t channel1);
  void (*planes_sum)(const BatchNormFwd&, const double* shift, ChannelSums* partial, int64_t unit0, int64_t unit1);
  void (*planes_write)(const BatchNormFwd&, int64_t unit0, int64_t unit1);
  void (*rows_shift)(const BatchNormFwd&, double* shift);
  void (*rows_sum)(const BatchNormFwd&, const double* shift, ChannelSums* partial, int64_t block0, int64_t block1);
  void (*rows_write)(const BatchNormFwd&, int64_t block0, int64_t block1);

  void (*planes_bwd)(const BatchNormBwd&, int64_t channel0, int64_t channel1);
  void (*planes_grad_sum)(const BatchNormBwd&, ChannelSums* partial, int64_t unit0, int64_t unit1);
  void (*planes_grad_write)(const BatchNormBwd&, const InputGrad* grads, int64_t unit0, int64_t unit1);
  void (*rows_grad_sum)(const BatchNormBwd&, ChannelSums* partial, int64_t block0, int64_t block1);
  void (*rows_grad_write)(const BatchNormBwd&, const InputGrad* grads, int64_t block0, int64_t block1);
};

// Where the partial sums of a channel lie: count of them, stride apart.
struct Partials {
  const ChannelSums* data;
  int64_t count, stride, channel_stride;
};

// Stores every channel's statistics, or, where a shift was too far off (and this is not `again` the second look),
// moves that shift to the mean just found and returns false: sum again.
bool batch_norm_finish_fwd(const BatchNormFwd& args, const Partials& partials, double* shift, bool again);
void batch_norm_finish_bwd(const BatchNormBwd& args, const Partials& partials, InputGrad* grads);
// Evaluation: mean and rstd of the running statistics.
void batch_norm_running_stats(const BatchNormFwd& args);

}  // namespace fastnorm
