#pragma once

#include "bind/tensor.h"
#include "math/general_relu.h"

namespace fastnorm {

inline ActivationSpec activation(bool active, const OptionalNumber& leak, const OptionalNumber& sub,
                                 const OptionalNumber& maxv, const OptionalNumber& max_leak) {
  ActivationSpec spec;
  spec.active = active;
  spec.has_leak = leak.has_value(), spec.leak = leak.value_or(0);
  spec.sub = sub.value_or(0);
  spec.has_maxv = maxv.has_value(), spec.maxv = maxv.value_or(0);
  spec.has_max_leak = max_leak.has_value(), spec.max_leak = max_leak.value_or(0);
  return spec;
}

}  // namespace fastnorm
