// activation_stats on CUDA tensors.
#include <cmath>
#include <tuple>

#include "bind/activation_stats.h"
#include "bind/cuda/device.h"
#include "op/activation_stats_cuda.h"

namespace fastnorm {
namespace {

std::tuple<Tensor, Tensor, Tensor> activation_stats_fwd(Tensor x, int64_t bins, double low, double high) {
  check_bins(bins, low, high);
  const OnDeviceOf here(x);
  const Tensor in = dense(x, memory_format_of(x));
  ActivationStatsCuda args{};
  args.op = {in.data_ptr(), x.numel(), dtype_of(x, "x"), bins, low, high};
  args.plan = activation_stats_plan(here.limits(), args.op);
  const ScalarType stat = args.op.dtype == Dtype::f64 ? ScalarType::Double : ScalarType::Float;
  Tensor mean = empty_beside(x, {}, stat), std = empty_beside(x, {}, stat);
  Tensor hist = empty_beside(x, {bins}, ScalarType::Long);
  constexpr int64_t kNumbers = sizeof(BlockStats) / sizeof(double);
  const Tensor stats = empty_beside(x, {args.plan.blocks * kNumbers}, ScalarType::Double);
  const Tensor counts = empty_beside(x, {args.plan.blocks * bins}, ScalarType::Int);
  args.mean = {mean.data_ptr(), 0, dtype_of(mean, "mean")}, args.std = {std.data_ptr(), 0, dtype_of(std, "std")};
  args.hist = static_cast<int64_t*>(hist.data_ptr());
  args.stats = static_cast<BlockStats*>(stats.data_ptr());
  args.counts = static_cast<uint32_t*>(counts.data_ptr());
  activation_stats_cuda(args, here.stream());
  return {mean, std, hist};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(FASTNORM_CUDA_LIBRARY, FASTNORM_CUDA_KEY, m) {
  m.impl("activation_stats_fwd", TORCH_BOX(&activation_stats_fwd));
}

}  // namespace fastnorm
