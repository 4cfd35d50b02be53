// What launchers of CUDA kernels know of the GPU and the stream; no CUDA header is needed to call them.
#pragma once

#include <cstdint>

namespace fastnorm {

// The limits that launch plans are made from. Plain data: plans are computed and tested for GPUs that are not there.
struct CudaDevice {
  int sms = 0;
  int shared_bytes = 0;  // that one block may ask for
  int64_t l2_bytes = 0;
  bool clusters = false;  // thread-block clusters and distributed shared memory: sm_90 and later
};

struct CudaStream {
  int device = 0;
  void* handle = nullptr;  // a cudaStream_t
};

const CudaDevice& cuda_device(int index);

}  // namespace fastnorm
