// What the nodes of both norm families share: what is saved, which gradients an op is asked for, where they go.
#pragma once

#include "nodes/node.h"

namespace fastnorm {

using NormResults = std::tuple<Tensor, Tensor, Tensor>;            // y, mean, rstd
using NormGradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // dx, dweight, dbias, dresidual

// Inputs are x, weight, bias, residual; saved are these, mean and rstd.
template <class Rule>
void save_norm(RecordedNode<Rule>& node, const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
               const OptionalTensor& residual, bool active, const NormResults& results) {
  // Without an activation the residual's gradient is dy itself.
  node.save(x, weight, bias, active ? residual : OptionalTensor(), std::get<1>(results), std::get<2>(results));
}

// What save_norm saved, and which gradients this call of backward is to find.
struct SavedNorm {
  static constexpr size_t kInputs = 4, kSaved = 6;

  const Tensor &x, &mean, &rstd;
  OptionalTensor weight, bias, residual;
  bool wants_x, wants_weight, wants_bias, wants_residual;
  bool through;  // the residual's gradient goes through the activation

  SavedNorm(const std::array<Tensor, kSaved>& saved, const std::array<bool, kInputs>& needed, bool active)
      : x(saved[0]), mean(saved[4]), rstd(saved[5]), weight(given(saved[1])), bias(given(saved[2])),
        residual(given(saved[3])), wants_x(needed[0]), wants_weight(needed[1]), wants_bias(needed[2]),
        wants_residual(needed[3]), through(active && needed[3]) {}

  std::array<bool, 4> needed() const { return {wants_x, wants_weight, wants_bias, through}; }
  bool needs_op() const { return wants_x || wants_weight || wants_bias || through; }

  // The gradients of all inputs, from an op that found all of them.
  variable_list spread(NormGradients found, const Tensor& dy) const {
    variable_list grads(kInputs);
    if (wants_x) grads[0] = std::move(std::get<0>(found));
    if (wants_weight) grads[1] = std::move(std::get<1>(found));
    if (wants_bias) grads[2] = std::move(std::get<2>(found));
    if (wants_residual) grads[3] = through ? std::move(std::get<3>(found)) : dy;
    return grads;
  }
  // From one that found those that were needed.
  variable_list spread(std::vector<Tensor> found, const Tensor& dy) const {
    variable_list grads(kInputs);
    const auto places = needed();
    for (size_t place = 0, taken = 0; place < places.size(); ++place) {
      if (places[place]) grads[place] = std::move(found.at(taken++));
    }
    if (wants_residual && !through) grads[3] = dy;
    return grads;
  }

 private:
  static OptionalTensor given(const Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; }
};

}  // namespace fastnorm
