// Eight neighbouring elements (four of fp64) of one tensor of a row, whatever its dtype: 16 bytes at a time.
#pragma once

#include "cuda/vec.cuh"

namespace fastnorm {

// The compiler may split a load of a struct into its parts, and does for fp64; not so an instruction.
__device__ __forceinline__ uint4 wide_load(const uint4* from) {
#if defined(__CUDA_ARCH__)
  uint4 v;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from));
  return v;
#else
  return *from;
#endif
}
__device__ __forceinline__ void wide_store(uint4* to, uint4 v) {
#if defined(__CUDA_ARCH__)
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
#else
  *to = v;
#endif
}

// A dtype that is known at run time costs a branch that all threads take alike. What is loaded stays in its storage
// form until it is used: a conversion would wait for its load, and the loads of the other tensors for it.
template <class A>
struct Streamed {
  static constexpr int kLanes = 32 / static_cast<int>(sizeof(A));
  uint4 bits[2];  // all of it where elements are as wide as A, else the first

  template <class T>
  __device__ __forceinline__ void load_as(const void* base, int64_t at, int count) {
    const T* from = static_cast<const T*>(base) + at;
    T lane[kLanes] = {};
    for (int i = 0; i < kLanes; ++i) {
      if (i < count) lane[i] = from[i];
    }
    std::memcpy(bits, lane, sizeof lane);
  }
  template <class T>
  __device__ __forceinline__ void store_as(void* base, int64_t at, int count) const {
    T* to = static_cast<T*>(base) + at;
    T lane[kLanes];
    std::memcpy(lane, bits, sizeof lane);
    for (int i = 0; i < kLanes; ++i) {
      if (i < count) to[i] = lane[i];
    }
  }

  // whole: all lanes exist, and the address divides by 16.
  __device__ __forceinline__ void load(const void* base, Dtype dtype, int64_t at, int count, bool whole) {
    const bool narrow = size_of(dtype) == 2;
    if (whole) {
      const auto* from = reinterpret_cast<const uint4*>(static_cast<const char*>(base) + at * size_of(dtype));
      bits[0] = wide_load(from);
      if (!narrow) bits[1] = wide_load(from + 1);
    } else if (narrow) {
      load_as<uint16_t>(base, at, count);
    } else {
      load_as<A>(base, at, count);
    }
  }
  __device__ __forceinline__ void store(void* base, Dtype dtype, int64_t at, int count, bool whole) const {
    const bool narrow = size_of(dtype) == 2;
    if (whole) {
      auto* to = reinterpret_cast<uint4*>(static_cast<char*>(base) + at * size_of(dtype));
      wide_store(to, bits[0]);
      if (!narrow) wide_store(to + 1, bits[1]);
    } else if (narrow) {
      store_as<uint16_t>(base, at, count);
    } else {
      store_as<A>(base, at, count);
    }
  }

  __device__ __forceinline__ void widen(Dtype dtype, A* values) const {
    if (dtype == Dtype::bf16) widen_as<bfloat16>(values);
    else if (dtype == Dtype::f16) widen_as<float16>(values);
    else std::memcpy(values, bits, sizeof bits);
  }
  __device__ __forceinline__ void narrow(Dtype dtype, const A* values) {
    if (dtype == Dtype::bf16) narrow_as<bfloat16>(values);
    else if (dtype == Dtype::f16) narrow_as<float16>(values);
    else std::memcpy(bits, values, sizeof bits);
  }

 private:
  template <class T>
  __device__ __forceinline__ void widen_as(A* values) const {
    T lane[kLanes];
    std::memcpy(lane, bits, sizeof lane);
    for (int i = 0; i < kLanes; ++i) values[i] = widened(lane[i]);
  }
  template <class T>
  __device__ __forceinline__ void narrow_as(const A* values) {
    T lane[kLanes];
    for (int i = 0; i < kLanes; ++i) lane[i] = narrowed<T>(static_cast<float>(values[i]));
    std::memcpy(bits, lane, sizeof lane);
  }
};

}  // namespace fastnorm
