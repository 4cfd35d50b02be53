// Norms and GeneralRelu as Python calls them in the usual way. What is unusual is answered by None; fastnorm.functional
// then goes its longer way, which explains errors and serves the rest.
#include "nodes/calls.h"

#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include <limits>

#include "nodes/arguments.h"
#include "nodes/batch_norm.h"
#include "nodes/general_relu.h"
#include "nodes/row_norm.h"

namespace fastnorm {
namespace {

// How many trailing dims of x a normalized_shape names; 0 where it does not fit.
int64_t trailing_dims(PyObject* shape, const Tensor& x) {
  if (!PyTuple_Check(shape)) return 0;
  const Py_ssize_t dims = PyTuple_GET_SIZE(shape);
  if (dims > x.dim()) return 0;
  for (Py_ssize_t d = 0; d < dims; ++d) {
    int64_t size;
    if (!take(PyTuple_GET_ITEM(shape, d), size) || size != x.size(x.dim() - dims + d)) return 0;
  }
  return dims;
}

// Groups that divide the channels, and more than one value where a variance is taken.
bool groups_fit(const Tensor& x, int64_t groups, bool unbiased) {
  return groups > 0 && x.size(1) % groups == 0 && x.numel() != groups && !(unbiased && x.numel() == x.size(0) * groups);
}

// False where anything is unusual.
struct RowNormArguments {
  const Tensor* x = nullptr;
  OptionalTensor weight, bias, residual;
  RowNormOptions options;

  bool read(PyObject* const* args) {
    const auto [input, shape, groups, weights, biases, added, eps, rms, unbiased, act] =
        std::array{args[0], args[1], args[2], args[3], args[4], args[5], args[6], args[7], args[8], args[9]};
    x = usual_tensor(input);
    return x != nullptr && take(rms, options.rms) && take(unbiased, options.unbiased) &&
           take(act, options.act) && read_eps(eps) &&
           (shape == Py_None ? read_groups(groups) && read_parameters(x->sizes().slice(1, 1), weights, biases)
                             : read_dims(shape) && read_parameters(normalized_sizes(), weights, biases)) &&
           take_residual(added, *x, residual);
  }

 private:
  bool read_eps(PyObject* eps) {
    if (eps != Py_None) return take(eps, options.eps);
    options.eps = x->scalar_type() == at::kDouble ? std::numeric_limits<double>::epsilon()
                                                  : std::numeric_limits<float>::epsilon();
    return options.rms;
  }

  // None: each position by itself.
  bool read_groups(PyObject* groups) {
    options.dims = options.groups = 0;
    if (x->dim() < 2) return false;
    return groups == Py_None || (take(groups, options.groups) && groups_fit(*x, options.groups, options.unbiased));
  }

  bool read_dims(PyObject* shape) {
    options.groups = 0, options.dims = trailing_dims(shape, *x);
    return options.dims > 0;
  }

  at::IntArrayRef normalized_sizes() const {
    return x->sizes().slice(static_cast<size_t>(x->dim() - options.dims));
  }

  bool read_parameters(at::IntArrayRef sizes, PyObject* weights, PyObject* biases) {
    return take(weights, sizes, weight) && take(biases, sizes, bias);
  }
};

struct BatchNormArguments {
  const Tensor* x = nullptr;
  OptionalTensor weight, bias, residual, running_mean, running_var;
  bool training, unbiased, detach_stats;
  double momentum, eps;
  Activation act;

  bool read(PyObject* const* args) {
    const auto [input, mean, var, weights, biases, added, trains, step, epsilon, corrected, detached, activation] =
        std::array{args[0], args[1], args[2], args[3], args[4],  args[5],
                   args[6], args[7], args[8], args[9], args[10], args[11]};
    x = usual_tensor(input);
    if (x == nullptr || x->dim() < 2 || !take(trains, training)) return false;
    const auto channels = x->sizes().slice(1, 1);
    return take(step, momentum) && take(epsilon, eps) && take(corrected, unbiased) && take(detached, detach_stats) &&
           take(activation, act) && numbers_fit() && take(mean, channels, running_mean) &&
           take(var, channels, running_var) && running_fits() && take(weights, channels, weight) &&
           take(biases, channels, bias) && take_residual(added, *x, residual);
  }

 private:
  bool numbers_fit() const {
    return eps >= 0 && !(training && (eps == 0 || (x->numel() == x->size(1) && x->numel() > 0)));
  }

  // Both or, while training, none; no gradient flows into them.
  bool running_fits() const {
    if (!running_mean.has_value() && !running_var.has_value()) return training;
    return running_mean.has_value() && running_var.has_value() && !running_mean->requires_grad() &&
           !running_var->requires_grad();
  }
};

// call()'s tensor for Python; other threads go on meanwhile.
template <class Call>
PyObject* answer(const Call& call) {
  const Tensor y = [&] {
    const pybind11::gil_scoped_release unlocked;
    return call();
  }();
  return THPVariable_Wrap(y);
}

}  // namespace

PyObject* row_norm_call(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  RowNormArguments given;
  if (count != 10 || !usual_thread() || !given.read(args)) Py_RETURN_NONE;
  return answer([&] {
    return std::get<0>(row_norm(kNative, *given.x, given.weight, given.bias, given.residual, given.options));
  });
  END_HANDLE_TH_ERRORS
}

PyObject* batch_norm_call(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  BatchNormArguments given;
  if (count != 12 || !usual_thread() || !given.read(args)) Py_RETURN_NONE;
  return answer([&] {
    return std::get<0>(batch_norm(kNative, {*given.x, given.weight, given.bias, given.residual, given.running_mean,
                                            given.running_var, std::nullopt, given.training, given.momentum, given.eps,
                                            given.unbiased, given.detach_stats, given.act}));
  });
  END_HANDLE_TH_ERRORS
}

PyObject* general_relu_call(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  Activation act{true, {}, {}, {}, {}};
  const bool usual = count == 5 && usual_thread() && take(args[1], act.leak) && take(args[2], act.sub) &&
                     take(args[3], act.maxv) && take(args[4], act.max_leak);
  const Tensor* x = usual ? usual_tensor(args[0]) : nullptr;
  if (x == nullptr || (act.max_leak.has_value() && !act.maxv.has_value())) Py_RETURN_NONE;
  return answer([&] { return general_relu(kNative, *x, act); });
  END_HANDLE_TH_ERRORS
}

}  // namespace fastnorm
