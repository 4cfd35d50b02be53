// The node of layer, group, instance and RMS norm: saves x, weight, bias, mean, rstd and (with an activation) the
// residual.
#include "nodes/row_norm.h"

namespace fastnorm {
namespace {

using Forward = NormResults(const Tensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, int64_t,
                           int64_t, double, bool, bool, bool, OptionalNumber, OptionalNumber, OptionalNumber,
                           OptionalNumber);
using Backward = NormGradients(const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&,
                           const OptionalTensor&, const Tensor&, const Tensor&, int64_t, int64_t, bool, bool, bool,
                           bool, OptionalNumber, OptionalNumber, OptionalNumber, OptionalNumber);
using Differentiable = std::vector<Tensor>(std::array<bool, 4>, const Tensor&, const Tensor&, const OptionalTensor&,
                                           const OptionalTensor&, const OptionalTensor&, int64_t, int64_t, double,
                                           bool, bool, bool, OptionalNumber, OptionalNumber, OptionalNumber,
                                           OptionalNumber);

NormResults run(int64_t backend, const RowNormCall& call) {
  static const Op<Forward> op("row_norm_fwd");
  const Activation& act = call.act;
  return op(backend, call.x, call.weight, call.bias, call.residual, call.dims, call.groups, call.eps, call.rms,
            call.unbiased, act.active, act.leak, act.sub, act.maxv, act.max_leak);
}

struct RowNormFunction : torch::autograd::Function<RowNormFunction> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext* ctx, const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                        const OptionalTensor& residual, int64_t backend, const RowNormCall& call,
                        NormResults& results) {
    const Activation& act = call.act;
    results = run(backend, call);
    save_norm(ctx, x, weight, bias, residual, act, results);
    keep(ctx, {backend, residual.has_value(), call.dims, call.groups, call.eps, call.rms, call.unbiased, act.active,
               act.leak, act.sub, act.maxv, act.max_leak});
    return std::get<0>(results);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& dys) {
    static const Op<Backward> op("row_norm_bwd");
    static const auto differentiable =
        c10::Dispatcher::singleton().findSchemaOrThrow("fastnorm_double::row_norm", "").typed<Differentiable>();
    variable_list grads(7);
    const Tensor& dy = dys[0];
    if (!dy.defined()) return grads;
    Kept kept(ctx);
    const int64_t backend = kept.integer();
    const bool has_residual = kept.flag();
    const int64_t dims = kept.integer(), groups = kept.integer();
    const double eps = kept.number();
    const bool rms = kept.flag(), unbiased = kept.flag();
    const Activation act = kept.activation();
    const SavedNorm saved(ctx, has_residual, act.active);
    if (at::GradMode::is_enabled()) {
      saved.put(differentiable.call(saved.needed(), dy, saved.x, saved.weight, saved.bias, saved.residual, dims, groups,
                                    eps, rms, unbiased, act.active, act.leak, act.sub, act.maxv, act.max_leak),
                grads);
    } else if (saved.needs_op()) {
      // The op sums a gradient for every parameter it is given: it gets those that something depends on.
      const OptionalTensor nothing;
      const bool uses_weight = saved.wants_weight || saved.wants_x || act.active;
      const bool uses_bias = saved.wants_bias || act.active;
      saved.put(op(backend, dy, saved.x, uses_weight ? saved.weight : nothing, uses_bias ? saved.bias : nothing,
                   saved.residual, saved.mean, saved.rstd, dims, groups, rms, unbiased, saved.wants_x, act.active,
                   act.leak, act.sub, act.maxv, act.max_leak),
                grads);
    }
    if (saved.wants_residual && !saved.through) grads[3] = dy;
    return grads;
  }
};

}  // namespace

NormResults row_norm(int64_t backend, const RowNormCall& call) {
  if (!wants_grad(call.x, call.weight, call.bias, call.residual)) return run(backend, call);
  NormResults results;
  Tensor y = RowNormFunction::apply(call.x, call.weight, call.bias, call.residual, backend, call, results);
  std::get<0>(results) = std::move(y);
  return results;
}

}  // namespace fastnorm
