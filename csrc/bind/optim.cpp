// The optimizers' steps on CPU tensors, in a namespace of their own: fastnorm_optim. A plan lives between steps.
#include <algorithm>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "bind/optim_plan.h"
#include "math/adam.h"
#include "math/rmsprop.h"
#include "math/sgd.h"

namespace fastnorm {
namespace {

using Plans = std::unordered_map<int64_t, std::shared_ptr<OptimPlan>>;

std::mutex& guard() {
  static std::mutex mutex;
  return mutex;
}
Plans& plans() {  // never destroyed: at exit torch may be gone before this is
  static Plans* const all = new Plans;
  return *all;
}

std::shared_ptr<OptimPlan> plan_of(int64_t handle) {
  auto plan = find_plan(handle);
  STD_TORCH_CHECK(plan != nullptr, "there is no plan ", handle);
  return plan;
}

OptimKind kind_of(int64_t kind) {
  STD_TORCH_CHECK(kind >= 0 && kind <= 2, "kind must be 0 (SGD), 1 (RMSprop) or 2 (Adam)");
  return static_cast<OptimKind>(kind);
}

int64_t prepare(int64_t kind, std::vector<Tensor> tensors, std::vector<int64_t> rows) {
  static int64_t last = 0;
  auto plan = std::make_shared<OptimPlan>(kind_of(kind), tensors, rows);
  const std::lock_guard<std::mutex> lock(guard());
  plans().emplace(++last, std::move(plan));
  return last;
}

void release(int64_t handle) {
  const std::lock_guard<std::mutex> lock(guard());
  plans().erase(handle);
}

bool has(OptimPlan& plan, const std::vector<Tensor>& grads) {
  return (grads.empty() && plan.has_grads()) || plan.take(grads);
}

// grads, hyper: empty where the plan has taken them before (optim_taken.h). False: a tensor has moved, nothing was
// done, and a new plan must be made.
bool step(int64_t handle, std::vector<Tensor> grads, std::vector<double> hyper, double multiplier, int64_t seed) {
  const auto plan = plan_of(handle);
  if (!has(*plan, grads)) return false;
  plan->step(hyper.empty() ? plan->hyper() : hyper, multiplier, seed);
  return true;
}

// The norm of all gradients together; negative: as for false above.
double grad_norm(int64_t handle, std::vector<Tensor> grads) {
  const auto plan = plan_of(handle);
  return has(*plan, grads) ? plan->grad_norm() : -1;
}

// One step out of place. tensors: parameter, gradient, states; returned: the new parameter and states.
std::vector<Tensor> step_out(int64_t kind, std::vector<Tensor> tensors, std::vector<double> hyper, double step,
                             bool first) {
  STD_TORCH_CHECK(tensors.size() >= 2 && tensors.size() <= 2 + kMostStates, "tensors: parameter, gradient, states");
  const MemoryFormat format = memory_format_of(tensors[0]);
  std::vector<Tensor> held, made;
  OptimRow row;
  row.numel = tensors[0].numel(), row.states = static_cast<int>(tensors.size()) - 2;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const auto sizes = tensors[i].sizes(), wanted = tensors[0].sizes();
    STD_TORCH_CHECK(tensors[i].is_cpu() && sizes.size() == wanted.size() &&
                        std::equal(sizes.begin(), sizes.end(), wanted.begin()),
                    "all tensors must be CPU tensors of the parameter's shape");
    held.push_back(dense(tensors[i], format));
    OptimStream& stream = i == 0 ? row.param : i == 1 ? row.grad : row.state[i - 2];
    stream.in = held.back().data_ptr(), stream.dtype = dtype_of(tensors[i], "a parameter, gradient or state");
    if (i == 1) continue;
    made.push_back(empty_like(tensors[i], format));
    stream.out = made.back().data_ptr();
  }
  row.wide = row.param.dtype == Dtype::f64;
  const auto run = [&](OptimKernel kernel, const void* numbers) {
    const int64_t units = (row.numel + kOptimChunk - 1) / kOptimChunk;
    parallel(units, row.numel, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t stop = (unit + 1) * kOptimChunk;
        const OptimChunk chunk{0, unit * kOptimChunk, stop < row.numel ? stop : row.numel};
        kernel({&row, &chunk, numbers}, 0, 1);
      }
    });
  };
  const auto hyper_as = [&](auto h) {
    STD_TORCH_CHECK(hyper.size() * sizeof(double) == sizeof h,
                    "hyper must hold ", sizeof h / sizeof(double), " numbers");
    std::copy(hyper.begin(), hyper.end(), reinterpret_cast<double*>(&h));
    return h;
  };
  const OptimKernels& kernels = optim_kernels();
  if (kind_of(kind) == OptimKind::sgd) {
    const SgdNumbers numbers = sgd_numbers(hyper_as(SgdHyper{}), 1, first);
    run(kernels.sgd, &numbers);
  } else if (kind_of(kind) == OptimKind::rmsprop) {
    const RmspropHyper h = hyper_as(RmspropHyper{});
    row.centered = h.centered != 0;
    const RmspropNumbers numbers = rmsprop_numbers(h, 1, step);
    run(kernels.rmsprop, &numbers);
  } else {
    const AdamNumbers numbers = adam_numbers(hyper_as(AdamHyper{}), 1, step);
    run(kernels.adam, &numbers);
  }
  return made;
}

}  // namespace

std::shared_ptr<OptimPlan> find_plan(int64_t handle) {
  const std::lock_guard<std::mutex> lock(guard());
  const auto found = plans().find(handle);
  return found == plans().end() ? nullptr : found->second;
}

STABLE_TORCH_LIBRARY(fastnorm_optim, m) {
  m.def("prepare(int kind, Tensor[] tensors, int[] rows) -> int");
  m.def("release(int plan) -> ()");
  m.def("step(int plan, Tensor[] grads, float[] hyper, float multiplier, int seed) -> bool");
  m.def("grad_norm(int plan, Tensor[] grads) -> float");
  m.def("step_out(int kind, Tensor[] tensors, float[] hyper, float step, bool first) -> Tensor[]");
}
STABLE_TORCH_LIBRARY_IMPL(fastnorm_optim, CompositeExplicitAutograd, m) {
  m.impl("prepare", TORCH_BOX(&prepare));
  m.impl("release", TORCH_BOX(&release));
  m.impl("step", TORCH_BOX(&step));
  m.impl("grad_norm", TORCH_BOX(&grad_norm));
  m.impl("step_out", TORCH_BOX(&step_out));
}

}  // namespace fastnorm
