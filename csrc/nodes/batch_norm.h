#pragma once

#include "nodes/norm.h"

namespace fastnorm {

// The arguments of the op batch_norm_fwd.
struct BatchNormCall {
  const Tensor& x;
  const OptionalTensor &weight, &bias, &residual, &running_mean, &running_var, &factor;
  bool training;
  double momentum, eps;
  bool unbiased, detach_stats;
  const Activation& act;
};

// The op, recorded where a gradient is wanted. The buffers' versions are moved on.
NormResults batch_norm(int64_t backend, const BatchNormCall& call);

}  // namespace fastnorm
