// The derivative of one step of Adam on CPU tensors of one floating dtype, fp32 or fp64.
#include <algorithm>
#include <tuple>

#include "bind/tensor.h"
#include "math/adam.h"
#include "op/optim.h"

namespace fastnorm {
namespace {

// tensors: parameter, gradient, exp_avg, exp_avg_sq and, for amsgrad, max_exp_avg_sq; upstream: of the new parameter
// and states, in that order; an empty one stands for zeros. Returned: the gradient of each of `tensors`, and kAdamSums
// sums.
std::tuple<std::vector<Tensor>, Tensor> adam_bwd(std::vector<Tensor> tensors, std::vector<Tensor> upstream,
                                                 std::vector<double> hyper, double step) {
  const bool amsgrad = tensors.size() == 5;
  STD_TORCH_CHECK((tensors.size() == 4 || amsgrad) && upstream.size() + 1 == tensors.size(),
                  "tensors: parameter, gradient, exp_avg, exp_avg_sq and max_exp_avg_sq for amsgrad; "
                  "upstream: all but one");
  AdamHyper h;
  STD_TORCH_CHECK(hyper.size() * sizeof(double) == sizeof h, "hyper must hold ", sizeof h / sizeof(double), " numbers");
  std::copy(hyper.begin(), hyper.end(), reinterpret_cast<double*>(&h));
  const AdamNumbers numbers = adam_numbers(h, 1, step);
  const Tensor& param = tensors[0];
  STD_TORCH_CHECK(param.is_cpu(), "param must be a CPU tensor");
  const Dtype dtype = dtype_of(param, "param");
  STD_TORCH_CHECK(size_of(dtype) >= 4, "param must be fp32 or fp64");
  const MemoryFormat format = memory_format_of(param);
  AdamBwdArgs args{};
  std::vector<Tensor> held, made;
  for (size_t k = 0; k < tensors.size(); ++k) {
    held.push_back(dense_like(tensors[k], param, "every tensor", format));
    args.in[k] = held.back().data_ptr();
    const Tensor& from = upstream[k < 2 ? 0 : k - 1];
    if (k != 1 && from.numel() > 0) {
      held.push_back(dense_like(from, param, "every upstream gradient", format));
      args.upstream[k] = held.back().data_ptr();
    }
    made.push_back(empty_like(param, format));
    args.out[k] = made.back().data_ptr();
  }
  args.numbers = &numbers, args.numel = param.numel();
  args.wide = dtype == Dtype::f64, args.amsgrad = amsgrad;
  const int64_t chunks = (args.numel + kOptimChunk - 1) / kOptimChunk;
  std::vector<double> partial(static_cast<size_t>(chunks * kAdamSums));
  args.sums = partial.data();
  parallel(chunks, args.numel, [&](int64_t begin, int64_t end) { optim_kernels().adam_bwd(args, begin, end); });
  Tensor sums = empty({kAdamSums}, ScalarType::Double);
  double* total = static_cast<double*>(sums.data_ptr());
  std::fill(total, total + kAdamSums, 0.0);
  for (size_t i = 0; i < partial.size(); ++i) total[i % kAdamSums] += partial[i];
  return {made, sums};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastnorm_optim, m) {
  m.def("adam_bwd(Tensor[] tensors, Tensor[] upstream, float[] hyper, float step) -> (Tensor[], Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(fastnorm_optim, CompositeExplicitAutograd, m) { m.impl("adam_bwd", TORCH_BOX(&adam_bwd)); }

}  // namespace fastnorm
