// The derivative of one step of Adam: one pass over its inputs and upstream gradients.
#include "math/adam.h"

#include "cpu/optim.h"

namespace fastnorm {
namespace FASTNORM_ISA {
namespace {

template <class T>
struct Streams {
  const T* in[5];
  const T* upstream[5];
  T* out[5];
};

template <class T>
FASTNORM_INLINE vec_t<T> load_or_zero(const T* p, int64_t i, int n) {
  return p == nullptr ? vec_t<T>{} : load(p + i, n);
}

template <class Grad, class T>
FASTNORM_INLINE void step_back(const Grad& grad, const Streams<T>& s, int64_t i, int n, vec_t<T>* sums) {
  using V = vec_t<T>;
  V d[5], terms[kAdamSums];
  for (int k = 0; k < 5; ++k) d[k] = load_or_zero(s.upstream[k], i, n);
  grad.backward(load(s.in[0] + i, n), load(s.in[1] + i, n), load(s.in[2] + i, n), load(s.in[3] + i, n),
                load_or_zero(s.in[4], i, n), d, terms, Root{});
  for (int k = 0; k < 5; ++k) {
    if (s.out[k] != nullptr) store(s.out[k] + i, d[k], n);
  }
  for (int k = 0; k < kAdamSums; ++k) sums[k] += keep_first<T>(terms[k], n);
}

template <class T, bool kAmsgrad>
void chunk_back(const AdamBwdArgs& args, int64_t chunk) {
  using V = vec_t<T>;
  constexpr int L = kLanes<T>;
  const AdamGrad<V, kAmsgrad> grad(*static_cast<const AdamNumbers*>(args.numbers));
  Streams<T> s;
  for (int k = 0; k < 5; ++k) {
    s.in[k] = static_cast<const T*>(args.in[k]), s.upstream[k] = static_cast<const T*>(args.upstream[k]);
    s.out[k] = static_cast<T*>(args.out[k]);
  }
  double totals[kAdamSums] = {};
  const int64_t last = (chunk + 1) * kOptimChunk < args.numel ? (chunk + 1) * kOptimChunk : args.numel;
  for (int64_t i = chunk * kOptimChunk; i < last;) {
    const int64_t stop = i + kStage < last ? i + kStage : last;  // short chains of fp32 additions
    V sums[kAdamSums] = {};
    for (; i + L <= stop; i += L) step_back(grad, s, i, L, sums);
    if (i < stop) step_back(grad, s, i, static_cast<int>(stop - i), sums);
    i = stop;
    for (int k = 0; k < kAdamSums; ++k) totals[k] += lane_sum(sums[k]);
  }
  for (int k = 0; k < kAdamSums; ++k) args.sums[chunk * kAdamSums + k] = totals[k];
}

}  // namespace

void adam_bwd(const AdamBwdArgs& args, int64_t chunk0, int64_t chunk1) {
  for (int64_t chunk = chunk0; chunk < chunk1; ++chunk) {
    if (args.wide) args.amsgrad ? chunk_back<double, true>(args, chunk) : chunk_back<double, false>(args, chunk);
    else args.amsgrad ? chunk_back<float, true>(args, chunk) : chunk_back<float, false>(args, chunk);
  }
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
