#include "bind/cuda/device.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

namespace fastnorm {

OnDeviceOf::OnDeviceOf(const Tensor& x) {
  stream_.device = x.get_device_index();
  DeviceGuardHandle guard = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_create_device_guard(stream_.device, &guard));
  guard_ = guard;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(stream_.device, &stream_.handle));
}

OnDeviceOf::~OnDeviceOf() {
  if (guard_ != nullptr) aoti_torch_delete_device_guard(static_cast<DeviceGuardHandle>(guard_));
}

}  // namespace fastnorm
