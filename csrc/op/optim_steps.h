// A plan of csrc/bind as csrc/nodes sees it, which is another module: they share no symbols, so calls are virtual.
#pragma once

#include <vector>

#include "op/optim.h"

namespace fastnorm {

constexpr const char* kOptimStepsCapsule = "fastnorm.optim_steps";

class OptimSteps {
 public:
  virtual ~OptimSteps() = default;
  // Whether its tensors lie where they lay when it was made.
  virtual bool unmoved() const = 0;
  // The rows of a plan: whoever has made sure that their tensors have not moved fills in the gradients before a call.
  virtual std::vector<OptimRow>& table() = 0;
  // hyper: the numbers of each group, as the kernel's Hyper struct lists them.
  virtual void step(const std::vector<double>& hyper, double multiplier, int64_t seed) = 0;
  virtual double grad_norm() = 0;
};

}  // namespace fastnorm
