// The part of CUDA that csrc/cuda uses, for the host's compiler: kernels run in tests/emulation/emulator.cpp.
#pragma once

#include <cstddef>
#include <cstdlib>

#include "emulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define EMULATION_HERE emulation::Where{__FILE__, __LINE__}
#define __syncthreads() emulation::sync_block(EMULATION_HERE)
#define __syncwarp() (void)emulation::exchange(EMULATION_HERE, 0xffffffffu, 0)
#define __shfl_sync(mask, value, lane) emulation::shuffle(EMULATION_HERE, mask, value, static_cast<unsigned>(lane))
#define __shfl_xor_sync(mask, value, bits) \
  emulation::shuffle(EMULATION_HERE, mask, value, (threadIdx.x % 32) ^ static_cast<unsigned>(bits))
#define __ballot_sync(mask, predicate) emulation::ballot(EMULATION_HERE, mask, predicate)
#define __any_sync(mask, predicate) (emulation::ballot(EMULATION_HERE, mask, predicate) != 0)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x_ = 1) : x(x_) {}
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

namespace emulation {
template <unsigned (*kNumber)()>
struct Index {
  struct {
    operator unsigned() const { return kNumber(); }
  } x;
};
inline unsigned thread_index() { return self().index; }
inline unsigned block_index() { return self().block->index; }
inline unsigned block_dim() { return current_launch().threads; }
inline unsigned grid_dim() { return current_launch().blocks; }
}  // namespace emulation
constexpr emulation::Index<emulation::thread_index> threadIdx{};
constexpr emulation::Index<emulation::block_index> blockIdx{};
constexpr emulation::Index<emulation::block_dim> blockDim{};
constexpr emulation::Index<emulation::grid_dim> gridDim{};

namespace emulation {
inline unsigned ballot(Where where, unsigned mask, bool predicate) {
  const unsigned lanes = self().block->warps[self().index / 32].barrier.expected;
  const uint64_t* slots = exchange(where, mask, predicate);
  unsigned bits = 0;
  for (unsigned i = 0; i < lanes; ++i) bits |= static_cast<unsigned>(slots[i] != 0) << i;
  return bits;
}

// The GPU that is played: FASTNORM_EMULATED_GPU="SMs,shared bytes,L2 bytes,major version".
inline int limit(int which) {
  const char* text = std::getenv("FASTNORM_EMULATED_GPU");
  if (text == nullptr) text = "3,2048,65536,9";
  for (; which > 0; --which) text = std::strchr(text, ',') + 1;
  return std::atoi(text);
}
}  // namespace emulation

template <class T>
T atomicAdd(T* at, T value) {
  const T before = *at;
  *at = static_cast<T>(before + value);
  return before;
}
inline void __threadfence() {}

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrL2CacheSize,
  cudaDevAttrComputeCapabilityMajor
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize, cudaFuncAttributeNonPortableClusterSizeAllowed };
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension, cudaLaunchAttributeCooperative };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    struct {
      unsigned x, y, z;
    } clusterDim;
    int cooperative;
  } val;
};
using cudaStream_t = void*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

inline const char* cudaGetErrorString(cudaError_t) { return "the emulated GPU cannot do that"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  *value = emulation::limit(which);
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute which, int value) {
  const bool fits = which != cudaFuncAttributeMaxDynamicSharedMemorySize || value <= emulation::limit(1);
  return fits ? cudaSuccess : cudaErrorInvalidValue;
}

template <class... Expected, class... Actual>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Expected...), const Actual&... actual) {
  const auto shared_bytes = static_cast<unsigned>(config->dynamicSmemBytes);
  emulation::LaunchShape shape{config->gridDim.x, config->blockDim.x, shared_bytes, 1, false};
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const cudaLaunchAttribute& a = config->attrs[i];
    if (a.id == cudaLaunchAttributeClusterDimension) shape.cluster = a.val.clusterDim.x;
    else shape.cooperative = a.val.cooperative != 0;
  }
  const auto sms = static_cast<unsigned>(emulation::limit(0)), shared = static_cast<unsigned>(emulation::limit(1));
  const unsigned resident = shape.cooperative ? shape.blocks : shape.cluster;
  const bool possible = shape.blocks > 0 && shape.threads > 0 && shape.threads <= 1024 && shared_bytes <= shared &&
                        shape.blocks % shape.cluster == 0 && (shape.cluster == 1 || emulation::limit(3) >= 9) &&
                        (!shape.cooperative || resident * shape.threads <= sms * 2048) &&
                        (!shape.cooperative || resident * shape.shared_bytes <= sms * shared);
  if (!possible) return cudaErrorInvalidValue;
  emulation::run(shape, [&] { kernel(static_cast<Expected>(actual)...); });
  return cudaSuccess;
}
