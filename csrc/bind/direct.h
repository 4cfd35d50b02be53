// Bound ops as plain functions on handles: what op/direct.h promises.
#pragma once

#include <tuple>

#include "bind/tensor.h"
#include "op/direct.h"

namespace fastnorm {

// All of this extension.
DirectOps& direct_ops();

// A stable tensor owns its handle: a borrowed one is doubled.
inline AtenTensorHandle doubled(AtenTensorHandle handle) {
  AtenTensorHandle other = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(handle, &other));
  return other;
}

template <class T>
struct DirectArgument {
  using Type = T;
  static T value(T given) { return given; }
};
template <>
struct DirectArgument<Tensor> {
  using Type = TensorHandle;
  static Tensor value(TensorHandle given) { return Tensor(doubled(given)); }
};
template <>
struct DirectArgument<OptionalTensor> {
  using Type = TensorHandle;
  static OptionalTensor value(TensorHandle given) {
    if (given == nullptr) return std::nullopt;
    return Tensor(doubled(given));
  }
};

inline void give(TensorHandle* out, const Tensor& result) { *out = doubled(result.get()); }

template <class... Results>
void give(TensorHandle* out, const std::tuple<Results...>& results) {
  std::apply([&](const auto&... result) { ((*out++ = doubled(result.get())), ...); }, results);
}

template <auto kFunction>
struct Direct;

template <class Result, class... Args, Result (*kFunction)(Args...)>
struct Direct<kFunction> {
  static void call(TensorHandle* out, typename DirectArgument<Args>::Type... args) {
    give(out, kFunction(DirectArgument<Args>::value(args)...));
  }
  static DirectOp named(const char* name) {
    return {name, typeid(decltype(call)).name(), reinterpret_cast<void (*)()>(&call)};
  }
};

// Beside m.impl(name, TORCH_BOX(kFunction)).
template <auto kFunction>
void add_direct(const char* name) {
  direct_ops().push_back(Direct<kFunction>::named(name));
}

}  // namespace fastnorm
