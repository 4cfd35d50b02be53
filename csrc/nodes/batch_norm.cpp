// Batch norm's node: saves x, the per-channel vectors and (with an activation) the residual.
#include "nodes/batch_norm.h"

namespace fastnorm {
namespace {

using Forward = NormResults(const Tensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                           const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, bool, double, double,
                           bool, bool, bool, OptionalNumber, OptionalNumber, OptionalNumber, OptionalNumber);
using Backward = NormGradients(const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&,
                           const OptionalTensor&, const Tensor&, const Tensor&, bool, bool, bool, bool, OptionalNumber,
                           OptionalNumber, OptionalNumber, OptionalNumber);
using Differentiable = std::vector<Tensor>(std::array<bool, 4>, const Tensor&, const Tensor&, const OptionalTensor&,
                                           const OptionalTensor&, const OptionalTensor&, const Tensor&, const Tensor&,
                                           bool, double, bool, bool, bool, OptionalNumber, OptionalNumber,
                                           OptionalNumber, OptionalNumber);

NormResults run(int64_t backend, const BatchNormCall& call) {
  static const Op<Forward> op("batch_norm_fwd");
  const Activation& act = call.act;
  return op(backend, call.x, call.weight, call.bias, call.residual, call.running_mean, call.running_var, call.factor,
            call.training, call.momentum, call.eps, call.unbiased, call.detach_stats, act.active, act.leak, act.sub,
            act.maxv, act.max_leak);
}

// The op wrote the buffer behind autograd's back: whoever saved it for a backward must be told.
void tell_written(const OptionalTensor& buffer) {
  if (buffer.has_value() && !buffer->is_inference()) torch::autograd::impl::bump_version(*buffer);
}

struct BatchNormFunction : torch::autograd::Function<BatchNormFunction> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext* ctx, const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                        const OptionalTensor& residual, int64_t backend, const BatchNormCall& call,
                        NormResults& results) {
    const Activation& act = call.act;
    results = run(backend, call);
    save_norm(ctx, x, weight, bias, residual, act, results);
    keep(ctx, {backend, residual.has_value(), call.training, call.eps, call.unbiased, call.detach_stats, act.active,
               act.leak, act.sub, act.maxv, act.max_leak});
    return std::get<0>(results);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& dys) {
    static const Op<Backward> op("batch_norm_bwd");
    static const auto differentiable =
        c10::Dispatcher::singleton().findSchemaOrThrow("fastnorm_double::batch_norm", "").typed<Differentiable>();
    variable_list grads(7);
    const Tensor& dy = dys[0];
    if (!dy.defined()) return grads;
    Kept kept(ctx);
    const int64_t backend = kept.integer();
    const bool has_residual = kept.flag(), training = kept.flag();
    const double eps = kept.number();
    const bool unbiased = kept.flag(), detach_stats = kept.flag();
    const Activation act = kept.activation();
    const SavedNorm saved(ctx, has_residual, act.active);
    if (at::GradMode::is_enabled()) {
      saved.put(differentiable.call(saved.needed(), dy, saved.x, saved.weight, saved.bias, saved.residual, saved.mean,
                                    saved.rstd, training, eps, unbiased, detach_stats, act.active, act.leak, act.sub,
                                    act.maxv, act.max_leak),
                grads);
    } else if (saved.needs_op()) {
      saved.put(op(backend, dy, saved.x, saved.weight, saved.bias, saved.residual, saved.mean, saved.rstd,
                   training && !detach_stats, unbiased, saved.wants_x, act.active, act.leak, act.sub, act.maxv,
                   act.max_leak),
                grads);
    }
    if (saved.wants_residual && !saved.through) grads[3] = dy;
    return grads;
  }
};

}  // namespace

NormResults batch_norm(int64_t backend, const BatchNormCall& call) {
  NormResults results;
  if (wants_grad(call.x, call.weight, call.bias, call.residual)) {
    Tensor y = BatchNormFunction::apply(call.x, call.weight, call.bias, call.residual, backend, call, results);
    std::get<0>(results) = std::move(y);
  } else {
    results = run(backend, call);
  }
  if (call.training) tell_written(call.running_mean), tell_written(call.running_var);
  return results;
}

}  // namespace fastnorm
