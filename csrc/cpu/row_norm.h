// What the kernels of row_norm share: statistics of a run, numbers of a set, and the activation of a tile.
#pragma once

#include <cmath>

#include "cpu/loops.h"
#include "op/row_norm.h"

namespace fastnorm {
namespace FASTNORM_ISA {

// Activations are applied tile by tile, so that nothing else need be compiled for each of them. Forward: z lies ready
// in L1, in the arithmetic's type. Backward: dz is computed from x into such a tile.
constexpr int64_t kTile = kLongTile;  // elements of a tile, unless a single row is wider

// y = act(z + residual); residual may be null.
template <class T>
void activate_tile(const ActivationSpec& act, const acc_t<T>* z, const T* residual, T* y, int64_t n, bool stream_out);

// dz = act'(z + residual) * dy of rows of n elements, [rows, n]. Rows knows where row j lies (at(j)) and what its z is
// (row(j)(i, count)): ElementRows, PlaneRows, ColumnRows, PositionRows. The first sweep writes dresidual, which is dz.
template <class T, class Rows>
void dz_of_rows(const RowNormBwd& args, const Rows& rows, int64_t count, int64_t n, bool first_sweep, acc_t<T>* dz);

// Whether z goes through tiles: what follows the norm is more than storing.
FASTNORM_INLINE bool tiled(const RowNormFwd& args) { return args.act.active || args.residual != nullptr; }

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

// dz where it lies in memory unrounded: dy if there is no activation, dresidual once the first sweep wrote it. Null
// where it has to be computed again.
template <class T>
FASTNORM_INLINE const T* stored_dz(const RowNormBwd& args) {
  if (!args.act.active) return static_cast<const T*>(args.dy);
  return sizeof(T) == sizeof(acc_t<T>) ? static_cast<const T*>(args.dresidual) : nullptr;
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
