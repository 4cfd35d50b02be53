// The tensors of an optimizer's plan, asked through torch's own classes: a few ns each, where Python takes tens.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "op/optim_steps.h"

struct _object;

namespace fastnorm {

using at::Tensor;

// A tensor that a step writes, and how it lay when it was first seen.
class OptimWritten {
 public:
  // Its sizes and then its strides are appended to `forms`.
  OptimWritten(const Tensor& t, bool versioned, std::vector<int64_t>& forms);

  // Whether it still lies there. form: where its sizes stand, moved on to the next tensor's.
  bool unmoved(const int64_t*& form) const;
  // Says to autograd that it has been written.
  void count_version() const {
    if (versioned_) impl()->bump_version();
  }
  // A step over small tensors waits for little else than memory: these ask for it ahead of time.
  void fetch() const;
  void fetch_version() const { __builtin_prefetch(counter_, 1); }
  c10::TensorImpl* impl() const { return tensor_.unsafeGetTensorImpl(); }

 private:
  Tensor tensor_;
  c10::StorageImpl* storage_;
  const void* begin_;  // of the storage
  int64_t offset_;
  c10::DispatchKeySet keys_;  // with them, whether its memory holds other signs than it reads
  const void* counter_;       // of its version, only to be fetched
  caffe2::TypeMeta dtype_;
  bool versioned_;
  uint32_t dims_;
};

// What the steps of a plan write, and the gradients that they read.
class OptimTensors {
 public:
  enum class Found { all, moved, unfit };

  // grad_type: torch.Tensor; a gradient of any subclass is unfit.
  explicit OptimTensors(const _object* grad_type);

  // A parameter with a gradient, one row of the plan: all that its step writes, the parameter first. counted: the last
  // one is the count of steps, which no graph holds.
  void add_row(const std::vector<Tensor>& written, bool counted);
  // A parameter without.
  void add_idle(const Tensor& param) { params_.push_back({param, nullptr, 0}); }

  // Looks whether all lies where it lay, and fills in the gradients' addresses. moved: no, or a parameter has got or
  // lost its gradient. unfit: a gradient is no plain dense tensor in its parameter's order.
  Found take(std::vector<OptimRow>& rows);
  void count_versions() const;
  // The gradients of the last take, for as long as other threads may drop them.
  std::vector<Tensor> hold_grads() const;
  int64_t elements() const { return elements_; }

 private:
  struct Param {
    Tensor tensor;
    const void* meta;  // of autograd, only to be fetched
    uint32_t written;  // how many tensors its step writes; 0 without a gradient
  };
  bool find_grads();
  bool fits(const c10::TensorImpl& grad, const int64_t* form, size_t dims, OptimStream& stream) const;

  const _object* grad_type_;
  c10::DispatchKeySet plain_;  // what an ordinary CPU tensor has
  std::vector<Param> params_;
  std::vector<OptimWritten> written_;
  std::vector<int64_t> forms_;
  std::vector<c10::TensorImpl*> grads_;  // of the last take
  int64_t elements_ = 0;
};

}  // namespace fastnorm
