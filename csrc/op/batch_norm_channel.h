// Per-channel numbers, on the CPU and on a GPU: a channel's statistics and gradients finished, and the coefficients of
// its elements.
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
FASTNORM_INLINE Affine<A> affine_with(const Args& args, int64_t c, A mean, A rstd) {
  return {mean, static_cast<A>(read(args.weight, c, 1)) * rstd, static_cast<A>(read(args.bias, c, 0))};
}
template <class A, class Args>
FASTNORM_INLINE Affine<A> affine_of(const Args& args, int64_t c) {
  return affine_with<A>(args, c, static_cast<const A*>(args.mean)[c], static_cast<const A*>(args.rstd)[c]);
}

// Moves a channel's running statistics (N4).
FASTNORM_INLINE void move_running(const BatchNormFwd& args, int64_t c, const Moments& m, double factor) {
  const double n = static_cast<double>(args.shape.per_channel());
  const double running_mean = read(args.running_mean, c, 0), running_var = read(args.running_var, c, 0);
  write(args.running_mean, c, lerp(running_mean, m.mean, factor));
  write(args.running_var, c, lerp(running_var, n > 1 ? m.var * (n / (n - 1)) : m.var, factor));
}

FASTNORM_INLINE double inverse_std_of(const BatchNormFwd& args, const Moments& m) {
  return inverse_std(m.var, static_cast<double>(args.shape.per_channel()), args.eps, args.unbiased);
}

// Stores a channel's statistics and moves its running ones (N1, N2, N4).
FASTNORM_INLINE void finish_channel(const BatchNormFwd& args, int64_t c, const Moments& m) {
  write_stat(args.mean, args.dtype, c, m.mean);
  write_stat(args.rstd, args.dtype, c, inverse_std_of(args, m));
  move_running(args, c, m, args.momentum);
}

// The coefficients of the input's gradient (N6).
FASTNORM_INLINE InputGrad input_grad_of(const BatchNormBwd& args, int64_t c, const ChannelSums& sums) {
  const double rstd = read_stat(args.rstd, args.dtype, c), weight = read(args.weight, c, 1);
  if (!args.batch_stats) return {weight * rstd, 0, 0};
  return input_grad(weight, rstd, sums, static_cast<double>(args.shape.per_channel()), args.unbiased);
}

// Stores a channel's parameter gradients (N5).
FASTNORM_INLINE void store_parameter_grads(const BatchNormBwd& args, int64_t c, const ChannelSums& sums) {
  write(args.dweight, c, sums.product * read_stat(args.rstd, args.dtype, c));
  write(args.dbias, c, sums.sum);
}

}  // namespace fastnorm
