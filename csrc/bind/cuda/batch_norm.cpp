// batch_norm on CUDA tensors: checks, outputs, the plan of the launch.
#include <tuple>

#include "bind/activation.h"
#include "bind/batch_norm.h"
#include "bind/cuda/device.h"
#include "op/batch_norm_cuda.h"

namespace fastnorm {
namespace {

// The largest power of two that divides all of these addresses.
int64_t common_alignment(std::initializer_list<const void*> addresses) {
  uintptr_t bits = 64;
  for (const void* address : addresses) bits |= reinterpret_cast<uintptr_t>(address);
  return static_cast<int64_t>(bits & -bits);
}

// Memory through which the blocks of a grid exchange sums; null where they do it otherwise.
Tensor exchange_for(const BatchNormPlan& plan, const Tensor& x) {
  constexpr int64_t kNumbers = sizeof(ChannelSums) / sizeof(double);
  return empty_beside(x, {plan.exchanged() * kNumbers}, ScalarType::Double);
}

Tensor zeros_beside(const Tensor& x, int64_t channels, ScalarType dtype) {
  Tensor t = empty_beside(x, {channels}, dtype);
  return channels > 0 ? torch::stable::zero_(t) : t;
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_fwd(
    Tensor x, OptionalTensor weight, OptionalTensor bias, OptionalTensor residual, OptionalTensor running_mean,
    OptionalTensor running_var, OptionalTensor factor, bool training, double momentum, double eps, bool unbiased,
    bool /*detach_stats: of the backward only*/, bool act, OptionalNumber leak, OptionalNumber sub,
    OptionalNumber maxv, OptionalNumber max_leak) {
  const BatchNormGeometry g = batch_norm_geometry(x);
  BatchNormFwdCuda args{};
  BatchNormFwd& op = args.op;
  op.dtype = dtype_of(x, "x"), op.shape = g.shape;
  op.weight = channel_vector(weight, "weight", x), op.bias = channel_vector(bias, "bias", x);
  op.running_mean = channel_vector(running_mean, "running_mean", x);
  op.running_var = channel_vector(running_var, "running_var", x);
  STD_TORCH_CHECK(training || (running_mean.has_value() && running_var.has_value()),
                  "running_mean and running_var must be given where the batch's statistics are not taken");
  if (factor.has_value()) {
    check_device(*factor, x, "factor");
    STD_TORCH_CHECK(factor->numel() == 1, "factor must have one element");
    args.factor = {factor->data_ptr(), 1, dtype_of(*factor, "factor")};
  }
  const OnDeviceOf here(x);
  const Tensor in = dense(x, g.format);
  const Tensor added = residual.has_value() ? dense_like(*residual, x, "residual", g.format) : in;
  const ScalarType stats = stat_dtype(op.dtype);
  const int64_t C = x.size(1);
  Tensor y = empty_like(x, g.format);
  if (C == 0 || (x.numel() == 0 && training)) return {y, zeros_beside(x, C, stats), zeros_beside(x, C, stats)};
  Tensor mean = empty_beside(x, {C}, stats), rstd = empty_beside(x, {C}, stats);
  op.x = in.data_ptr(), op.residual = residual.has_value() ? added.data_ptr() : nullptr;
  op.y = y.data_ptr(), op.mean = mean.data_ptr(), op.rstd = rstd.data_ptr();
  op.act = activation(act, leak, sub, maxv, max_leak);
  op.momentum = momentum, op.eps = eps, op.training = training, op.unbiased = unbiased;
  const int64_t alignment = common_alignment({op.x, op.residual, op.y});
  args.plan = batch_norm_plan(here.limits(), g.shape, g.rows, op.dtype, 1, alignment);
  const Tensor exchange = exchange_for(args.plan, x);
  args.exchange = static_cast<ChannelSums*>(exchange.data_ptr());
  batch_norm_fwd_cuda(args, here.stream());
  return {y, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_bwd(
    Tensor dy, Tensor x, OptionalTensor weight, OptionalTensor bias, OptionalTensor residual, Tensor mean, Tensor rstd,
    bool batch_stats, bool unbiased, bool need_dx, bool act, OptionalNumber leak, OptionalNumber sub,
    OptionalNumber maxv, OptionalNumber max_leak) {
  const BatchNormGeometry g = batch_norm_geometry(x);
  BatchNormBwdCuda args{};
  BatchNormBwd& op = args.op;
  op.dtype = dtype_of(x, "x"), op.shape = g.shape;
  op.weight = channel_vector(weight, "weight", x), op.bias = channel_vector(bias, "bias", x);
  check_saved_statistics(mean, x, op.dtype), check_saved_statistics(rstd, x, op.dtype);
  const OnDeviceOf here(x);
  const bool through = act && residual.has_value();
  const Tensor in = dense(x, g.format), grad = dense_like(dy, x, "dy", g.format);
  const Tensor added = through ? dense_like(*residual, x, "residual", g.format) : in;
  const int64_t C = x.size(1);
  const auto nothing = [&] { return empty_beside(x, {0}, x.scalar_type()); };
  const auto parameter = [&](const OptionalTensor& p) {
    return empty_beside(x, {C}, p.has_value() ? p->scalar_type() : stat_dtype(op.dtype));
  };
  Tensor dx = need_dx ? empty_like(x, g.format) : nothing(), dresidual = through ? empty_like(x, g.format) : nothing();
  Tensor dweight = parameter(weight), dbias = parameter(bias);
  if (x.numel() == 0) {
    return {dx, zeros_beside(x, C, dweight.scalar_type()), zeros_beside(x, C, dbias.scalar_type()), dresidual};
  }
  op.dweight = channel_vector(dweight, "dweight", x), op.dbias = channel_vector(dbias, "dbias", x);
  op.dy = grad.data_ptr(), op.x = in.data_ptr(), op.residual = through ? added.data_ptr() : nullptr;
  op.mean = mean.data_ptr(), op.rstd = rstd.data_ptr();
  op.dx = need_dx ? dx.data_ptr() : nullptr, op.dresidual = through ? dresidual.data_ptr() : nullptr;
  op.act = activation(act, leak, sub, maxv, max_leak);
  op.batch_stats = batch_stats, op.unbiased = unbiased;
  const int64_t alignment = common_alignment({op.x, op.dy, op.residual, op.dx, op.dresidual});
  args.plan = batch_norm_plan(here.limits(), g.shape, g.rows, op.dtype, through ? 3 : 2, alignment);
  const Tensor exchange = exchange_for(args.plan, x);
  args.exchange = static_cast<ChannelSums*>(exchange.data_ptr());
  batch_norm_bwd_cuda(args, here.stream());
  return {dx, dweight, dbias, dresidual};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(FASTNORM_CUDA_LIBRARY, FASTNORM_CUDA_KEY, m) {
  m.impl("batch_norm_fwd", TORCH_BOX(&batch_norm_fwd));
  m.impl("batch_norm_bwd", TORCH_BOX(&batch_norm_bwd));
}

}  // namespace fastnorm
