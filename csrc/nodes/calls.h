// Whole calls from Python, checks included: y, or None where anything about the call is unusual and nothing was done.
// Their backend is `native`.
#pragma once

#include <Python.h>

namespace fastnorm {

// input, normalized_shape or None, num_groups or None (of these two None: each position by itself), weight, bias,
// residual, eps (None: as torch's RMS norm has it), rms, unbiased, act
PyObject* row_norm_call(PyObject* module, PyObject* const* args, Py_ssize_t count);

// input, running_mean, running_var, weight, bias, residual, training, momentum, eps, unbiased, detach_stats, act
PyObject* batch_norm_call(PyObject* module, PyObject* const* args, Py_ssize_t count);

// x, leak, sub, maxv, max_leak
PyObject* general_relu_call(PyObject* module, PyObject* const* args, Py_ssize_t count);

}  // namespace fastnorm
