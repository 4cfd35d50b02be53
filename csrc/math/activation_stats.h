// The formulas of activation_stats, for scalars and SIMD vectors (docs/math.md, A1 and A2).
#pragma once

#include <cmath>
#include <cstdint>

#include "math/lanes.h"
#include "math/norm.h"

namespace fastnorm {

// A1. Of one value, as of none, there is no unbiased variance: NaN.
FASTNORM_INLINE double unbiased_std(double biased_var, double n) {
  return n > 1 ? std::sqrt(biased_var * (n / (n - 1))) : std::nan("");
}

// Equal bins over [low, high], whose ends both count. What lies outside, and NaN, goes to one bin more: number `bins`.
template <class V>
struct Bins {
  V low, high, scale, last, outside;

  FASTNORM_INLINE Bins(int64_t bins, double from, double to)
      : low(every_lane<V>(from)),
        high(every_lane<V>(to)),
        scale(every_lane<V>(static_cast<double>(bins) / (to - from))),
        last(every_lane<V>(static_cast<double>(bins - 1))),
        outside(every_lane<V>(static_cast<double>(bins))) {}

  // The bin of |x|, still to be truncated (A2): a number in [0, bins], whatever x is.
  FASTNORM_INLINE V position(V x) const {
    const V size = x < 0 ? -x : x;
    const V place = (size - low) * scale;
    const V inside = place < last ? place : last;
    return ((size >= low) & (size <= high)) != 0 ? inside : outside;
  }
};

}  // namespace fastnorm
