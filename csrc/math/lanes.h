// A number in every lane of V, where V is float, double or a vector of them.
#pragma once

#include "math/macros.h"

namespace fastnorm {

template <class U>
FASTNORM_INLINE auto lane_type(U v, int) -> decltype(v[0] + v[0]);
template <class U>
FASTNORM_INLINE auto lane_type(U v, long) -> U;

template <class V>
FASTNORM_INLINE V every_lane(double number) {
  return V{} + static_cast<decltype(lane_type(V{}, 0))>(number);
}

// An average that moves by `fresh` towards a new value and keeps 1 - fresh of itself. Written from whichever end is
// nearer, so that nothing cancels; exact where both are equal.
template <class V>
struct Average {
  V fresh, keep;
  bool near;

  explicit FASTNORM_INLINE Average(double weight)
      : fresh(every_lane<V>(weight)), keep(every_lane<V>(1 - weight)), near(weight < 0.5) {}
  FASTNORM_INLINE V moved(V average, V value) const {
    const V way = value - average;
    return near ? average + fresh * way : value - keep * way;
  }
};

}  // namespace fastnorm
