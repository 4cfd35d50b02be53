// In place of csrc/bind/cuda/device.cpp: CPU tensors, and no stream but the only one.
#include "bind/cuda/device.h"

namespace fastnorm {

OnDeviceOf::OnDeviceOf(const Tensor&) {}
OnDeviceOf::~OnDeviceOf() = default;

}  // namespace fastnorm
