// The activation of row_norm, on tiles: nothing else of it depends on which activation it is.
#include "cpu/row_norm.h"

namespace fastnorm {
namespace FASTNORM_ISA {
namespace {

template <class T, class F>
FASTNORM_INLINE void with_activation_of(const ActivationSpec& spec, F f) {
  with_activation(spec, [&](auto tag) { f(typename decltype(tag)::template Of<vec_t<T>>(spec)); });
}

}  // namespace

template <class T>
void activate_tile(const ActivationSpec& spec, const acc_t<T>* z, const T* residual, T* y, int64_t n, bool stream_out) {
  with_activation_of<T>(spec, [=](const auto act) {
    if (residual == nullptr) {
      write_run(y, n, stream_out, [=](int64_t i, int m) { return act.forward(load(z + i, m)); });
    } else {
      write_run(y, n, stream_out, [=](int64_t i, int m) { return act.forward(load(z + i, m) + load(residual + i, m)); });
    }
  });
}

template <class T>
void activate_grad_tile(const ActivationSpec& spec, acc_t<T>* z, const T* residual, const T* dy, T* dresidual,
                        int64_t n) {
  constexpr int L = kLanes<T>;
  with_activation_of<T>(spec, [=](const auto act) {
    const auto step = [=](int64_t i, int m) {
      auto zi = load(z + i, m);
      if (residual != nullptr) zi = zi + load(residual + i, m);
      const auto dz = act.backward(zi, load(dy + i, m));
      store(z + i, dz, m);
      if (dresidual != nullptr) store(dresidual + i, dz, m);
    };
    int64_t i = 0;
    for (; i + L <= n; i += L) step(i, L);
    if (i < n) step(i, static_cast<int>(n - i));
  });
}

#define FASTNORM_TILES(T)                                                                                     \
  template void activate_tile(const ActivationSpec&, const acc_t<T>*, const T*, T*, int64_t, bool);           \
  template void activate_grad_tile(const ActivationSpec&, acc_t<T>*, const T*, const T*, T*, int64_t);
FASTNORM_TILES(double)
FASTNORM_TILES(float)
FASTNORM_TILES(bfloat16)
FASTNORM_TILES(float16)
#undef FASTNORM_TILES

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
