// One step of RMSprop, for scalars and for SIMD vectors (docs/math.md, O1 and O3).
#pragma once

#include "math/lanes.h"

namespace fastnorm {

struct RmspropHyper {
  double lr, alpha, eps, weight_decay, momentum, centered, eps_inside, decoupled, lr_in_momentum, first_grad, maximize;
};

struct RmspropNumbers {
  double grad, decay, l2, alpha, fresh, eps_inside, eps_outside, momentum, into_buffer, lr;
  bool first;
};

// step: of this parameter, counted from 1.
FASTNORM_INLINE RmspropNumbers rmsprop_numbers(const RmspropHyper& h, double multiplier, double step) {
  const bool decoupled = h.decoupled != 0, inside = h.eps_inside != 0, early_lr = h.lr_in_momentum != 0;
  RmspropNumbers n;
  n.grad = h.maximize != 0 ? -multiplier : multiplier;
  n.decay = decoupled ? 1 - h.lr * h.weight_decay : 1;
  n.l2 = decoupled ? 0 : h.weight_decay;
  n.alpha = h.alpha;
  n.fresh = 1 - h.alpha;
  n.eps_inside = inside ? h.eps : 0;
  n.eps_outside = inside ? 0 : h.eps;
  n.momentum = h.momentum;
  n.into_buffer = early_lr ? h.lr : 1;
  n.lr = early_lr && h.momentum > 0 ? 1 : h.lr;
  n.first = h.first_grad != 0 && step == 1;
  return n;
}

template <class V, bool kMomentum, bool kCentered>
struct Rmsprop {
  using Numbers = RmspropNumbers;
  static constexpr int kStates = 1 + kMomentum + kCentered;  // square_avg, momentum_buffer, grad_avg

  Average<V> average;
  V grad, decay, l2, alpha, fresh, eps_inside, eps_outside, momentum, into_buffer, lr, zero;
  bool decays, couples, first;

  explicit FASTNORM_INLINE Rmsprop(const RmspropNumbers& n)
      : average(n.fresh), grad(every_lane<V>(n.grad)), decay(every_lane<V>(n.decay)), l2(every_lane<V>(n.l2)),
        alpha(every_lane<V>(n.alpha)), fresh(every_lane<V>(n.fresh)), eps_inside(every_lane<V>(n.eps_inside)),
        eps_outside(every_lane<V>(n.eps_outside)), momentum(every_lane<V>(n.momentum)),
        into_buffer(every_lane<V>(n.into_buffer)), lr(every_lane<V>(n.lr)), zero(V{}), decays(n.decay != 1),
        couples(n.l2 != 0), first(n.first) {}

  template <class Root>
  FASTNORM_INLINE void update(V& p, V g, V* state, Root root) const {
    g = g * grad;
    if (couples) g = g + l2 * p;
    if (decays) p = p * decay;
    // Not fresh * (g * g), which is infinite long before the average is.
    const V square_avg = (first ? (alpha * g) * g : alpha * state[0]) + (fresh * g) * g;
    state[0] = square_avg;
    V variance = square_avg;
    if constexpr (kCentered) {
      V& grad_avg = state[1 + kMomentum];
      grad_avg = average.moved(grad_avg, g);
      variance = square_avg - grad_avg * grad_avg;
      variance = variance < zero ? zero : variance;  // rounding alone makes it negative
    }
    const V move = g / (root(variance + eps_inside) + eps_outside);
    if constexpr (kMomentum) {
      state[1] = momentum * state[1] + into_buffer * move;
      p = p - lr * state[1];
    } else {
      p = p - lr * move;
    }
  }
};

}  // namespace fastnorm
