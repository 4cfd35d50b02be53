// How row_norm sees its tensors: their order in memory, and where each weight lies in it.
#pragma once

#include "bind/tensor.h"
#include "op/row_norm.h"
#include "op/scratch.h"

namespace fastnorm {

struct RowNormGeometry {
  MemoryFormat format;  // of outputs
  MemoryFormat order;   // that the kernels walk: format, or contiguous where the sets are no runs in it
  RowNormShape shape;
  int64_t sets;                   // also where x is empty
  std::vector<int64_t> weights;   // the shape of weight and bias
  Parameter parameter;            // where their numbers lie, without data; strides are for a contiguous weight
};

// Checks dims and groups against x.
RowNormGeometry row_norm_geometry(const Tensor& x, int64_t dims, int64_t groups);

// A weight or bias in the order of memory and in the arithmetic's type: the tensor's own numbers where they are so
// already.
class ParameterNumbers {
 public:
  // An absent parameter is null, or `filled` with one number if there is one.
  ParameterNumbers(const OptionalTensor& v, const char* name, const RowNormGeometry& g, Dtype dtype,
                   OptionalNumber filled);
  const void* data() const { return data_; }

 private:
  const void* data_ = nullptr;
  Scratch<double> own_;
};

// A view of a new gradient, for store_parameter.
Parameter gradient_of(const Tensor& grad, const RowNormGeometry& g);

}  // namespace fastnorm
