// One step of Adam or AdamW, for scalars and for SIMD vectors (docs/math.md, O1 and O4).
#pragma once

#include <cmath>

#include "math/lanes.h"

namespace fastnorm {

struct AdamHyper {
  double lr, beta1, beta2, eps, weight_decay, decoupled, eps_inside, maximize;
};

struct AdamNumbers {
  double grad, decay, l2, fresh1, beta2, fresh2, step_size, unbias, eps_inside, eps_outside;
};

// step: of this parameter, counted from 1. Both corrections are taken in double and folded into one factor each.
FASTNORM_INLINE AdamNumbers adam_numbers(const AdamHyper& h, double multiplier, double step) {
  const bool decoupled = h.decoupled != 0, inside = h.eps_inside != 0;
  AdamNumbers n;
  n.grad = h.maximize != 0 ? -multiplier : multiplier;
  n.decay = decoupled ? 1 - h.lr * h.weight_decay : 1;
  n.l2 = decoupled ? 0 : h.weight_decay;
  n.fresh1 = 1 - h.beta1;
  n.beta2 = h.beta2;
  n.fresh2 = 1 - h.beta2;
  n.step_size = h.lr / (1 - std::pow(h.beta1, step));
  n.unbias = 1 / (1 - std::pow(h.beta2, step));
  n.eps_inside = inside ? h.eps : 0;
  n.eps_outside = inside ? 0 : h.eps;
  return n;
}

template <class V, bool kAmsgrad>
struct Adam {
  using Numbers = AdamNumbers;
  static constexpr int kStates = 2 + kAmsgrad;  // exp_avg, exp_avg_sq, max_exp_avg_sq

  Average<V> average;
  V grad, decay, l2, beta2, fresh2, step_size, unbias, eps_inside, eps_outside;
  bool decays, couples;

  explicit FASTNORM_INLINE Adam(const AdamNumbers& n)
      : average(n.fresh1), grad(every_lane<V>(n.grad)), decay(every_lane<V>(n.decay)), l2(every_lane<V>(n.l2)),
        beta2(every_lane<V>(n.beta2)), fresh2(every_lane<V>(n.fresh2)),
        step_size(every_lane<V>(n.step_size)), unbias(every_lane<V>(n.unbias)),
        eps_inside(every_lane<V>(n.eps_inside)), eps_outside(every_lane<V>(n.eps_outside)), decays(n.decay != 1),
        couples(n.l2 != 0) {}

  template <class Root>
  FASTNORM_INLINE void update(V& p, V g, V* state, Root root) const {
    g = g * grad;
    if (couples) g = g + l2 * p;
    if (decays) p = p * decay;
    state[0] = average.moved(state[0], g);
    state[1] = beta2 * state[1] + (fresh2 * g) * g;
    V second = state[1];
    if constexpr (kAmsgrad) {
      // NaN in either stays, as with torch.maximum.
      second = (second <= state[2]) | (state[2] != state[2]) ? state[2] : second;
      state[2] = second;
    }
    p = p - step_size * (state[0] / (root(second * unbias + eps_inside) + eps_outside));
  }
};

}  // namespace fastnorm
