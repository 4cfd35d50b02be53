// What the kernels of row_norm share: statistics of a run, numbers of a set, and what follows or precedes the norm: the
// residual and the activation, whose loops are the norm's own.
#pragma once

#include <cmath>

#include "cpu/loops.h"
#include "op/row_norm.h"
#include "op/scratch.h"

namespace fastnorm {
namespace FASTNORM_ISA {

template <class T>
FASTNORM_INLINE const T* offset(const void* p, int64_t at) {
  return p == nullptr ? nullptr : static_cast<const T*>(p) + at;
}
template <class T>
FASTNORM_INLINE T* offset(void* p, int64_t at) {
  return p == nullptr ? nullptr : static_cast<T*>(p) + at;
}

// The numbers of a set as they were stored: forward and backward use the same.
template <class A>
struct SetNumbers {
  A mean, rstd;
};
template <class A, class Args>
FASTNORM_INLINE SetNumbers<A> numbers_of(const Args& args, int64_t set) {
  return {args.mean == nullptr ? A{0} : static_cast<const A*>(args.mean)[set], static_cast<const A*>(args.rstd)[set]};
}

// Stores a set's statistics (R2, R3).
template <class A>
FASTNORM_INLINE void finish_set(const RowNormFwd& args, int64_t set, const Moments& m) {
  const double n = static_cast<double>(args.shape.set_size());
  if (args.mean != nullptr) static_cast<A*>(args.mean)[set] = static_cast<A>(m.mean);
  static_cast<A*>(args.rstd)[set] = static_cast<A>(inverse_std(m.var, n, args.eps, args.unbiased));
}

// A set's numbers for dx = rstd * g + (x - mean) * slope + offset, in the arithmetic's type (R6).
template <class A>
struct SetGrad {
  A slope, offset;
};
template <class A>
FASTNORM_INLINE SetGrad<A> narrow(const RowGrad& g) {
  return {static_cast<A>(g.slope), static_cast<A>(g.offset)};
}
FASTNORM_INLINE RowGrad grad_of(const RowNormBwd& args, double rstd, const ChannelSums& sums) {
  return row_grad(rstd, sums, static_cast<double>(args.shape.set_size()), args.rms, args.unbiased);
}

// Calls f with y(i, count, z): what becomes of z of the elements from `at` on, by the residual and the activation. One
// loop serves all activations, for a forward waits for memory.
template <class T, class F>
FASTNORM_INLINE void with_y(const RowNormFwd& args, int64_t at, F f) {
  using V = vec_t<T>;
  if (!args.act.active && args.residual == nullptr) return f([](int64_t, int, V z) FASTNORM_INLINED { return z; });
  const Relu<V, AnySteps> act(args.act);
  const T* residual = offset<T>(args.residual, at);
  f([=](int64_t i, int m, V z) FASTNORM_INLINED {
    return act.forward(residual == nullptr ? z : z + load(residual + i, m));
  });
}

// dz where it lies in memory unrounded: dy if there is no activation, dresidual once the first sweep wrote it. Null
// where it has to be computed again.
template <class T>
FASTNORM_INLINE const T* stored_dz(const RowNormBwd& args) {
  if (!args.act.active) return static_cast<const T*>(args.dy);
  return sizeof(T) == sizeof(acc_t<T>) ? static_cast<const T*>(args.dresidual) : nullptr;
}

// Whether a kernel is compiled once for each set of steps of the activation: 1.2 to 1.5 times as fast where arithmetic
// is what takes the time, and six times the code. Rare ones take the steps as they come.
enum class Steps { known, any };

// Calls f with the activation, which is active.
template <class T, Steps kSteps, class F>
FASTNORM_INLINE void with_steps(const ActivationSpec& spec, F f) {
  using V = vec_t<T>;
  if constexpr (kSteps == Steps::any || std::is_same_v<T, double>) {
    f(Relu<V, AnySteps>(spec));
  } else {
    with_general_relu(spec, [&](auto tag) FASTNORM_INLINED { f(typename decltype(tag)::template Of<V>(spec)); });
  }
}

// Calls f with dz(i, count, ...) of the elements from `at` on: what the first sweep stored, or dy through the
// activation, whose argument is computed again from z(i, count, ...), the forward's z without the residual. The first
// sweep writes dresidual, which is dz, and `kept` unless that is null: where arithmetic is dearer than memory, the
// second sweep reads dz from there.
template <class T, Steps kSteps = Steps::known, class Z, class F>
FASTNORM_INLINE void with_dz(const RowNormBwd& args, int64_t at, bool first_sweep, acc_t<T>* kept, Z z, F f) {
  using V = vec_t<T>;
  if (!first_sweep && kept != nullptr) {
    return f([=](int64_t i, int m, auto...) FASTNORM_INLINED { return load(kept + i, m); });
  }
  if (!args.act.active || (!first_sweep && stored_dz<T>(args) != nullptr)) {
    const T* dz = stored_dz<T>(args) + at;
    return f([=](int64_t i, int m, auto...) FASTNORM_INLINED { return load(dz + i, m); });
  }
  const T *dy = offset<T>(args.dy, at), *residual = offset<T>(args.residual, at);
  T* dresidual = offset<T>(args.dresidual, at);
  with_steps<T, kSteps>(args.act, [&](const auto act) FASTNORM_INLINED {
    const auto keep = [=](int64_t i, int m, V dz) FASTNORM_INLINED {
      if (kept != nullptr) store(kept + i, dz, m);
      return dz;
    };
    if (residual == nullptr) {
      return f([=](int64_t i, int m, auto... column) FASTNORM_INLINED {
        return keep(i, m, act.backward(z(i, m, column...), load(dy + i, m)));
      });
    }
    const bool streams = args.stream && kept != nullptr;  // it is not read again
    f([=](int64_t i, int m, auto... column) FASTNORM_INLINED {
      const V dz = act.backward(z(i, m, column...) + load(residual + i, m), load(dy + i, m));
      if (first_sweep && dresidual != nullptr) {
        const bool whole = reinterpret_cast<uintptr_t>(dresidual + i) % (kLanes<T> * sizeof(T)) == 0 && m == kLanes<T>;
        if (streams && whole) stream(dresidual + i, dz);
        else store(dresidual + i, dz, m);
      }
      return keep(i, m, dz);
    });
  });
}

// Sets that a forward takes together: short ones hide one another's latencies. Above a few KB the bursts of reads and
// writes that they make cost more than that (four rows of 768 fp32 elements: 1.5 times the time).
constexpr int64_t kMostTogether = 8;
FASTNORM_INLINE int64_t sets_together(int64_t bytes_of_set) {
  constexpr int64_t kBytes = 4096;
  const int64_t fitting = kBytes / bytes_of_set;
  return fitting < 1 ? 1 : fitting < kMostTogether ? fitting : kMostTogether;
}

// Stores mean and rstd of `count` sets, at most kMostTogether, that are runs in memory (R2, R3).
template <class T>
void set_statistics(const RowNormFwd& args, int64_t set, int64_t count);

// Calls write(set, count) for groups of sets behind their statistics.
template <class T, class F>
FASTNORM_INLINE void each_set_group(const RowNormFwd& args, int64_t set0, int64_t set1, F write) {
  const int64_t together = sets_together(args.shape.set_size() * static_cast<int64_t>(sizeof(T)));
  for (int64_t set = set0; set < set1; set += together) {
    const int64_t count = set1 - set < together ? set1 - set : together;
    set_statistics<T>(args, set, count);
    write(set, count);
  }
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
