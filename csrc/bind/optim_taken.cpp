#include "bind/optim_taken.h"

#include <Python.h>

#include "bind/exchange.h"
#include "bind/optim_plan.h"

namespace fastnorm {
namespace {

bool known(const ExchangedTensor& t, Dtype& dtype) {
  if (t.device_type != kExchangedCpu || t.lanes != 1) return false;
  if (t.type_code == kExchangedBfloat) return dtype = Dtype::bf16, t.bits == 16;
  if (t.type_code != kExchangedFloat) return false;
  dtype = t.bits == 64 ? Dtype::f64 : t.bits == 32 ? Dtype::f32 : Dtype::f16;
  return t.bits >= 16;
}

// Where a tensor's negation is still to be done (the imaginary part of a conjugate) its memory holds the wrong sign.
// Such a view has a stride of at least 2: among tensors that lie dense only one of a single element can be one.
bool may_be_negated(PyObject* grad, const ExchangedTensor& t) {
  for (int32_t d = 0; d < t.dims; ++d) {
    if (t.sizes[d] != 1) return false;
  }
  PyObject* answer = PyObject_CallMethod(grad, "is_neg", nullptr);
  const bool plain = answer != nullptr && PyObject_IsTrue(answer) == 0;
  PyErr_Clear();
  Py_DecRef(answer);
  return !plain;
}

bool take_all(OptimPlan& plan, PyObject* grads) {
  const auto rows = static_cast<Py_ssize_t>(plan.rows());
  if (PyList_Size(grads) != rows || !plan.unmoved()) return false;
  ExchangedTensor t;
  Dtype dtype;
  for (Py_ssize_t r = 0; r < rows; ++r) {
    PyObject* grad = PyList_GetItem(grads, r);
    if (!exchange(grad, t) || !known(t, dtype) || may_be_negated(grad, t)) return false;
    if (t.data == nullptr && plan.table()[static_cast<size_t>(r)].numel != 0) return false;
    char* data = static_cast<char*>(t.data) + t.byte_offset;
    if (!plan.take_dense(static_cast<size_t>(r), data, dtype, t.dims, t.sizes, t.strides)) return false;
  }
  plan.grads_taken();
  return true;
}

// Appends one number, all of a tuple, or what a word means; false for any other object.
bool append_numbers(std::vector<double>& found, PyObject* value, PyObject* words) {
  if (PyTuple_Check(value)) {
    for (Py_ssize_t i = 0; i < PyTuple_Size(value); ++i) {
      if (!append_numbers(found, PyTuple_GetItem(value, i), words)) return false;
    }
    return true;
  }
  if (PyUnicode_Check(value)) value = PyDict_GetItemWithError(words, value);
  if (value == nullptr || !(PyFloat_Check(value) || PyLong_Check(value))) return false;
  found.push_back(PyFloat_AsDouble(value));
  return true;
}

bool take_numbers(OptimPlan& plan, PyObject* groups, PyObject* keys, PyObject* words) {
  std::vector<double>& found = plan.room_for_hyper();
  for (Py_ssize_t i = 0; i < PyList_Size(groups); ++i) {
    for (Py_ssize_t k = 0; k < PyTuple_Size(keys); ++k) {
      PyObject* value = PyDict_GetItemWithError(PyList_GetItem(groups, i), PyTuple_GetItem(keys, k));
      if (value == nullptr || !append_numbers(found, value, words)) return false;
    }
  }
  return !PyErr_Occurred();
}

void let_go(PyObject* capsule) { delete static_cast<std::shared_ptr<OptimPlan>*>(PyCapsule_GetContext(capsule)); }

}  // namespace

PyObject* optim_steps(PyObject*, PyObject* handle) {
  const long long number = PyLong_AsLongLong(handle);
  if (PyErr_Occurred() != nullptr) return nullptr;
  auto plan = find_plan(number);
  if (plan == nullptr) return PyErr_Format(PyExc_ValueError, "there is no plan %lld", number);
  PyObject* capsule = PyCapsule_New(static_cast<OptimSteps*>(plan.get()), kOptimStepsCapsule, let_go);
  if (capsule == nullptr) return nullptr;
  PyCapsule_SetContext(capsule, new std::shared_ptr<OptimPlan>(std::move(plan)));
  return capsule;
}

PyObject* take_grads(PyObject*, PyObject* args) {
  long long handle = 0;
  PyObject* grads = nullptr;
  if (!PyArg_ParseTuple(args, "LO", &handle, &grads)) return nullptr;
  if (!PyList_Check(grads)) {
    PyErr_SetString(PyExc_TypeError, "grads must be a list");
    return nullptr;
  }
  const auto plan = find_plan(handle);
  return PyBool_FromLong(plan != nullptr && take_all(*plan, grads));
}

PyObject* take_hyper(PyObject*, PyObject* args) {
  long long handle = 0;
  PyObject *groups, *keys, *words;
  if (!PyArg_ParseTuple(args, "LOOO", &handle, &groups, &keys, &words)) return nullptr;
  if (!PyList_Check(groups) || !PyTuple_Check(keys) || !PyDict_Check(words)) {
    PyErr_SetString(PyExc_TypeError, "groups must be a list, keys a tuple and words a dict");
    return nullptr;
  }
  const auto plan = find_plan(handle);
  const bool taken = plan != nullptr && take_numbers(*plan, groups, keys, words);
  if (!taken && plan != nullptr) plan->room_for_hyper();
  PyErr_Clear();
  return PyBool_FromLong(taken);
}

}  // namespace fastnorm
