// The ops of every backend, as the nodes call them.
//
// These files need torch's C++ classes, which no two releases have alike: the module is built for one torch and one
// Python and carries torch's version in its name, unlike fastnorm._C.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <array>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "nodes/direct.h"

namespace fastnorm {

using OptionalNumber = std::optional<double>;

// Every backend has the ops in a namespace of its own.
enum Backend : int64_t { kEager, kNative, kTriton, kBackends };
constexpr std::array<const char*, kBackends> kNamespaces = {"fastnorm_eager", "fastnorm_native", "fastnorm_triton"};

// The ops' last arguments.
struct Activation {
  bool active = false;
  OptionalNumber leak, sub, maxv, max_leak;
};

// One op of every backend.
template <class Signature>
class Op;

template <class Result, class... Args>
class Op<Result(Args...)> {
 public:
  explicit Op(const char* name) : direct_(find_direct<DirectFunction<Args...>>(native_ops(), name)) {
    for (const char* space : kNamespaces) {
      const std::string full = std::string(space) + "::" + name;
      handles_.push_back(c10::Dispatcher::singleton().findSchemaOrThrow(full.c_str(), "").typed<Result(Args...)>());
    }
  }

  Result operator()(int64_t backend, Args... args) const {
    const at::AutoDispatchBelowAutograd guard;
    if (backend == kNative && direct_ != nullptr && nothing_listens() && (is_plain(args) && ...)) {
      return call_direct<Result>(direct_, args...);
    }
    return handles_[static_cast<size_t>(backend)].call(std::forward<Args>(args)...);
  }

 private:
  DirectFunction<Args...>* direct_;
  std::vector<c10::TypedOperatorHandle<Result(Args...)>> handles_;
};

// An op of fastnorm_double: the gradient as a graph that can itself be differentiated.
template <class Signature>
c10::TypedOperatorHandle<Signature> double_op(const char* name) {
  const std::string full = std::string("fastnorm_double::") + name;
  return c10::Dispatcher::singleton().findSchemaOrThrow(full.c_str(), "").typed<Signature>();
}

}  // namespace fastnorm
