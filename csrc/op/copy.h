// The seam of the benchmark's floors: out = a, or out = a + b, as fast as this CPU's stores allow.
#pragma once

#include "op/tensor.h"

namespace fastnorm {

struct CopyArgs {
  const void *a, *b;  // b may be null
  void* out;
  Dtype dtype;
  bool stream;
};

using CopyKernel = void (*)(const CopyArgs&, int64_t begin, int64_t end);

}  // namespace fastnorm
