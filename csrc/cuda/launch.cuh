// Launches of kernels that take one struct of arguments; a launch that fails says which op it was.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "op/cuda.h"

namespace fastnorm {

struct Launch {
  const char* op;
  int blocks, threads;
  int shared_bytes = 0;  // dynamic shared memory of a block
  int cluster = 1;       // neighbouring blocks that form a cluster (sm_90 and later)
  bool cooperative = false;  // all blocks run at the same time and may wait for each other
};

inline void check_cuda(cudaError_t error, const char* op, const std::string& what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // else the next caller of anything would find it
  throw std::runtime_error(std::string(op) + ": " + what + " failed: " + cudaGetErrorString(error));
}

template <class Args>
void launch(const Launch& l, const CudaStream& stream, void (*kernel)(Args), const Args& args) {
  constexpr int kWithoutAsking = 48 << 10, kPortableCluster = 8;
  if (l.shared_bytes > kWithoutAsking) {
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, l.shared_bytes), l.op,
               "asking for " + std::to_string(l.shared_bytes) + " bytes of shared memory");
  }
  if (l.cluster > kPortableCluster) {
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), l.op,
               "asking for clusters of more than 8 blocks");
  }
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(l.blocks));
  config.blockDim = dim3(static_cast<unsigned>(l.threads));
  config.dynamicSmemBytes = static_cast<size_t>(l.shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream.handle);
  config.attrs = attributes;
  if (l.cluster > 1) {
    cudaLaunchAttribute& a = attributes[config.numAttrs++];
    a.id = cudaLaunchAttributeClusterDimension;
    a.val.clusterDim.x = static_cast<unsigned>(l.cluster), a.val.clusterDim.y = 1, a.val.clusterDim.z = 1;
  }
  if (l.cooperative) {
    cudaLaunchAttribute& a = attributes[config.numAttrs++];
    a.id = cudaLaunchAttributeCooperative;
    a.val.cooperative = 1;
  }
  check_cuda(cudaLaunchKernelEx(&config, kernel, args), l.op,
             "the launch of " + std::to_string(l.blocks) + " blocks of " + std::to_string(l.threads) + " threads");
}

}  // namespace fastnorm
