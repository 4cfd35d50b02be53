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

// What the derivatives with respect to the numbers are made of: sums over all elements (docs/math.md, O6).
enum AdamSum { kMoveSum, kParamSum, kAvgSum, kSquareSum, kUnbiasSum, kEpsSum, kDecaySum, kAdamSums };

// The derivative of one step (O6). Upstream gradients of the new parameter and states come in `d`, those of the old
// ones leave in it; terms are the summands of AdamSum.
template <class V, bool kAmsgrad>
struct AdamGrad {
  Adam<V, kAmsgrad> step;
  V zero, half, two, keep1;
  bool inside;

  explicit FASTNORM_INLINE AdamGrad(const AdamNumbers& n)
      : step(n), zero(V{}), half(every_lane<V>(0.5)), two(every_lane<V>(2)), keep1(every_lane<V>(1 - n.fresh1)),
        inside(n.eps_inside != 0) {}

  // d: of parameter, gradient (only leaves), exp_avg, exp_avg_sq, max_exp_avg_sq.
  template <class Root>
  FASTNORM_INLINE void backward(V p, V grad, V m, V v, V largest, V* d, V* terms, Root root) const {
    const V g = step.couples ? grad * step.grad + step.l2 * p : grad * step.grad;
    const V new_m = step.average.moved(m, g), new_v = step.beta2 * v + (step.fresh2 * g) * g;
    V second = new_v;
    if constexpr (kAmsgrad) second = new_v <= largest ? largest : new_v;
    const V r = root(second * step.unbias + step.eps_inside), denominator = r + step.eps_outside;
    const V move = new_m / denominator, d_move = -step.step_size * d[0];
    const V d_m = d[2] + d_move / denominator, d_denominator = -(d_move * move) / denominator;
    const V d_root = r == zero ? zero : d_denominator / (two * r);  // sqrt counts as flat at 0
    V d_second = d_root * step.unbias;
    if constexpr (kAmsgrad) {  // at a tie half goes each way, as with torch.maximum
      d_second = d_second + d[4];
      const V share = new_v == largest ? d_second * half : new_v < largest ? zero : d_second;
      d[4] = d_second - share;
      d_second = share;
    }
    const V d_v = d[3] + d_second, d_g = step.average.fresh * d_m + two * step.fresh2 * g * d_v;
    terms[kMoveSum] = d[0] * move;
    terms[kParamSum] = d[0] * p;
    terms[kAvgSum] = d_m * (m - g);
    terms[kSquareSum] = d_v * (v - g * g);
    terms[kUnbiasSum] = d_root * second;
    terms[kEpsSum] = inside ? d_root : d_denominator;
    terms[kDecaySum] = d_g * p;
    d[0] = step.decay * d[0] + step.l2 * d_g;
    d[1] = step.grad * d_g;
    d[2] = keep1 * d_m;
    d[3] = step.beta2 * d_v;
  }
};

}  // namespace fastnorm
