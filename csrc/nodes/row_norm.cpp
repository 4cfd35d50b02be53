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

NormResults forward(int64_t backend, const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                    const OptionalTensor& residual, const RowNormOptions& o) {
  static const Op<Forward> op("row_norm_fwd");
  return op(backend, x, weight, bias, residual, o.dims, o.groups, o.eps, o.rms, o.unbiased, o.act.active, o.act.leak,
            o.act.sub, o.act.maxv, o.act.max_leak);
}

NormGradients op_backward(int64_t backend, const Tensor& dy, const SavedNorm& saved, const RowNormOptions& o) {
  static const Op<Backward> op("row_norm_bwd");
  // The op sums a gradient for every parameter it is given: it gets those that something depends on.
  const OptionalTensor nothing;
  const bool uses_weight = saved.wants_weight || saved.wants_x || o.act.active;
  const bool uses_bias = saved.wants_bias || o.act.active;
  return op(backend, dy, saved.x, uses_weight ? saved.weight : nothing, uses_bias ? saved.bias : nothing,
            saved.residual, saved.mean, saved.rstd, o.dims, o.groups, o.rms, o.unbiased, saved.wants_x, o.act.active,
            o.act.leak, o.act.sub, o.act.maxv, o.act.max_leak);
}

std::vector<Tensor> differentiable_backward(const Tensor& dy, const SavedNorm& saved, const RowNormOptions& o) {
  static const auto op = double_op<Differentiable>("row_norm");
  return op.call(saved.needed(), dy, saved.x, saved.weight, saved.bias, saved.residual, o.dims, o.groups, o.eps, o.rms,
                 o.unbiased, o.act.active, o.act.leak, o.act.sub, o.act.maxv, o.act.max_leak);
}

struct RowNormRule {
  static constexpr const char* kName = "RowNormFunctionBackward";
  static constexpr size_t kInputs = SavedNorm::kInputs, kSaved = SavedNorm::kSaved;

  int64_t backend;
  RowNormOptions options;

  std::vector<c10::IValue> packed() const {
    const auto& [dims, groups, eps, rms, unbiased, act] = options;
    return {backend, dims, groups, eps, rms, unbiased, act.active, act.leak, act.sub, act.maxv, act.max_leak};
  }
  static RowNormRule unpacked(Options from) {
    RowNormRule rule{from.integer(), {from.integer(), from.integer(), from.number(), from.flag(), from.flag(), {}}};
    rule.options.act = from.activation();
    return rule;
  }

  variable_list backward(const Tensor& dy, const std::array<Tensor, kSaved>& tensors,
                         const std::array<bool, kInputs>& needed) const {
    const SavedNorm saved(tensors, needed, options.act.active);
    if (at::GradMode::is_enabled()) return saved.spread(differentiable_backward(dy, saved, options), dy);
    return saved.spread(saved.needs_op() ? op_backward(backend, dy, saved, options) : NormGradients(), dy);
  }
};

}  // namespace

NormResults row_norm(int64_t backend, const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                     const OptionalTensor& residual, const RowNormOptions& options) {
  if (!wants_grad(x, weight, bias, residual)) return forward(backend, x, weight, bias, residual, options);
  check_recordable(x, weight, bias, residual);
  auto node = c10::make_intrusive<RecordedNode<RowNormRule>>(RowNormRule{backend, options}, x, weight, bias, residual);
  const NormResults results = [&] {
    const at::AutoGradMode without(false);
    return forward(backend, x, weight, bias, residual, options);
  }();
  save_norm(*node, x, weight, bias, residual, options.act.active, results);
  torch::autograd::set_history(std::get<0>(results), node);
  return results;
}

}  // namespace fastnorm
