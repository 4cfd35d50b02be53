// The norms' formulas, for scalars and for SIMD vectors (docs/math.md, N1-N6 and R1-R6).
#pragma once

#include <cmath>

#include "math/macros.h"

namespace fastnorm {

// The two sums that a pass over one channel takes. Forward: of x - shift and its square, the shift lying near the
// mean so that nothing cancels (N1). Backward: of dz and of dz * (x - mean) (N5).
struct ChannelSums {
  double sum = 0, product = 0;
};

struct Moments {
  double mean = 0;
  double var = 0;          // biased
  bool cancelled = false;  // the shift was so far off the mean that var has lost digits: sum again around `mean`
};

// The variance is product / n minus the squared distance of the shift from the mean. Its relative rounding error grows
// with distance^2 / var; beyond this ratio a second look around the mean just found is worth its price.
constexpr double kWorstShift = 1.0;

FASTNORM_INLINE Moments moments(const ChannelSums& s, double shift, double n) {
  const double distance = s.sum / n;
  const double var = s.product / n - distance * distance;
  Moments m;
  m.mean = shift + distance;
  m.cancelled = distance * distance > kWorstShift * var;
  m.var = var < 0 ? 0 : var;
  return m;
}

// RMS norm keeps its mean at 0 and sums around it.
FASTNORM_INLINE Moments rms_moments(const ChannelSums& around_0, double n) {
  Moments m;
  m.var = around_0.product / n;
  return m;
}

FASTNORM_INLINE double inverse_std(double var, double n, double eps, bool unbiased) {  // N2
  return 1.0 / std::sqrt((unbiased ? var * (n / (n - 1)) : var) + eps);
}

// N3, in the one form that forward and backward share: the mask of an activation must come out the same in both.
template <class V>
FASTNORM_INLINE V normalized(V x, V mean, V scale, V bias) {
  return (x - mean) * scale + bias;
}

FASTNORM_INLINE double lerp(double running, double stat, double factor) {  // N4
  return running * (1 - factor) + stat * factor;
}

// The input's gradient is dx = scale * dz + slope * (x - mean) + offset (N6).
struct InputGrad {
  double scale = 0, slope = 0, offset = 0;
};

// slope and offset are the gradients through the batch's own statistics.
FASTNORM_INLINE InputGrad input_grad(double weight, double rstd, const ChannelSums& s, double n, bool unbiased) {
  InputGrad g;
  g.scale = weight * rstd;
  g.slope = -g.scale * rstd * rstd * s.product / (unbiased ? n - 1 : n);
  g.offset = -g.scale * s.sum / n;
  return g;
}

// R4 where the weight differs inside a set: x_hat, then scaled and shifted. (Elsewhere N3, scale = weight * rstd.)
template <class V>
FASTNORM_INLINE V normalized(V x, V mean, V rstd, V weight, V bias) {
  return ((x - mean) * rstd) * weight + bias;
}

// A set's part in dx = rstd * g + (x - mean) * slope + offset, with g = dz * weight (R6).
struct RowGrad {
  double slope = 0, offset = 0;
};

// The sums are of g and of g * (x - mean); rms has no mean to differentiate through.
FASTNORM_INLINE RowGrad row_grad(double rstd, const ChannelSums& s, double n, bool rms, bool unbiased) {
  const double share = 1 / n, degree = unbiased ? 1 / (n - 1) : share;  // no division is left in a loop over sets
  RowGrad g;
  g.slope = -rstd * rstd * rstd * (s.product * degree);
  g.offset = rms ? 0 : -rstd * (s.sum * share);
  return g;
}

}  // namespace fastnorm
