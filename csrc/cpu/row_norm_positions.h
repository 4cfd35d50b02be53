// row_norm where a set is the K elements at one position of x [N, K, S]: tiles of neighbouring positions.
#pragma once

#include <limits>
#include <memory>

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

// out = z of one row, without the residual (R4); as T it is y.
template <class T, class O>
FASTNORM_INLINE void normalize_positions(const T* x, O* out, int64_t n, const PositionNumbers<acc_t<T>>& numbers,
                                         acc_t<T> weight, acc_t<T> bias, bool stream_out) {
  using V = vec_t<T>;
  const V w = splat<V>(weight), b = splat<V>(bias);
  const auto *mean = numbers.mean, *rstd = numbers.rstd;
  write_run(out, n, stream_out, [&](int64_t i, int m) FASTNORM_INLINED {
    return normalized(load(x + i, m), load(mean + i, m), load(rstd + i, m), w, b);
  });
}

// z of rows [k, k + rows) of a tile.
template <class T>
FASTNORM_INLINE void z_of_rows(const RowNormFwd& args, const PositionTile& tile, int64_t k, int64_t rows,
                               const PositionNumbers<acc_t<T>>& numbers, acc_t<T>* z) {
  using A = acc_t<T>;
  for (int64_t j = k; j < k + rows; ++j, z += tile.count) {
    const A weight = args.weight == nullptr ? A{1} : static_cast<const A*>(args.weight)[j];
    const A bias = args.bias == nullptr ? A{0} : static_cast<const A*>(args.bias)[j];
    normalize_positions(offset<T>(args.x, tile.at + j * args.shape.S), z, tile.count, numbers, weight, bias, false);
  }
}

// Calls f(element, elements, z) for the runs in memory that rows [k, k + rows) of a tile are.
template <class A, class F>
FASTNORM_INLINE void each_run(const RowNormShape& s, const PositionTile& tile, int64_t k, int64_t rows, A* z, F f) {
  if (tile.count == s.S) return f(tile.at + k * s.S, rows * s.S, z);
  for (int64_t j = 0; j < rows; ++j) f(tile.at + (k + j) * s.S, tile.count, z + j * tile.count);
}

// Rows from k on of a tile. z is the forward's.
template <class T>
struct PositionRows {
  using A = acc_t<T>;
  const RowNormBwd& args;
  const PositionTile& tile;
  PositionNumbers<A> numbers;
  int64_t k;

  struct Z {
    const T* x;
    PositionNumbers<A> numbers;
    vec_t<T> weight, bias;

    FASTNORM_INLINE vec_t<T> operator()(int64_t i, int m) const {
      return normalized(load(x + i, m), load(numbers.mean + i, m), load(numbers.rstd + i, m), weight, bias);
    }
  };
  FASTNORM_INLINE int64_t at(int64_t j) const { return tile.at + (k + j) * args.shape.S; }
  FASTNORM_INLINE Z row(int64_t j) const {
    using V = vec_t<T>;
    return {offset<T>(args.x, at(j)), numbers,
            splat<V>(args.weight == nullptr ? A{1} : static_cast<const A*>(args.weight)[k + j]),
            splat<V>(args.bias == nullptr ? A{0} : static_cast<const A*>(args.bias)[k + j])};
  }
};

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
