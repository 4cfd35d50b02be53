// Sums over the threads of a warp and of a block, always added in the same order.
#pragma once

#include <cuda_runtime.h>

#include <cstring>

#include "cuda/shared.cuh"

namespace fastnorm {

constexpr int kWarp = 32;

// The value of the lane whose number differs in these bits. T is made of 32-bit words.
template <class T>
__device__ __forceinline__ T from_lane_xor(T value, int bits) {
  static_assert(sizeof(T) % sizeof(unsigned) == 0, "a shuffle moves words of 32 bits");
  unsigned words[sizeof(T) / sizeof(unsigned)];
  std::memcpy(words, &value, sizeof value);
  for (unsigned& word : words) word = __shfl_xor_sync(0xffffffffu, word, bits);
  std::memcpy(&value, words, sizeof value);
  return value;
}

// Over the lanes that differ in the bits from `low` up: with low = 1, over the whole warp. In every lane.
template <class T>
__device__ __forceinline__ T warp_sum(T value, int low = 1) {
  for (int bits = low; bits < kWarp; bits *= 2) value = value + from_lane_xor(value, bits);
  return value;
}

// Over the block, in every thread. `scratch` holds one T for each warp and is free again when this returns.
template <class T>
__device__ __forceinline__ T block_sum(T value, const Shared<T>& scratch) {
  const int thread = static_cast<int>(threadIdx.x), warps = static_cast<int>(blockDim.x) / kWarp;
  value = warp_sum(value);
  if (thread % kWarp == 0) scratch.write(thread / kWarp, value);
  __syncthreads();
  T total = scratch.read(0);
  for (int w = 1; w < warps; ++w) total = total + scratch.read(w);
  __syncthreads();
  return total;
}

}  // namespace fastnorm
