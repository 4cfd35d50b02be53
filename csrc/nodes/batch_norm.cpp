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

NormResults forward(int64_t backend, const BatchNormCall& call) {
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

struct BatchNormRule {
  static constexpr const char* kName = "BatchNormFunctionBackward";
  static constexpr size_t kInputs = SavedNorm::kInputs, kSaved = SavedNorm::kSaved;

  int64_t backend;
  bool training;
  double eps;
  bool unbiased, detach_stats;
  Activation act;

  std::vector<c10::IValue> packed() const {
    return {backend, training, eps, unbiased, detach_stats, act.active, act.leak, act.sub, act.maxv, act.max_leak};
  }
  static BatchNormRule unpacked(Options from) {
    return {from.integer(), from.flag(), from.number(), from.flag(), from.flag(), from.activation()};
  }

  variable_list backward(const Tensor& dy, const std::array<Tensor, kSaved>& tensors,
                         const std::array<bool, kInputs>& needed) const {
    static const Op<Backward> op("batch_norm_bwd");
    static const auto differentiable = double_op<Differentiable>("batch_norm");
    const SavedNorm saved(tensors, needed, act.active);
    if (at::GradMode::is_enabled()) {
      return saved.spread(differentiable.call(saved.needed(), dy, saved.x, saved.weight, saved.bias, saved.residual,
                                              saved.mean, saved.rstd, training, eps, unbiased, detach_stats, act.active,
                                              act.leak, act.sub, act.maxv, act.max_leak),
                          dy);
    }
    if (!saved.needs_op()) return saved.spread(NormGradients(), dy);
    return saved.spread(op(backend, dy, saved.x, saved.weight, saved.bias, saved.residual, saved.mean, saved.rstd,
                           training && !detach_stats, unbiased, saved.wants_x, act.active, act.leak, act.sub, act.maxv,
                           act.max_leak),
                        dy);
  }
};

NormResults recorded(int64_t backend, const BatchNormCall& call) {
  check_recordable(call.x, call.weight, call.bias, call.residual);
  const BatchNormRule rule{backend, call.training, call.eps, call.unbiased, call.detach_stats, call.act};
  auto node = c10::make_intrusive<RecordedNode<BatchNormRule>>(rule, call.x, call.weight, call.bias, call.residual);
  const NormResults results = [&] {
    const at::AutoGradMode without(false);
    return forward(backend, call);
  }();
  save_norm(*node, call.x, call.weight, call.bias, call.residual, call.act.active, results);
  torch::autograd::set_history(std::get<0>(results), node);
  return results;
}

}  // namespace

NormResults batch_norm(int64_t backend, const BatchNormCall& call) {
  const bool records = wants_grad(call.x, call.weight, call.bias, call.residual);
  NormResults results = records ? recorded(backend, call) : forward(backend, call);
  if (call.training) tell_written(call.running_mean), tell_written(call.running_var);
  return results;
}

}  // namespace fastnorm
