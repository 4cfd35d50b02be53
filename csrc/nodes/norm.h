// What the nodes of both norm families share: which tensors are saved, and where gradients go.
#pragma once

#include "nodes/node.h"

namespace fastnorm {

using NormResults = std::tuple<Tensor, Tensor, Tensor>;            // y, mean, rstd
using NormGradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // dx, dweight, dbias, dresidual

inline void save_norm(AutogradContext* ctx, const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                      const OptionalTensor& residual, const Activation& act, const NormResults& results) {
  const auto given = [](const OptionalTensor& t) { return t.value_or(Tensor()); };
  // Without an activation the residual's gradient is dy itself.
  ctx->save_for_backward({x, given(weight), given(bias), act.active ? given(residual) : Tensor(), std::get<1>(results),
                          std::get<2>(results)});
  ctx->set_materialize_grads(false);
}

// What save_norm saved, and which gradients this call of backward is to find. The context numbers the tensors that
// forward was given, without those that were absent.
struct SavedNorm {
  Tensor x, mean, rstd;
  OptionalTensor weight, bias, residual;
  bool wants_x, wants_weight, wants_bias, wants_residual;
  bool through;  // the residual's gradient goes through the activation

  SavedNorm(AutogradContext* ctx, bool has_residual, bool active) {
    const auto saved = ctx->get_saved_variables();
    const auto given = [](const Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; };
    x = saved[0], weight = given(saved[1]), bias = given(saved[2]), residual = given(saved[3]);
    mean = saved[4], rstd = saved[5];
    size_t edge = 0;
    const auto wanted = [&](bool given) { return given && ctx->needs_input_grad(edge++); };
    wants_x = wanted(true), wants_weight = wanted(weight.has_value()), wants_bias = wanted(bias.has_value());
    wants_residual = wanted(has_residual);
    through = active && wants_residual;
  }

  std::array<bool, 4> needed() const { return {wants_x, wants_weight, wants_bias, through}; }
  bool needs_op() const { return wants_x || wants_weight || wants_bias || through; }

  // From an op that found all of them.
  void put(NormGradients found, variable_list& grads) const {
    if (wants_x) grads[0] = std::move(std::get<0>(found));
    if (wants_weight) grads[1] = std::move(std::get<1>(found));
    if (wants_bias) grads[2] = std::move(std::get<2>(found));
    if (through) grads[3] = std::move(std::get<3>(found));
  }
  // From one that found those that were needed.
  void put(std::vector<Tensor> found, variable_list& grads) const {
    const auto places = needed();
    for (size_t place = 0, taken = 0; place < places.size(); ++place) {
      if (places[place]) grads[place] = std::move(found.at(taken++));
    }
  }
};

}  // namespace fastnorm
