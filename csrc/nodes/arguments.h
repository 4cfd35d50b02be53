// How Python's arguments are read where all is as it should be: plain CPU tensors, nothing listening. `take` answers
// false for whatever is not so, be it an error or only unusual. The checks are those of fastnorm/checks.py.
#pragma once

#include <Python.h>

#include "nodes/node.h"

namespace fastnorm {

// Whether a call of an op from here would be recorded where gradients are wanted, and no mode is on, Python's or other.
bool usual_thread();

// The tensor of a Python object, or null: torch's own class or Parameter, plain, floating, without a forward-mode
// gradient.
const Tensor* usual_tensor(PyObject* object);

// An argument that may be None; false where it is neither that nor a usual tensor of these sizes.
bool take(PyObject* object, at::IntArrayRef sizes, OptionalTensor& taken);
// A residual: of x's sizes and dtype, and not x itself.
bool take_residual(PyObject* object, const Tensor& x, OptionalTensor& taken);

bool take(PyObject* object, int64_t& taken);
bool take(PyObject* object, bool& taken);
bool take(PyObject* object, double& taken);  // a float or int, no NaN
bool take(PyObject* object, OptionalNumber& taken);
bool take(PyObject* object, Activation& taken);  // fastnorm.activation.Activation, a named tuple

}  // namespace fastnorm
