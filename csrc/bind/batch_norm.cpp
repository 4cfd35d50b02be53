// batch_norm on CPU tensors: the order of sweeps; the loops are in csrc/cpu.
#include <cstring>
#include <memory>
#include <tuple>

#include "bind/activation.h"
#include "bind/batch_norm.h"
#include "bind/direct.h"
#include "op/cpu_kernels.h"

namespace fastnorm {
namespace {

constexpr int64_t kNearBytes = 640 << 10;  // of a 1 MB L2: what planes_fwd reads twice should stay there
constexpr int64_t kRunBytes = 24 << 10;    // where a plane is a page or more, runs of this much feed the prefetcher:
constexpr int64_t kPageBytes = 4 << 10;    // the next sweep then reads L3, and it is still 20 % faster (bf16)

// Channels to take together so that they stay near between two sweeps, and every thread still gets some.
int64_t channels_together(const BatchNormShape& shape, int64_t element, int64_t streams) {
  const int64_t fitting = kNearBytes / (shape.per_channel() * element * streams + 1);
  const int64_t running = shape.S * element >= kPageBytes ? kRunBytes / (shape.S * element) : 0;
  const int64_t near = fitting > running ? fitting : running;
  const int64_t threads = torch::stable::get_num_threads(), share = (shape.C + threads - 1) / threads;
  const int64_t most = near < kMostChannels ? near : kMostChannels;
  return most < 1 ? 1 : most < share ? most : share;
}

// Whether a channel is shared between threads: there are too few channels to go round.
bool split_channels(const BatchNormShape& shape) {
  const int64_t threads = torch::stable::get_num_threads();
  return threads > 1 && shape.C < 2 * threads && shape.C * shape.per_channel() >= kSerialElements;
}

int64_t elements(const BatchNormShape& shape) { return shape.C * shape.per_channel(); }
int64_t plane_units(const BatchNormShape& shape) { return shape.N * shape.C * pieces_of_plane(shape); }

// Sums units of channels, looks a second time where the shift was bad, and stores the statistics.
template <class Sum>
void shared_statistics(const BatchNormFwd& args, int64_t units, const Partials& partials, double* shift, Sum sum) {
  for (const bool again : {false, true}) {
    parallel(units, elements(args.shape), sum);
    if (batch_norm_finish_fwd(args, partials, shift, again)) return;
  }
}

void forward(const BatchNormFwd& args, bool rows) {
  const BatchNormKernels& kernels = cpu_kernels().batch_norm;
  const BatchNormShape& shape = args.shape;
  const int64_t count = elements(shape), blocks = rows ? blocks_of_rows(shape) : 0;
  const bool fused = args.training && !rows && !split_channels(shape);
  if (fused) {
    const int64_t groups = (shape.C + args.together - 1) / args.together;
    parallel(groups, count, [&](int64_t begin, int64_t end) {
      const int64_t last = end * args.together;
      kernels.planes_fwd(args, begin * args.together, last < shape.C ? last : shape.C);
    });
    return;
  }
  if (args.training) {
    const int64_t chunks = rows ? blocks : chunks_of_channel(shape);
    const std::unique_ptr<ChannelSums[]> sums(new ChannelSums[static_cast<size_t>(chunks * shape.C)]);
    const std::unique_ptr<double[]> shift(new double[static_cast<size_t>(shape.C)]);
    if (rows) {
      kernels.rows_shift(args, shift.get());
      shared_statistics(args, blocks, {sums.get(), blocks, shape.C, 1}, shift.get(),
                        [&](int64_t b, int64_t e) { kernels.rows_sum(args, shift.get(), sums.get(), b, e); });
    } else {
      kernels.planes_shift(args, shift.get(), 0, shape.C);
      shared_statistics(args, chunks * shape.C, {sums.get(), chunks, 1, chunks}, shift.get(),
                        [&](int64_t b, int64_t e) { kernels.planes_sum(args, shift.get(), sums.get(), b, e); });
    }
  } else {
    batch_norm_running_stats(args);
  }
  if (rows) parallel(blocks, count, [&](int64_t b, int64_t e) { kernels.rows_write(args, b, e); });
  else parallel(plane_units(shape), count, [&](int64_t b, int64_t e) { kernels.planes_write(args, b, e); });
}

void backward(const BatchNormBwd& args, bool rows) {
  const BatchNormKernels& kernels = cpu_kernels().batch_norm;
  const BatchNormShape& shape = args.shape;
  const int64_t count = elements(shape);
  if (!rows && !split_channels(shape)) {
    const int64_t groups = (shape.C + args.together - 1) / args.together;
    parallel(groups, count, [&](int64_t begin, int64_t end) {
      const int64_t last = end * args.together;
      kernels.planes_bwd(args, begin * args.together, last < shape.C ? last : shape.C);
    });
    return;
  }
  const int64_t chunks = rows ? blocks_of_rows(shape) : chunks_of_channel(shape);
  const std::unique_ptr<ChannelSums[]> sums(new ChannelSums[static_cast<size_t>(chunks * shape.C)]);
  const std::unique_ptr<InputGrad[]> grads(new InputGrad[static_cast<size_t>(shape.C)]);
  if (rows) {
    parallel(chunks, count, [&](int64_t b, int64_t e) { kernels.rows_grad_sum(args, sums.get(), b, e); });
    batch_norm_finish_bwd(args, {sums.get(), chunks, shape.C, 1}, grads.get());
  } else {
    parallel(chunks * shape.C, count,
             [&](int64_t b, int64_t e) { kernels.planes_grad_sum(args, sums.get(), b, e); });
    batch_norm_finish_bwd(args, {sums.get(), chunks, 1, chunks}, grads.get());
  }
  if (args.dx == nullptr || !args.batch_stats) return;  // with fixed statistics the first sweep wrote it
  if (rows) {
    parallel(chunks, count, [&](int64_t b, int64_t e) { kernels.rows_grad_write(args, grads.get(), b, e); });
  } else {
    parallel(plane_units(shape), count,
             [&](int64_t b, int64_t e) { kernels.planes_grad_write(args, grads.get(), b, e); });
  }
}

Tensor zeros(int64_t channels, ScalarType dtype) {
  const Tensor t = empty({channels}, dtype);
  if (channels > 0) std::memset(t.data_ptr(), 0, static_cast<size_t>(channels) * t.element_size());
  return t;
}

double momentum_of(double momentum, const OptionalTensor& factor) {
  if (!factor.has_value()) return momentum;
  STD_TORCH_CHECK(factor->is_cpu() && factor->numel() == 1, "factor must be a CPU tensor of one element");
  return read({factor->data_ptr(), 1, dtype_of(*factor, "factor")}, 0, momentum);
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_fwd(
    Tensor x, OptionalTensor weight, OptionalTensor bias, OptionalTensor residual, OptionalTensor running_mean,
    OptionalTensor running_var, OptionalTensor factor, bool training, double momentum, double eps, bool unbiased,
    bool /*detach_stats: of the backward only*/, bool act, OptionalNumber leak, OptionalNumber sub, OptionalNumber maxv,
    OptionalNumber max_leak) {
  const BatchNormGeometry g = batch_norm_geometry(x);
  const Dtype dtype = dtype_of(x, "x");
  const int64_t C = x.size(1);
  BatchNormFwd args{};
  args.weight = channel_vector(weight, "weight", C), args.bias = channel_vector(bias, "bias", C);
  args.running_mean = channel_vector(running_mean, "running_mean", C);
  args.running_var = channel_vector(running_var, "running_var", C);
  STD_TORCH_CHECK(training || (running_mean.has_value() && running_var.has_value()),
                  "running_mean and running_var must be given where the batch's statistics are not taken");
  args.momentum = momentum_of(momentum, factor);
  Tensor in = dense(x, g.format), added = residual.has_value() ? dense_like(*residual, x, "residual", g.format) : in;
  Tensor y = empty_like(x, g.format);
  if (x.numel() == 0 && training) return {y, zeros(C, stat_dtype(dtype)), zeros(C, stat_dtype(dtype))};
  Tensor mean = empty({C}, stat_dtype(dtype)), rstd = empty({C}, stat_dtype(dtype));
  args.x = in.data_ptr(), args.residual = residual.has_value() ? added.data_ptr() : nullptr;
  args.y = y.data_ptr(), args.mean = mean.data_ptr(), args.rstd = rstd.data_ptr();
  args.shape = g.shape, args.dtype = dtype;
  args.act = activation(act, leak, sub, maxv, max_leak);
  args.eps = eps, args.training = training, args.unbiased = unbiased;
  const int64_t bytes = elements(g.shape) * size_of(dtype);
  args.stream = beyond_cache(bytes * (residual.has_value() ? 3 : 2));
  args.together = channels_together(g.shape, size_of(dtype), 1);
  if (x.numel() > 0) forward(args, g.rows);
  else batch_norm_running_stats(args);
  return {y, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_bwd(
    Tensor dy, Tensor x, OptionalTensor weight, OptionalTensor bias, OptionalTensor residual, Tensor mean, Tensor rstd,
    bool batch_stats, bool unbiased, bool need_dx, bool act, OptionalNumber leak, OptionalNumber sub,
    OptionalNumber maxv, OptionalNumber max_leak) {
  const BatchNormGeometry g = batch_norm_geometry(x);
  const Dtype dtype = dtype_of(x, "x");
  const int64_t C = x.size(1);
  const bool through = act && residual.has_value();
  BatchNormBwd args{};
  args.weight = channel_vector(weight, "weight", C), args.bias = channel_vector(bias, "bias", C);
  check_saved_statistics(mean, x, dtype), check_saved_statistics(rstd, x, dtype);
  Tensor in = dense(x, g.format), grad = dense_like(dy, x, "dy", g.format);
  Tensor added = through ? dense_like(*residual, x, "residual", g.format) : in;
  const auto nothing = [&] { return empty({0}, x.scalar_type()); };
  Tensor dx = need_dx ? empty_like(x, g.format) : nothing(), dresidual = through ? empty_like(x, g.format) : nothing();
  Tensor dweight = empty({C}, weight.has_value() ? weight->scalar_type() : stat_dtype(dtype));
  Tensor dbias = empty({C}, bias.has_value() ? bias->scalar_type() : stat_dtype(dtype));
  if (x.numel() == 0) return {dx, zeros(C, dweight.scalar_type()), zeros(C, dbias.scalar_type()), dresidual};
  args.dweight = channel_vector(dweight, "dweight", C), args.dbias = channel_vector(dbias, "dbias", C);
  args.dy = grad.data_ptr(), args.x = in.data_ptr(), args.residual = through ? added.data_ptr() : nullptr;
  args.mean = mean.data_ptr(), args.rstd = rstd.data_ptr();
  args.dx = need_dx ? dx.data_ptr() : nullptr, args.dresidual = through ? dresidual.data_ptr() : nullptr;
  args.shape = g.shape, args.dtype = dtype;
  args.act = activation(act, leak, sub, maxv, max_leak);
  args.batch_stats = batch_stats, args.unbiased = unbiased;
  const int64_t streams = through ? 5 : 3, bytes = elements(g.shape) * size_of(dtype);
  args.stream = beyond_cache(bytes * streams);
  args.together = channels_together(g.shape, size_of(dtype), streams - 1);
  backward(args, g.rows);
  return {dx, dweight, dbias, dresidual};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastnorm_native, CPU, m) {
  m.impl("batch_norm_fwd", TORCH_BOX(&batch_norm_fwd));
  m.impl("batch_norm_bwd", TORCH_BOX(&batch_norm_bwd));
  add_direct<&batch_norm_fwd>("batch_norm_fwd");
  add_direct<&batch_norm_bwd>("batch_norm_bwd");
}

}  // namespace fastnorm
