#include "nodes/arguments.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <torch/csrc/autograd/python_variable.h>

namespace fastnorm {
namespace {

bool is_floating(const Tensor& t) {
  const at::ScalarType type = t.scalar_type();
  return type == at::kFloat || type == at::kBFloat16 || type == at::kHalf || type == at::kDouble;
}

}  // namespace

bool usual_thread() {
  const auto skipped = c10::impl::tls_local_dispatch_key_set().excluded_;
  const bool records = c10::InferenceMode::is_enabled() || !skipped.has_any(c10::autograd_dispatch_keyset);
  return records && nothing_listens() && !at::impl::torch_function_mode_enabled();
}

const Tensor* usual_tensor(PyObject* object) {
  if (!THPVariable_CheckExact(object)) return nullptr;
  const Tensor& t = THPVariable_Unpack(object);
  return is_plain(t) && is_floating(t) && !torch::autograd::isFwGradDefined(t) ? &t : nullptr;
}

bool take(PyObject* object, at::IntArrayRef sizes, OptionalTensor& taken) {
  if (object == Py_None) return true;
  const Tensor* t = usual_tensor(object);
  if (t == nullptr || t->sizes() != sizes) return false;
  taken = *t;
  return true;
}

bool take(PyObject* object, int64_t& taken) {
  if (!PyLong_CheckExact(object)) return false;
  int overflow = 0;
  taken = PyLong_AsLongLongAndOverflow(object, &overflow);
  return overflow == 0;
}

bool take(PyObject* object, bool& taken) {
  taken = object == Py_True;
  return PyBool_Check(object);
}

bool take(PyObject* object, double& taken) {
  int64_t integer;
  if (PyFloat_CheckExact(object)) taken = PyFloat_AS_DOUBLE(object);
  else if (take(object, integer)) taken = static_cast<double>(integer);
  else return false;
  return taken == taken;
}

bool take(PyObject* object, OptionalNumber& taken) {
  if (object == Py_None) return true;
  double number;
  if (!take(object, number)) return false;
  taken = number;
  return true;
}

bool take(PyObject* object, Activation& act) {
  if (!PyTuple_Check(object) || PyTuple_GET_SIZE(object) != 5) return false;
  const auto item = [&](Py_ssize_t place) { return PyTuple_GET_ITEM(object, place); };
  return take(item(0), act.active) && take(item(1), act.leak) && take(item(2), act.sub) && take(item(3), act.maxv) &&
         take(item(4), act.max_leak);
}

bool take_residual(PyObject* object, const Tensor& x, OptionalTensor& taken) {
  if (!take(object, x.sizes(), taken)) return false;
  return !taken.has_value() || (taken->scalar_type() == x.scalar_type() && !taken->is_same(x));
}

}  // namespace fastnorm
