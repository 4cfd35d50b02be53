// Several neighbouring elements in one load or store, and the arithmetic's type of a storage type.
#pragma once

#include <cuda_runtime.h>

#include <cstring>

#include "op/tensor.h"

namespace fastnorm {

template <class T>
struct ArithmeticOf {
  using type = float;
};
template <>
struct ArithmeticOf<double> {
  using type = double;
};
template <class T>
using Arithmetic = typename ArithmeticOf<T>::type;

__device__ __forceinline__ double widened(double v) { return v; }
template <class T>
__device__ __forceinline__ float widened(T v) { return to_float(v); }

template <class T>
__device__ __forceinline__ T narrowed(Arithmetic<T> v);
template <>
__device__ __forceinline__ double narrowed<double>(double v) { return v; }
template <>
__device__ __forceinline__ float narrowed<float>(float v) { return v; }
template <>
__device__ __forceinline__ bfloat16 narrowed<bfloat16>(float v) { return to_bfloat16(v); }
template <>
__device__ __forceinline__ float16 narrowed<float16>(float v) { return to_float16(v); }

template <int kBytes>
struct BitsOf;
template <>
struct BitsOf<16> {
  using type = uint4;
};
template <>
struct BitsOf<8> {
  using type = uint2;
};
template <>
struct BitsOf<4> {
  using type = unsigned int;
};
template <>
struct BitsOf<2> {
  using type = unsigned short;
};

// kLanes elements whose address is a multiple of their size together.
template <class T, int kLanes>
struct Vec {
  using Bits = typename BitsOf<static_cast<int>(sizeof(T)) * kLanes>::type;
  T lane[kLanes];

  static __device__ __forceinline__ Vec of_bits(Bits bits) {
    Vec v;
    std::memcpy(&v, &bits, sizeof bits);
    return v;
  }
  __device__ __forceinline__ Bits bits() const {
    Bits b;
    std::memcpy(&b, this, sizeof b);
    return b;
  }
  static __device__ __forceinline__ Vec load(const T* from) { return of_bits(*reinterpret_cast<const Bits*>(from)); }
  __device__ __forceinline__ void store(T* to) const { *reinterpret_cast<Bits*>(to) = bits(); }

  __device__ __forceinline__ Arithmetic<T> operator[](int i) const { return widened(lane[i]); }
  __device__ __forceinline__ void set(int i, Arithmetic<T> value) { lane[i] = narrowed<T>(value); }
};

// The most elements that one instruction moves: 16 bytes.
template <class T>
constexpr int kWidest = 16 / static_cast<int>(sizeof(T));

}  // namespace fastnorm
