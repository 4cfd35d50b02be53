// What both orders of batch norm's backward share: where dz comes from, and what each sweep writes.
#pragma once

#include <type_traits>

#include "cpu/channel.h"
#include "cpu/vec.h"

namespace fastnorm {
namespace FASTNORM_ISA {

// The tensors of a run of elements. Pointers and scalars only: gcc keeps vectors in registers where they are locals,
// and copies them through memory where they are members.
template <class T>
struct GradRun {
  const T *x, *dy, *residual;
  T *dx, *dresidual;

  FASTNORM_INLINE GradRun(const BatchNormBwd& args, int64_t at)
      : x(offset(static_cast<const T*>(args.x), at)), dy(offset(static_cast<const T*>(args.dy), at)),
        residual(offset(static_cast<const T*>(args.residual), at)), dx(offset(static_cast<T*>(args.dx), at)),
        dresidual(offset(static_cast<T*>(args.dresidual), at)) {}

  template <class P>
  static FASTNORM_INLINE P* offset(P* p, int64_t at) { return p == nullptr ? nullptr : p + at; }
};

// How dz is found: dy through the activation, whose argument is computed again from x, or from x and a residual; or as
// the first sweep stored it, for it is dresidual.
enum class Way { plain, residual, stored };
// Whether dx = scale * dz is written with the sums, as fixed statistics allow.
enum class Sweep { sums, sums_and_dx };

// dz of n elements at i.
template <Way kWay, class T, class Act>
FASTNORM_INLINE vec_t<T> dz_at(const GradRun<T>& g, int64_t i, int n, vec_t<T> x, vec_t<T> mean, vec_t<T> scale,
                               vec_t<T> bias, const Act& act) {
  if constexpr (kWay == Way::stored) return load(g.dresidual + i, n);
  vec_t<T> z = normalized(x, mean, scale, bias);
  if constexpr (kWay == Way::residual) z = z + load(g.residual + i, n);
  return act.backward(z, load(g.dy + i, n));
}

// As dz_at; writes what the sweep of the sums can write: dresidual, which is dz, and with fixed statistics dx.
template <Way kWay, Sweep kSweep, class T, class Act>
FASTNORM_INLINE vec_t<T> dz_written(const GradRun<T>& g, int64_t i, int n, vec_t<T> x, vec_t<T> mean, vec_t<T> scale,
                                    vec_t<T> bias, const Act& act) {
  const vec_t<T> dz = dz_at<kWay>(g, i, n, x, mean, scale, bias, act);
  if constexpr (kWay == Way::residual) store(g.dresidual + i, dz, n);
  if constexpr (kSweep == Sweep::sums_and_dx) store(g.dx + i, dz * scale, n);
  return dz;
}

// Calls f with the tags of the first sweep.
template <class F>
FASTNORM_INLINE void with_sweep(const BatchNormBwd& args, F f) {
  using Plain = std::integral_constant<Way, Way::plain>;
  using Residual = std::integral_constant<Way, Way::residual>;
  using Sums = std::integral_constant<Sweep, Sweep::sums>;
  using SumsAndDx = std::integral_constant<Sweep, Sweep::sums_and_dx>;
  const bool writes_dx = args.dx != nullptr && !args.batch_stats;
  if (args.residual == nullptr) writes_dx ? f(Plain{}, SumsAndDx{}) : f(Plain{}, Sums{});
  else writes_dx ? f(Residual{}, SumsAndDx{}) : f(Residual{}, Sums{});
}

// Calls f with the way of the second sweep: what was stored in 16 bits is not dz any more.
template <class T, class F>
FASTNORM_INLINE void with_way(const BatchNormBwd& args, F f) {
  if (args.residual == nullptr) f(std::integral_constant<Way, Way::plain>{});
  else if (sizeof(T) < sizeof(acc_t<T>)) f(std::integral_constant<Way, Way::residual>{});
  else f(std::integral_constant<Way, Way::stored>{});
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
