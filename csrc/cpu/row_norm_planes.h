// row_norm where a set is K planes of S elements: z of a piece of a plane.
#pragma once

#include "cpu/row_norm.h"

namespace fastnorm {
namespace FASTNORM_ISA {

// The numbers of z = (x - mean) * scale + bias in one plane: R4 with the form of N3.
template <class A>
struct PlaneNumbers {
  A mean, rstd, scale, bias;
};
template <class A, class Args>
FASTNORM_INLINE PlaneNumbers<A> plane_numbers(const Args& args, int64_t plane) {
  const SetNumbers<A> set = numbers_of<A>(args, plane / args.shape.K);
  const int64_t c = plane % args.shape.width();
  const A weight = args.weight == nullptr ? A{1} : static_cast<const A*>(args.weight)[c];
  const A bias = args.bias == nullptr ? A{0} : static_cast<const A*>(args.bias)[c];
  return {set.mean, set.rstd, weight * set.rstd, bias};
}

template <class T, class O>
FASTNORM_INLINE void normalize_plane(const T* x, O* out, int64_t n, const PlaneNumbers<acc_t<T>>& numbers,
                                     bool stream_out) {
  using V = vec_t<T>;
  const V mean = splat<V>(numbers.mean), scale = splat<V>(numbers.scale), bias = splat<V>(numbers.bias);
  write_run(out, n, stream_out,
            [&](int64_t i, int m) FASTNORM_INLINED { return normalized(load(x + i, m), mean, scale, bias); });
}

// z of elements [begin, end) of a plane, without the residual.
template <class T>
FASTNORM_INLINE void z_of_plane(const RowNormFwd& args, int64_t plane, int64_t begin, int64_t end, acc_t<T>* z) {
  normalize_plane(offset<T>(args.x, plane * args.shape.S + begin), z, end - begin,
                  plane_numbers<acc_t<T>>(args, plane), false);
}

// Elements from `begin` on of neighbouring planes. z is the forward's.
template <class T>
struct PlaneRows {
  const RowNormBwd& args;
  int64_t plane, begin;

  struct Z {
    const T* x;
    vec_t<T> mean, scale, bias;

    FASTNORM_INLINE vec_t<T> operator()(int64_t i, int m) const {
      return normalized(load(x + i, m), mean, scale, bias);
    }
  };
  FASTNORM_INLINE int64_t at(int64_t j) const { return (plane + j) * args.shape.S + begin; }
  FASTNORM_INLINE Z row(int64_t j) const {
    using V = vec_t<T>;
    const PlaneNumbers<acc_t<T>> numbers = plane_numbers<acc_t<T>>(args, plane + j);
    return {offset<T>(args.x, at(j)), splat<V>(numbers.mean), splat<V>(numbers.scale), splat<V>(numbers.bias)};
  }
};

// Calls f(plane, count, begin, end) for tiles of at most kTile elements that lie side by side: several whole planes, or
// a piece of one.
template <class F>
FASTNORM_INLINE void each_plane_tile(int64_t plane0, int64_t plane1, int64_t s0, int64_t s1, F f) {
  const int64_t n = s1 - s0, most = n < kTile && s0 == 0 ? kTile / n : 1;
  for (int64_t plane = plane0; plane < plane1; plane += most) {
    const int64_t count = plane1 - plane < most ? plane1 - plane : most;
    for (int64_t begin = s0; begin < s1; begin += kTile) {
      f(plane, count, begin, begin + kTile < s1 ? begin + kTile : s1);
    }
  }
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
