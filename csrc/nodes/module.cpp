// The Python module fastnorm._C_nodes_<torch's version>: loading it gives every backend's forward ops their nodes.
// It also takes usual calls from Python.
#include <Python.h>
#include <torch/library.h>

#include "nodes/batch_norm.h"
#include "nodes/calls.h"
#include "nodes/general_relu.h"
#include "nodes/optim_watch.h"
#include "nodes/row_norm.h"

namespace fastnorm {
namespace {

template <Backend kBackend>
Tensor general_relu_fwd(const Tensor& x, OptionalNumber leak, OptionalNumber sub, OptionalNumber maxv,
                        OptionalNumber max_leak) {
  return general_relu(kBackend, x, {true, leak, sub, maxv, max_leak});
}

template <Backend kBackend>
NormResults batch_norm_fwd(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                          const OptionalTensor& residual, const OptionalTensor& running_mean,
                          const OptionalTensor& running_var, const OptionalTensor& factor, bool training,
                          double momentum, double eps, bool unbiased, bool detach_stats, bool act, OptionalNumber leak,
                          OptionalNumber sub, OptionalNumber maxv, OptionalNumber max_leak) {
  return batch_norm(kBackend, {x, weight, bias, residual, running_mean, running_var, factor, training, momentum, eps,
                               unbiased, detach_stats, {act, leak, sub, maxv, max_leak}});
}

template <Backend kBackend>
NormResults row_norm_fwd(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                        const OptionalTensor& residual, int64_t dims, int64_t groups, double eps, bool rms,
                        bool unbiased, bool act, OptionalNumber leak, OptionalNumber sub, OptionalNumber maxv,
                        OptionalNumber max_leak) {
  return row_norm(kBackend, x, weight, bias, residual,
                  {dims, groups, eps, rms, unbiased, {act, leak, sub, maxv, max_leak}});
}

template <Backend kBackend>
void add_nodes(torch::Library& library) {
  library.impl("general_relu_fwd", TORCH_FN((general_relu_fwd<kBackend>)));
  library.impl("batch_norm_fwd", TORCH_FN((batch_norm_fwd<kBackend>)));
  library.impl("row_norm_fwd", TORCH_FN((row_norm_fwd<kBackend>)));
}

TORCH_LIBRARY_IMPL(fastnorm_eager, Autograd, library) { add_nodes<kEager>(library); }
TORCH_LIBRARY_IMPL(fastnorm_native, Autograd, library) { add_nodes<kNative>(library); }
TORCH_LIBRARY_IMPL(fastnorm_triton, Autograd, library) { add_nodes<kTriton>(library); }

// Takes what fastnorm._C.direct_ops() returned; the capsule's owner stays loaded.
PyObject* connect(PyObject*, PyObject* capsule) {
  const auto* ops = static_cast<const DirectOps*>(PyCapsule_GetPointer(capsule, kDirectOps));
  if (ops == nullptr) return nullptr;
  set_native_ops(*ops);
  Py_RETURN_NONE;
}

using Call = PyObject*(PyObject*, PyObject* const*, Py_ssize_t);

// As a table of methods holds every function, whatever its arguments.
PyCFunction method(Call* call) { return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call)); }

PyMethodDef methods[] = {
    {"connect", connect, METH_O, "Lets the nodes call the ops of fastnorm._C directly."},
    {"row_norm", method(row_norm_call), METH_FASTCALL, "A usual call of layer, group, instance or RMS norm, or None."},
    {"batch_norm", method(batch_norm_call), METH_FASTCALL, "A usual call of batch norm, or None."},
    {"general_relu", method(general_relu_call), METH_FASTCALL, "A usual call of GeneralRelu, or None."},
    {"watch_optim", watch_optim, METH_VARARGS, "Watches the tensors, groups and states of an optimizer's plan."},
    {"take_optim", take_optim, METH_VARARGS, "Whether they are what they were; takes the gradients."},
    {"reads_optim", reads_optim, METH_O, "Whether all hyper-parameters have been read."},
    {"step_optim", step_optim, METH_VARARGS, "The step with what was taken."},
    {"norm_optim", norm_optim, METH_O, "The norm of the gradients that were taken."},
    {"profiled", profiled, METH_NOARGS, "Whether a profiler wants to see what is called."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "fastnorm._C_nodes", nullptr, -1, methods, nullptr, nullptr, nullptr,
                      nullptr};

}  // namespace
}  // namespace fastnorm

PyMODINIT_FUNC FASTNORM_NODES_INIT() { return PyModule_Create(&fastnorm::module); }
