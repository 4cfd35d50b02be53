// Calls past torch's dispatcher, where nothing between here and a CPU kernel would do anything.
#pragma once

#include <ATen/ATen.h>
#include <ATen/record_function.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <array>
#include <optional>
#include <tuple>

#include "op/direct.h"

namespace fastnorm {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The ops of fastnorm._C, from its capsule; none before and without it.
const DirectOps& native_ops();
void set_native_ops(const DirectOps& ops);

// Whether this thread has no dispatch mode, no functorch transform, no tracer and no profiler. Inference mode is none.
inline bool nothing_listens() {
  const auto keys = c10::impl::tls_local_dispatch_key_set().included_;
  return keys.add(c10::DispatchKey::ADInplaceOrView) == c10::default_included_set && !at::hasCallbacks();
}

// Whether a tensor is what at::empty makes on the CPU: no subclass, no conjugate, no wrapper of a transform.
inline bool is_plain(const Tensor& t) {
  constexpr auto cpu = c10::BackendComponent::CPUBit;
  static const auto recording = c10::getAutogradRelatedKeySetFromBackend(cpu);  // a tensor of inference mode lacks them
  static const auto plain =
      c10::DispatchKeySet(c10::DispatchKey::CPU) | c10::getAutocastRelatedKeySetFromBackend(cpu) | recording;
  return t.defined() && (t.key_set() | recording) == plain;
}
inline bool is_plain(const OptionalTensor& t) { return !t.has_value() || is_plain(*t); }
template <class Number>
bool is_plain(const Number&) {
  return true;
}

// As fastnorm._C takes an argument of this type.
inline TensorHandle direct_argument(const Tensor& t) {
  return reinterpret_cast<TensorHandle>(const_cast<Tensor*>(&t));  // what torch's handles point to
}
inline TensorHandle direct_argument(const OptionalTensor& t) { return t.has_value() ? direct_argument(*t) : nullptr; }
template <class Number>
Number direct_argument(const Number& number) {
  return number;
}

template <class... Args>
using DirectFunction = void(TensorHandle*, decltype(direct_argument(std::declval<Args>()))...);

// What `out` was given: handles that the caller owns.
class DirectResults {
 public:
  DirectResults() = default;
  DirectResults(const DirectResults&) = delete;
  DirectResults& operator=(const DirectResults&) = delete;
  ~DirectResults() {
    for (TensorHandle handle : handles_) delete reinterpret_cast<Tensor*>(handle);
  }
  TensorHandle* out() { return handles_.data(); }
  Tensor take(size_t place) { return std::move(*reinterpret_cast<Tensor*>(handles_[place])); }

 private:
  std::array<TensorHandle, 4> handles_{};
};

template <class Result, class Function, class... Args>
Result call_direct(Function* function, const Args&... args) {
  DirectResults results;
  function(results.out(), direct_argument(args)...);
  if constexpr (std::is_same_v<Result, Tensor>) {
    return results.take(0);
  } else {
    return [&]<size_t... kPlaces>(std::index_sequence<kPlaces...>) {
      return Result(results.take(kPlaces)...);
    }(std::make_index_sequence<std::tuple_size_v<Result>>());
  }
}

}  // namespace fastnorm
