// Per-channel numbers: a channel's statistics and gradients finished, and the coefficients of its elements.
#pragma once

#include "op/batch_norm.h"

namespace fastnorm {

// mean and rstd are fp64 for fp64 tensors, else fp32.
FASTNORM_INLINE double read_stat(const void* stat, Dtype dtype, int64_t c) {
  return dtype == Dtype::f64 ? static_cast<const double*>(stat)[c] : static_cast<const float*>(stat)[c];
}
FASTNORM_INLINE void write_stat(void* stat, Dtype dtype, int64_t c, double value) {
  if (dtype == Dtype::f64) static_cast<double*>(stat)[c] = value;
  else static_cast<float*>(stat)[c] = static_cast<float>(value);
}

// The numbers of z = (x - mean) * scale + bias, in the arithmetic's type A.
template <class A>
struct Affine {
  A mean, scale, bias;
};

template <class A, class Args>
FASTNORM_INLINE Affine<A> affine_of(const Args& args, int64_t c) {
  const A rstd = static_cast<const A*>(args.rstd)[c];
  return {static_cast<const A*>(args.mean)[c], static_cast<A>(read(args.weight, c, 1)) * rstd,
          static_cast<A>(read(args.bias, c, 0))};
}

// What lies `together` channels after x, to be fetched while those of x are written: the hardware's prefetcher stops at
// the end of a plane. x itself where the tensors stay in the cache anyhow.
template <class Args, class T>
FASTNORM_INLINE const T* next_channels(const Args& args, const T* x) {
  return args.stream ? x + args.together * args.shape.S : x;
}

// How far ahead the same planes of the next sample lie, to be fetched while those of this one are summed. 0 where planes
// are long enough for the hardware's prefetcher to find its own way.
template <class T>
FASTNORM_INLINE int64_t next_sample(const BatchNormShape& shape, const PlaneChunk& chunk) {
  constexpr int64_t kLongRun = 4096;  // bytes
  return (chunk.s1 - chunk.s0) * static_cast<int64_t>(sizeof(T)) < kLongRun ? shape.C * shape.S : 0;
}

// Stores a channel's statistics and moves its running ones (N1, N2, N4).
FASTNORM_INLINE void finish_channel(const BatchNormFwd& args, int64_t c, const Moments& m) {
  const double n = static_cast<double>(args.shape.per_channel());
  write_stat(args.mean, args.dtype, c, m.mean);
  write_stat(args.rstd, args.dtype, c, inverse_std(m.var, n, args.eps, args.unbiased));
  const double running_mean = read(args.running_mean, c, 0), running_var = read(args.running_var, c, 0);
  write(args.running_mean, c, lerp(running_mean, m.mean, args.momentum));
  write(args.running_var, c, lerp(running_var, n > 1 ? m.var * (n / (n - 1)) : m.var, args.momentum));
}

// Stores a channel's parameter gradients and returns the input's (N5, N6).
FASTNORM_INLINE InputGrad finish_grads(const BatchNormBwd& args, int64_t c, const ChannelSums& sums) {
  const double rstd = read_stat(args.rstd, args.dtype, c), weight = read(args.weight, c, 1);
  write(args.dweight, c, sums.product * rstd);
  write(args.dbias, c, sums.sum);
  if (!args.batch_stats) return {weight * rstd, 0, 0};
  return input_grad(weight, rstd, sums, static_cast<double>(args.shape.per_channel()), args.unbiased);
}

}  // namespace fastnorm
