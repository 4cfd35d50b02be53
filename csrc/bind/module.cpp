// The Python module fastnorm._C: loading it registers the ops. It also says which instruction set was chosen, and asks
// long lists of Python objects the questions that an optimizer has at every step.
#include <Python.h>

#include "bind/direct.h"
#include "bind/optim_taken.h"
#include "bind/tensor.h"
#include "op/cpu_kernels.h"

namespace {

PyObject* cpu_isa(PyObject*, PyObject*) { return PyUnicode_FromString(fastnorm::cpu_kernels().isa); }

PyObject* set_cached_bytes(PyObject*, PyObject* bytes) {
  const long long wanted = PyLong_AsLongLong(bytes);
  if (PyErr_Occurred() != nullptr) return nullptr;
  return PyLong_FromLongLong(fastnorm::set_cached_bytes(wanted));
}

PyObject* direct_ops(PyObject*, PyObject*) {
  return PyCapsule_New(&fastnorm::direct_ops(), fastnorm::kDirectOps, nullptr);
}

bool is_list(PyObject* object, const char* name) {
  if (PyList_Check(object)) return true;
  PyErr_Format(PyExc_TypeError, "%s must be a list", name);
  return false;
}

bool is_tuple(PyObject* object, const char* name) {
  if (PyTuple_Check(object)) return true;
  PyErr_Format(PyExc_TypeError, "%s must be a tuple", name);
  return false;
}

// The gradients of those parameters that have one.
PyObject* grads_of(PyObject*, PyObject* params) {
  static PyObject* const name = PyUnicode_InternFromString("grad");
  static PyObject* const none = Py_BuildValue("");  // Py_None, for which the limited API has no other function
  if (!is_list(params, "params")) return nullptr;
  PyObject* found = PyList_New(0);
  if (found == nullptr) return nullptr;
  for (Py_ssize_t i = 0; i < PyList_Size(params); ++i) {
    PyObject* grad = PyObject_GetAttr(PyList_GetItem(params, i), name);
    const bool kept = grad != nullptr && (grad == none || PyList_Append(found, grad) == 0);
    Py_DecRef(grad);
    if (!kept) {
      Py_DecRef(found);
      return nullptr;
    }
  }
  return found;
}

// Whether two lists hold the very same objects.
PyObject* same_objects(PyObject*, PyObject* args) {
  PyObject *a, *b;
  if (!PyArg_ParseTuple(args, "OO", &a, &b) || !is_list(a, "a") || !is_list(b, "b")) return nullptr;
  bool same = PyList_Size(a) == PyList_Size(b);
  for (Py_ssize_t i = 0; same && i < PyList_Size(a); ++i) same = PyList_GetItem(a, i) == PyList_GetItem(b, i);
  return PyBool_FromLong(same);
}

// Whether the values of all dicts, one after the other, are the very objects of a list.
PyObject* same_values(PyObject*, PyObject* args) {
  PyObject *dicts, *values, *key, *value;
  if (!PyArg_ParseTuple(args, "OO", &dicts, &values)) return nullptr;
  if (!is_list(dicts, "dicts") || !is_list(values, "values")) return nullptr;
  const Py_ssize_t count = PyList_Size(values);
  Py_ssize_t seen = 0;
  bool same = true;
  for (Py_ssize_t i = 0; same && i < PyList_Size(dicts); ++i) {
    PyObject* dict = PyList_GetItem(dicts, i);
    if (!PyDict_Check(dict)) return PyBool_FromLong(0);
    for (Py_ssize_t at = 0; same && PyDict_Next(dict, &at, &key, &value); ++seen) {
      same = seen < count && PyList_GetItem(values, seen) == value;
    }
  }
  return PyBool_FromLong(same && seen == count);
}

// Whether these keys of all dicts, one dict after the other, have the very objects of a list; a missing one is None.
PyObject* same_items(PyObject*, PyObject* args) {
  static PyObject* const none = Py_BuildValue("");
  PyObject *dicts, *keys, *values;
  if (!PyArg_ParseTuple(args, "OOO", &dicts, &keys, &values)) return nullptr;
  if (!is_list(dicts, "dicts") || !is_tuple(keys, "keys") || !is_list(values, "values")) return nullptr;
  const Py_ssize_t width = PyTuple_Size(keys);
  bool same = PyList_Size(values) == PyList_Size(dicts) * width;
  for (Py_ssize_t i = 0; same && i < PyList_Size(values); ++i) {
    PyObject* value = PyDict_GetItemWithError(PyList_GetItem(dicts, i / width), PyTuple_GetItem(keys, i % width));
    if (value == nullptr && PyErr_Occurred()) return nullptr;
    same = PyList_GetItem(values, i) == (value == nullptr ? none : value);
  }
  return PyBool_FromLong(same);
}

PyMethodDef methods[] = {
    {"cpu_isa", cpu_isa, METH_NOARGS, "The instruction set whose kernels run here: default, avx2 or avx512."},
    {"set_cached_bytes", set_cached_bytes, METH_O,
     "Up to how many bytes a call's outputs stay in the caches; for tests."},
    {"direct_ops", direct_ops, METH_NOARGS, "The ops as plain functions, for the compiled autograd nodes."},
    {"grads_of", grads_of, METH_O, "The gradients of those parameters that have one."},
    {"same_objects", same_objects, METH_VARARGS, "Whether two lists hold the very same objects."},
    {"same_values", same_values, METH_VARARGS, "Whether the values of all dicts are the very objects of a list."},
    {"same_items", same_items, METH_VARARGS, "Whether these keys of all dicts have the very objects of a list."},
    {"take_grads", fastnorm::take_grads, METH_VARARGS, "Gives an optimizer's plan its gradients; False if it cannot."},
    {"take_hyper", fastnorm::take_hyper, METH_VARARGS, "Gives it its groups' numbers; False if it cannot."},
    {"optim_steps", fastnorm::optim_steps, METH_O, "A capsule of an optimizer's plan, for the compiled nodes."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
