// GeneralRelu's node: saves x.
#include "nodes/general_relu.h"

namespace fastnorm {
namespace {

using Forward = Tensor(const Tensor&, OptionalNumber, OptionalNumber, OptionalNumber, OptionalNumber);
using Backward = Tensor(const Tensor&, const Tensor&, OptionalNumber, OptionalNumber, OptionalNumber, OptionalNumber);

Tensor forward(int64_t backend, const Tensor& x, const Activation& act) {
  static const Op<Forward> op("general_relu_fwd");
  return op(backend, x, act.leak, act.sub, act.maxv, act.max_leak);
}

struct GeneralReluRule {
  static constexpr const char* kName = "GeneralReluFunctionBackward";
  static constexpr size_t kInputs = 1, kSaved = 1;

  int64_t backend;
  Activation act;

  std::vector<c10::IValue> packed() const {
    return {backend, act.active, act.leak, act.sub, act.maxv, act.max_leak};
  }
  static GeneralReluRule unpacked(Options from) { return {from.integer(), from.activation()}; }

  variable_list backward(const Tensor& dy, const std::array<Tensor, kSaved>& saved,
                         const std::array<bool, kInputs>& needed) const {
    static const Op<Backward> op("general_relu_bwd");
    static const auto differentiable = double_op<Backward>("general_relu");
    if (!needed[0]) return variable_list(kInputs);
    if (at::GradMode::is_enabled()) {
      return {differentiable.call(dy, saved[0], act.leak, act.sub, act.maxv, act.max_leak)};
    }
    return {op(backend, dy, saved[0], act.leak, act.sub, act.maxv, act.max_leak)};
  }
};

}  // namespace

Tensor general_relu(int64_t backend, const Tensor& x, const Activation& act) {
  if (!wants_grad(x)) return forward(backend, x, act);
  check_recordable(x);
  auto node = c10::make_intrusive<RecordedNode<GeneralReluRule>>(GeneralReluRule{backend, act}, x);
  const Tensor y = [&] {
    const at::AutoGradMode without(false);
    return forward(backend, x, act);
  }();
  node->save(x);
  torch::autograd::set_history(y, node);
  return y;
}

}  // namespace fastnorm
