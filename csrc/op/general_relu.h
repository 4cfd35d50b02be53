// The seam of general_relu: arguments and kernels. x, dy and the output lie dense in the same order.
#pragma once

#include "math/general_relu.h"
#include "op/tensor.h"

namespace fastnorm {

struct GeneralReluArgs {
  const void* x;
  const void* dy;  // backward only
  void* out;       // y or dx
  Dtype dtype;
  ActivationSpec act;
  bool stream;  // write past the caches
};

// Elements [begin, end).
using GeneralReluKernel = void (*)(const GeneralReluArgs&, int64_t begin, int64_t end);

}  // namespace fastnorm
