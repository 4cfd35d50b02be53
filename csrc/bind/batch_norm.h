// What the bindings of batch_norm for CPU and CUDA tensors share.
#pragma once

#include "bind/tensor.h"
#include "op/batch_norm.h"

namespace fastnorm {

struct BatchNormGeometry {
  MemoryFormat format;
  BatchNormShape shape;
  bool rows;
};

inline BatchNormGeometry batch_norm_geometry(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() >= 2, "x must be [N, C, *], it has ", x.dim(), " dims");
  BatchNormGeometry g;
  g.format = memory_format_of(x);
  const int64_t N = x.size(0), C = x.size(1), count = x.numel();
  const int64_t S = N * C > 0 ? count / (N * C) : 0;
  if (C == 1) g.shape = {1, 1, count}, g.rows = false;
  else if (g.format != MemoryFormat::Contiguous || S == 1) g.shape = {N * S, C, 1}, g.rows = true;
  else g.shape = {N, C, S}, g.rows = false;
  return g;
}

// Of mean and rstd.
inline ScalarType stat_dtype(Dtype dtype) { return dtype == Dtype::f64 ? ScalarType::Double : ScalarType::Float; }

inline void check_saved_statistics(const Tensor& stat, const Tensor& x, Dtype dtype) {
  channel_vector(stat, "mean and rstd", x);
  STD_TORCH_CHECK(stat.scalar_type() == stat_dtype(dtype) && stat.is_contiguous(),
                  "mean and rstd must be as batch_norm_fwd returned them");
}

}  // namespace fastnorm
