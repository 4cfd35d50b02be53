// GeneralRelu's node: saves x.
#include "nodes/general_relu.h"

namespace fastnorm {
namespace {

using Forward = Tensor(const Tensor&, OptionalNumber, OptionalNumber, OptionalNumber, OptionalNumber);
using Backward = Tensor(const Tensor&, const Tensor&, OptionalNumber, OptionalNumber, OptionalNumber, OptionalNumber);

const Op<Forward>& forward_op() {
  static const Op<Forward> op("general_relu_fwd");
  return op;
}

struct GeneralReluFunction : torch::autograd::Function<GeneralReluFunction> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext* ctx, const Tensor& x, int64_t backend, const Activation& act) {
    ctx->save_for_backward({x});
    ctx->set_materialize_grads(false);
    keep(ctx, {backend, act.active, act.leak, act.sub, act.maxv, act.max_leak});
    return forward_op()(backend, x, act.leak, act.sub, act.maxv, act.max_leak);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& dys) {
    static const Op<Backward> op("general_relu_bwd");
    static const auto differentiable =
        c10::Dispatcher::singleton().findSchemaOrThrow("fastnorm_double::general_relu", "").typed<Backward>();
    variable_list grads(3);
    const Tensor& dy = dys[0];
    if (!dy.defined()) return grads;
    const Tensor x = ctx->get_saved_variables()[0];
    Kept kept(ctx);
    const int64_t backend = kept.integer();
    const Activation act = kept.activation();
    grads[0] = at::GradMode::is_enabled()
                   ? differentiable.call(dy, x, act.leak, act.sub, act.maxv, act.max_leak)
                   : op(backend, dy, x, act.leak, act.sub, act.maxv, act.max_leak);
    return grads;
  }
};

}  // namespace

Tensor general_relu(int64_t backend, const Tensor& x, const Activation& act) {
  if (!wants_grad(x)) return forward_op()(backend, x, act.leak, act.sub, act.maxv, act.max_leak);
  return GeneralReluFunction::apply(x, backend, act);
}

}  // namespace fastnorm
