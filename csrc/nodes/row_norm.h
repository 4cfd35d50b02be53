#pragma once

#include "nodes/norm.h"

namespace fastnorm {

// The arguments of the op row_norm_fwd that are no tensors.
struct RowNormOptions {
  int64_t dims, groups;
  double eps;
  bool rms, unbiased;
  Activation act;
};

// The op, recorded where a gradient is wanted.
NormResults row_norm(int64_t backend, const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                     const OptionalTensor& residual, const RowNormOptions& options);

}  // namespace fastnorm
