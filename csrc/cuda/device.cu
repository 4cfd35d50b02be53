#include <mutex>

#include "cuda/launch.cuh"

namespace fastnorm {
namespace {

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, which, device), "cuda_device", "asking for the GPU's limits");
  return value;
}

CudaDevice ask(int device) {
  CudaDevice d;
  d.sms = attribute(cudaDevAttrMultiProcessorCount, device);
  d.shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  d.l2_bytes = attribute(cudaDevAttrL2CacheSize, device);
  d.clusters = attribute(cudaDevAttrComputeCapabilityMajor, device) >= 9;
  return d;
}

}  // namespace

const CudaDevice& cuda_device(int index) {
  constexpr int kMostDevices = 64;
  static std::once_flag asked[kMostDevices];
  static CudaDevice known[kMostDevices];
  if (index < 0 || index >= kMostDevices) throw std::runtime_error("cuda_device: there is no GPU of this number");
  std::call_once(asked[index], [index] { known[index] = ask(index); });
  return known[index];
}

}  // namespace fastnorm
