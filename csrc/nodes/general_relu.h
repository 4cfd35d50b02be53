#pragma once

#include "nodes/node.h"

namespace fastnorm {

// The op general_relu_fwd, recorded where a gradient is wanted.
Tensor general_relu(int64_t backend, const Tensor& x, const Activation& act);

}  // namespace fastnorm
