// The seam between fastnorm._C and the autograd nodes: CPU ops as plain functions, for calls on which no mode, no
// transform and no profiler listens in. The dispatcher boxes every argument of an op that is bound through torch's
// stable ABI, which costs a tiny tensor more than the arithmetic.
#pragma once

#include <cstdint>
#include <cstring>
#include <typeinfo>
#include <vector>

struct AtenTensorOpaque;  // torch's: what its handles of tensors point to

namespace fastnorm {

using TensorHandle = AtenTensorOpaque*;  // null for an absent tensor

// An op with the arguments of its schema, as
//   void(TensorHandle* out, ...)
// where tensors are borrowed handles and `out` takes new ones, which the caller owns. Errors are thrown.
struct DirectOp {
  const char* name;
  const char* type;  // typeid(...).name() of the function: the two extensions may be of different days
  void (*function)();
};

using DirectOps = std::vector<DirectOp>;

// The capsule in which fastnorm._C hands them out.
constexpr const char* kDirectOps = "fastnorm.direct_ops";

template <class Function>
Function* find_direct(const DirectOps& ops, const char* name) {
  for (const DirectOp& op : ops) {
    if (std::strcmp(op.name, name) == 0 && std::strcmp(op.type, typeid(Function).name()) == 0) {
      return reinterpret_cast<Function*>(op.function);
    }
  }
  return nullptr;
}

}  // namespace fastnorm
