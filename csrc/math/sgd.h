// One step of SGD, for scalars and for SIMD vectors (docs/math.md, O1 and O2).
#pragma once

#include "math/lanes.h"

namespace fastnorm {

// What the optimizer was asked for.
struct SgdHyper {
  double lr, momentum, dampening, weight_decay, decoupled, nesterov, lerp, maximize;
};

// What the loop needs of it, computed once in double.
struct SgdNumbers {
  double grad, decay, l2, momentum, fresh, lookahead, lr;
  bool first;
};

// multiplier: of the gradient, from unscaling and clipping. first: the buffer does not exist yet.
FASTNORM_INLINE SgdNumbers sgd_numbers(const SgdHyper& h, double multiplier, bool first) {
  const bool decoupled = h.decoupled != 0;
  SgdNumbers n;
  n.grad = h.maximize != 0 ? -multiplier : multiplier;
  n.decay = decoupled ? 1 - h.lr * h.weight_decay : 1;
  n.l2 = decoupled ? 0 : h.weight_decay;
  n.momentum = h.momentum;
  n.fresh = h.lerp != 0 ? 1 - h.momentum : 1 - h.dampening;
  n.lookahead = h.nesterov != 0 ? h.momentum : 0;
  n.lr = h.lr;
  n.first = first && h.lerp == 0;  // a lerped buffer starts at zero, any other at the first gradient
  return n;
}

template <class V, bool kMomentum>
struct Sgd {
  using Numbers = SgdNumbers;
  static constexpr int kStates = kMomentum ? 1 : 0;  // momentum_buffer

  V grad, decay, l2, momentum, fresh, lookahead, lr;
  bool decays, couples, first, nesterov;

  explicit FASTNORM_INLINE Sgd(const SgdNumbers& n)
      : grad(every_lane<V>(n.grad)), decay(every_lane<V>(n.decay)), l2(every_lane<V>(n.l2)),
        momentum(every_lane<V>(n.momentum)), fresh(every_lane<V>(n.fresh)), lookahead(every_lane<V>(n.lookahead)),
        lr(every_lane<V>(n.lr)), decays(n.decay != 1), couples(n.l2 != 0), first(n.first), nesterov(n.lookahead != 0) {}

  template <class Root>
  FASTNORM_INLINE void update(V& p, V g, V* state, Root) const {
    g = g * grad;
    if (couples) g = g + l2 * p;
    if (decays) p = p * decay;
    if constexpr (kMomentum) {
      const V buf = first ? g : momentum * state[0] + fresh * g;
      state[0] = buf;
      g = nesterov ? g + lookahead * buf : buf;
    }
    p = p - lr * g;
  }
};

}  // namespace fastnorm
