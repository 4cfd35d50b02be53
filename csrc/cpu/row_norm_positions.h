// row_norm where a set is the K elements at one position of x [N, K, S]: tiles of neighbouring positions.
#pragma once

#include <limits>

#include "cpu/row_norm.h"

namespace fastnorm {
namespace FASTNORM_ISA {

constexpr int64_t kRows = 16;  // k summed in registers before they are emptied into double; a block of them stays in L1

// `count` positions of sample n; the element of row k at the tile's position i is at + k * S + i.
struct PositionTile {
  int64_t at, set, count;

  static PositionTile of(const RowNormShape& s, Dtype dtype, int64_t tile) {
    const int64_t most = positions_of_tile(s, dtype), tiles = (s.S + most - 1) / most;
    const int64_t n = tile / tiles, p = tile % tiles * most;
    return {n * s.K * s.S + p, n * s.S + p, s.S - p < most ? s.S - p : most};
  }
};


template <class A>
struct PositionNumbers {  // of a tile
  const A *mean, *rstd;
};

// Calls f(position, tag of the number of vectors, lanes) for groups of up to four vectors of positions.
template <class T, class F>
FASTNORM_INLINE void each_position_group(int64_t count, F f) {
  constexpr int L = kLanes<T>;
  int64_t i = 0;
  for (; i + 4 * L <= count; i += 4 * L) f(i, std::integral_constant<int, 4>{}, L);
  for (; i + L <= count; i += L) f(i, std::integral_constant<int, 1>{}, L);
  if (i < count) f(i, std::integral_constant<int, 1>{}, static_cast<int>(count - i));
}

// sum += v, lane by lane in double.
template <class A>
FASTNORM_INLINE void add_wide(double* sum, const A* v, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] += static_cast<double>(v[i]);
}

// z(i, count, position, k) of element i of a tile, which is row k's at that position (R4).
template <class T, class Args>
FASTNORM_INLINE auto positions_z(const Args& args, const PositionTile& tile, const PositionNumbers<acc_t<T>>& numbers) {
  using A = acc_t<T>;
  using V = vec_t<T>;
  const T* x = offset<T>(args.x, tile.at);
  const A *mean = numbers.mean, *rstd = numbers.rstd;
  const A *weight = static_cast<const A*>(args.weight), *bias = static_cast<const A*>(args.bias);
  return [=](int64_t i, int m, int64_t position, int64_t k) FASTNORM_INLINED {
    const V w = splat<V>(weight == nullptr ? A{1} : weight[k]), b = splat<V>(bias == nullptr ? A{0} : bias[k]);
    return normalized(load(x + i, m), load(mean + position, m), load(rstd + position, m), w, b);
  };
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
