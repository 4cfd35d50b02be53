#include "nodes/optim_watch.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/record_function.h>
#include <Python.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <exception>
#include <memory>

#include "nodes/optim_groups.h"
#include "nodes/optim_tensors.h"

namespace fastnorm {
namespace {

constexpr const char* kCapsule = "fastnorm.optim_watch";

struct OptimWatch {
  Held capsule;  // keeps the plan
  OptimSteps& steps;
  OptimTensors tensors;
  OptimGroups groups;
  OptimStates states;
};

void let_go(PyObject* capsule) { delete static_cast<OptimWatch*>(PyCapsule_GetPointer(capsule, kCapsule)); }

OptimWatch* watch_of(PyObject* capsule) { return static_cast<OptimWatch*>(PyCapsule_GetPointer(capsule, kCapsule)); }

// The tensor behind a Python object, which says itself where that is.
Tensor tensor_of(PyObject* object) {
  const Held address(PyObject_GetAttrString(object, "_cdata"), Held::owned);
  auto* impl = address.get() == nullptr ? nullptr : static_cast<c10::TensorImpl*>(PyLong_AsVoidPtr(address.get()));
  TORCH_CHECK(impl != nullptr, "not a tensor");
  return Tensor(c10::intrusive_ptr<c10::TensorImpl>::reclaim_copy(impl));
}

void add_rows(OptimTensors& tensors, PyObject* params, PyObject* rows) {
  for (Py_ssize_t i = 0; i < PyList_Size(params); ++i) {
    PyObject* row = PyList_GetItem(rows, i);
    if (!PyTuple_Check(row)) {
      tensors.add_idle(tensor_of(PyList_GetItem(params, i)));
      continue;
    }
    std::vector<Tensor> written;
    for (const Held& t : hold_all(PyTuple_GetItem(row, 0))) written.push_back(tensor_of(t.get()));
    tensors.add_row(written, PyObject_IsTrue(PyTuple_GetItem(row, 1)) == 1);
  }
}

// Whether anything wants to see what is done with tensors: a mode, or a transform.
bool observed() {
  const auto keys = c10::impl::tls_local_dispatch_key_set().included_ - c10::default_included_set;
  return !keys.empty() || at::impl::torch_function_mode_enabled();
}

// f(), with what it throws raised in Python.
template <class F>
PyObject* guarded(const F& f) {
  try {
    return f();
  } catch (const std::exception& error) {
    if (PyErr_Occurred() == nullptr) PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

// A longer step lets other threads of Python run, and has to hold what they might drop: 10 ns a gradient, which a step
// over small ones spares.
constexpr int64_t kLongElements = 1 << 18;

// f() without the GIL, where that is worth it.
template <class F>
auto unlocked(const OptimTensors& tensors, const F& f) {
  if (tensors.elements() < kLongElements) return f();
  const auto held = tensors.hold_grads();
  struct Unlocked {
    PyThreadState* state = PyEval_SaveThread();
    ~Unlocked() { PyEval_RestoreThread(state); }
  } const guard;
  return f();
}

}  // namespace

PyObject* watch_optim(PyObject*, PyObject* args) {
  PyObject *steps, *type, *params, *rows, *groups, *all, *states, *hyper_keys, *form_keys, *words;
  if (!PyArg_ParseTuple(args, "OOO!O!O!O!O!O!O!O!", &steps, &type, &PyList_Type, &params, &PyList_Type, &rows,
                        &PyList_Type, &groups, &PyList_Type, &all, &PyList_Type, &states, &PyTuple_Type, &hyper_keys,
                        &PyTuple_Type, &form_keys, &PyDict_Type, &words)) {
    return nullptr;
  }
  auto* plan = static_cast<OptimSteps*>(PyCapsule_GetPointer(steps, kOptimStepsCapsule));
  if (plan == nullptr) return nullptr;
  return guarded([&] {
    if (!plan->unmoved()) return Py_BuildValue("");
    auto watch = std::unique_ptr<OptimWatch>(new OptimWatch{Held(steps), *plan, OptimTensors(type),
                                                            OptimGroups(groups, params, hyper_keys, form_keys, words),
                                                            OptimStates(all, states)});
    add_rows(watch->tensors, params, rows);
    return PyCapsule_New(watch.release(), kCapsule, let_go);
  });
}

PyObject* take_optim(PyObject*, PyObject* args) {
  PyObject *capsule, *groups, *states;
  if (!PyArg_ParseTuple(args, "OOO", &capsule, &groups, &states)) return nullptr;
  OptimWatch* watch = watch_of(capsule);
  if (watch == nullptr) return nullptr;
  return guarded([&] {
    if (observed()) return PyLong_FromLong(kLongWay);
    bool reformed = false;
    if (!watch->groups.are(groups, reformed) || !watch->states.are(states)) return PyLong_FromLong(kOther);
    const auto found = watch->tensors.take(watch->steps.table());
    if (found == OptimTensors::Found::moved) return PyLong_FromLong(kMoved);
    if (found == OptimTensors::Found::unfit) return PyLong_FromLong(kLongWay);
    return PyLong_FromLong(reformed ? kReformed : kTaken);
  });
}

PyObject* reads_optim(PyObject*, PyObject* capsule) {
  OptimWatch* watch = watch_of(capsule);
  return watch == nullptr ? nullptr : PyBool_FromLong(watch->groups.numbers() != nullptr);
}

PyObject* profiled(PyObject*, PyObject*) {
  return PyBool_FromLong(at::getStepCallbacksUnlessEmpty(at::RecordScope::USER_SCOPE).has_value());
}

PyObject* step_optim(PyObject*, PyObject* args) {
  PyObject *capsule, *hyper;
  double multiplier;
  long long seed;
  if (!PyArg_ParseTuple(args, "OO!dL", &capsule, &PyList_Type, &hyper, &multiplier, &seed)) return nullptr;
  OptimWatch* watch = watch_of(capsule);
  if (watch == nullptr) return nullptr;
  std::vector<double> given;
  for (Py_ssize_t i = 0; i < PyList_Size(hyper); ++i) given.push_back(PyFloat_AsDouble(PyList_GetItem(hyper, i)));
  if (PyErr_Occurred()) return nullptr;
  return guarded([&] {
    const auto* read = watch->groups.numbers();
    unlocked(watch->tensors, [&] {
      RECORD_FUNCTION("fastnorm_optim::step", {});
      watch->steps.step(given.empty() && read != nullptr ? *read : given, multiplier, seed);
      watch->tensors.count_versions();
    });
    return Py_BuildValue("");
  });
}

PyObject* norm_optim(PyObject*, PyObject* capsule) {
  OptimWatch* watch = watch_of(capsule);
  if (watch == nullptr) return nullptr;
  return guarded([&] {
    return PyFloat_FromDouble(unlocked(watch->tensors, [&] {
      RECORD_FUNCTION("fastnorm_optim::grad_norm", {});
      return watch->steps.grad_norm();
    }));
  });
}

}  // namespace fastnorm
