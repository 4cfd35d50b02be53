// Autograd nodes in C++: what a call of an op records where gradients are wanted, so that a backward pass need not
// enter Python for every layer. The same saved tensors and the same rules as the Functions of fastnorm/autograd, which
// serve where this module is not built, and under a compiler's trace.
//
// These files need torch's C++ classes, which no two releases have alike: the module is built for one torch and carries
// its version in its name, unlike fastnorm._C.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>

#include <array>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace fastnorm {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;
using OptionalNumber = std::optional<double>;

// Every backend has the ops in a namespace of its own.
enum Backend : int64_t { kEager, kNative, kTriton, kBackends };
constexpr std::array<const char*, kBackends> kNamespaces = {"fastnorm_eager", "fastnorm_native", "fastnorm_triton"};

// The ops' last arguments.
struct Activation {
  bool active;
  OptionalNumber leak, sub, maxv, max_leak;
};

// One op of every backend.
template <class Signature>
class Op {
 public:
  explicit Op(const char* name) {
    for (const char* space : kNamespaces) {
      const std::string full = std::string(space) + "::" + name;
      handles_.push_back(c10::Dispatcher::singleton().findSchemaOrThrow(full.c_str(), "").typed<Signature>());
    }
  }
  template <class... Args>
  auto operator()(int64_t backend, Args&&... args) const {
    const at::AutoDispatchBelowAutograd guard;
    return handles_[static_cast<size_t>(backend)].call(std::forward<Args>(args)...);
  }

 private:
  std::vector<c10::TypedOperatorHandle<Signature>> handles_;
};

template <class... Tensors>
bool wants_grad(const Tensor& x, const Tensors&... others) {
  return at::GradMode::is_enabled() &&
         (x.requires_grad() || (... || (others.has_value() && others->requires_grad())));
}

// Options on their way from forward to backward, in order.
inline void keep(AutogradContext* ctx, std::vector<c10::IValue> options) {
  ctx->saved_data["options"] = c10::ivalue::Tuple::create(std::move(options));
}

class Kept {
 public:
  explicit Kept(AutogradContext* ctx)
      : owner_(ctx->saved_data["options"].toTuple()), options_(owner_->elements().asArrayRef()) {}
  bool flag() { return next().toBool(); }
  int64_t integer() { return next().toInt(); }
  double number() { return next().toDouble(); }
  Activation activation() {
    Activation act{flag(), {}, {}, {}, {}};
    act.leak = maybe(), act.sub = maybe(), act.maxv = maybe(), act.max_leak = maybe();
    return act;
  }

 private:
  const c10::IValue& next() { return options_[at_++]; }
  OptionalNumber maybe() { return next().toOptional<double>(); }

  c10::intrusive_ptr<c10::ivalue::Tuple> owner_;
  at::ArrayRef<c10::IValue> options_;
  size_t at_ = 0;
};

}  // namespace fastnorm
