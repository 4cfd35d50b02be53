// The sizes and strides of a parameter, which its gradients and states are held against at every step.
#pragma once

#include <memory>

#include "bind/tensor.h"
#include "op/optim.h"

namespace fastnorm {

// Without a heap of its own for ordinary tensors: a step looks at thousands of them.
class OptimForm {
 public:
  explicit OptimForm(const Tensor& t);
  OptimForm(OptimForm&&) = default;

  // The same sizes; the same strides too, all of them or where there is more than one element.
  bool has_sizes_of(const Tensor& t) const { return fits(t, false); }
  bool is_of(const Tensor& t) const { return fits(t, true); }
  bool is_like(int64_t dims, const int64_t* sizes, const int64_t* strides) const;
  // Of a tensor that has these sizes: the same strides where there is more than one element.
  bool lies_like(const Tensor& t) const;

  // The dims of more than one element, slowest first; false if elements share memory.
  bool order(std::vector<size_t>& order, bool& dense) const;
  // Where the elements of a tensor that has these sizes lie, in that order.
  OptimLayout layout_of(const Tensor& t, const std::vector<size_t>& order) const;

  size_t dims() const { return dims_; }
  const int64_t* sizes() const { return more_ ? more_.get() : few_; }
  const int64_t* strides() const { return sizes() + dims_; }

 private:
  bool fits(const Tensor& t, bool strides) const;
  static constexpr size_t kFew = 5;
  size_t dims_;
  int64_t few_[2 * kFew];
  std::unique_ptr<int64_t[]> more_;
};

}  // namespace fastnorm
