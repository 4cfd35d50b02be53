// row_norm where a set is K planes of S elements: z of a plane.
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

// z(i, count) of elements from s on of a plane.
template <class T, class Args>
FASTNORM_INLINE auto plane_z(const Args& args, int64_t plane, int64_t s) {
  using V = vec_t<T>;
  const PlaneNumbers<acc_t<T>> numbers = plane_numbers<acc_t<T>>(args, plane);
  const V mean = splat<V>(numbers.mean), scale = splat<V>(numbers.scale), bias = splat<V>(numbers.bias);
  const T* x = offset<T>(args.x, plane * args.shape.S + s);
  return [=](int64_t i, int m) FASTNORM_INLINED { return normalized(load(x + i, m), mean, scale, bias); };
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
