#pragma once

#include "nodes/norm.h"

namespace fastnorm {

// The arguments of the op row_norm_fwd.
struct RowNormCall {
  const Tensor& x;
  const OptionalTensor &weight, &bias, &residual;
  int64_t dims, groups;
  double eps;
  bool rms, unbiased;
  const Activation& act;
};

// The op, recorded where a gradient is wanted.
NormResults row_norm(int64_t backend, const RowNormCall& call);

}  // namespace fastnorm
