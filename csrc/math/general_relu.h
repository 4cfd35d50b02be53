// GeneralRelu, forward and derivative, for scalars and for SIMD vectors (docs/math.md, G1-G4).
//
// V is float, double or a vector of them: comparisons and ?: work lane by lane on vectors. The comparisons are chosen
// so that ties and NaN come out as in composed PyTorch.
#pragma once

#include "math/macros.h"

namespace fastnorm {

// The numbers as they come from the op; a step is taken only if its flag is set.
struct ActivationSpec {
  bool active = false;
  bool has_leak = false, has_maxv = false, has_max_leak = false;
  double leak = 0, sub = 0, maxv = 0, max_leak = 0;  // sub = 0 is no step: y - 0 is y, also for -0 and NaN
};

struct Identity {
  template <class V>
  struct Of {
    explicit Of(const ActivationSpec&) {}
    FASTNORM_INLINE V forward(V z) const { return z; }
    FASTNORM_INLINE V backward(V, V dy) const { return dy; }
  };
};

enum class Top { open, flat, sloped };  // above maxv: nothing happens, constant, another slope

// Which steps are taken: known when the kernel is compiled, so that nothing else is left of them, ...
template <bool kLeaky, Top kTop>
struct FixedSteps {
  static constexpr bool leaky = kLeaky;
  static constexpr Top top = kTop;
  explicit FASTNORM_INLINE FixedSteps(const ActivationSpec&) {}
  static FASTNORM_INLINE double leak_of(const ActivationSpec& s) { return s.leak; }
};
// ... or read from the arguments, where memory is waited for and one kernel should do for all. No activation is the
// leak 1.
struct AnySteps {
  bool leaky;
  Top top;
  explicit FASTNORM_INLINE AnySteps(const ActivationSpec& s)
      : leaky(!s.active || s.has_leak),
        top(!s.active || !s.has_maxv ? Top::open : s.has_max_leak ? Top::sloped : Top::flat) {}
  static FASTNORM_INLINE double leak_of(const ActivationSpec& s) { return s.active ? s.leak : 1; }
};

template <class V, class Steps>
struct Relu : Steps {
  V zero, leak, sub, maxv, max_leak;

  explicit FASTNORM_INLINE Relu(const ActivationSpec& s)
      : Steps(s), zero(V{}), leak(V{} + static_cast<scalar>(Steps::leak_of(s))),
        sub(V{} + static_cast<scalar>(s.sub)), maxv(V{} + static_cast<scalar>(s.maxv)),
        max_leak(V{} + static_cast<scalar>(s.max_leak)) {}

  FASTNORM_INLINE V lifted(V z) const {
    if (this->leaky) return (z > zero ? z : z * leak) - sub;
    return (z < zero ? zero : z) - sub;
  }
  FASTNORM_INLINE V forward(V z) const {  // G1
    const V y = lifted(z);
    if (this->top == Top::flat) return y > maxv ? maxv : y;
    if (this->top == Top::sloped) return y > maxv ? maxv + max_leak * (y - maxv) : y;
    return y;
  }
  FASTNORM_INLINE V backward(V z, V dy) const {  // G2
    V g;
    if (this->leaky) g = z > zero ? dy : dy * leak;
    else g = z <= zero ? zero : dy;
    if (this->top == Top::flat) return lifted(z) <= maxv ? g : zero;
    if (this->top == Top::sloped) return lifted(z) > maxv ? g * max_leak : g;
    return g;
  }

 private:
  template <class U>
  static auto element_of(U v, int) -> decltype(v[0] + v[0]);
  template <class U>
  static auto element_of(U v, long) -> U;
  using scalar = decltype(element_of(V{}, 0));
};

template <bool kLeaky, Top kTop>
struct GeneralRelu {
  template <class V>
  using Of = Relu<V, FixedSteps<kLeaky, kTop>>;
};

template <bool kLeaky, class F>
void with_top(Top top, F& f) {
  if (top == Top::open) return f(GeneralRelu<kLeaky, Top::open>{});
  if (top == Top::flat) return f(GeneralRelu<kLeaky, Top::flat>{});
  return f(GeneralRelu<kLeaky, Top::sloped>{});
}

// Calls f with the tag of an activation that is active: one of the GeneralRelu<...>.
template <class F>
void with_general_relu(const ActivationSpec& s, F&& f) {
  const Top top = !s.has_maxv ? Top::open : s.has_max_leak ? Top::sloped : Top::flat;
  if (s.has_leak) return with_top<true>(top, f);
  return with_top<false>(top, f);
}

// Calls f with the tag of the activation: Identity or one of the GeneralRelu<...>.
template <class F>
void with_activation(const ActivationSpec& s, F&& f) {
  if (!s.active) return f(Identity{});
  with_general_relu(s, f);
}

}  // namespace fastnorm
