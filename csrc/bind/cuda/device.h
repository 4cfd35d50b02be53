// Where the kernels of an op on CUDA tensors are launched.
#pragma once

#include "bind/tensor.h"
#include "op/cuda.h"

// The library and the dispatch key that the ops are registered for; the emulation has its own.
#ifndef FASTNORM_CUDA_LIBRARY
#define FASTNORM_CUDA_LIBRARY fastnorm_native
#define FASTNORM_CUDA_KEY CUDA
#endif

namespace fastnorm {

// Makes x's device the current one as long as it lives, and knows torch's current stream there.
class OnDeviceOf {
 public:
  explicit OnDeviceOf(const Tensor& x);
  ~OnDeviceOf();
  OnDeviceOf(const OnDeviceOf&) = delete;
  OnDeviceOf& operator=(const OnDeviceOf&) = delete;

  const CudaStream& stream() const { return stream_; }
  const CudaDevice& limits() const { return cuda_device(stream_.device); }

 private:
  void* guard_ = nullptr;
  CudaStream stream_;
};

}  // namespace fastnorm
