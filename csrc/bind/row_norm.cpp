// row_norm on CPU tensors: the order of sweeps; the loops are in csrc/cpu.
#include "bind/row_norm.h"

#include <cstring>
#include <tuple>

#include "bind/activation.h"
#include "bind/direct.h"
#include "op/cpu_kernels.h"

namespace fastnorm {
namespace {

// What a call touches is read once from memory and need not stay in the cache: past half of what it holds, stores that
// go around it are faster, also with whoever reads the output next (16 MB: 25 % less time for both together).
bool streams(int64_t bytes) { return beyond_cache(2 * bytes); }

const RowNormKernels& kernels() { return cpu_kernels().row_norm; }

// Whether threads share sets or samples: there are too few to go round.
bool shared(int64_t count, const RowNormShape& shape) {
  const int64_t threads = torch::stable::get_num_threads();
  return threads > 1 && count < 2 * threads && shape.elements() >= kSerialElements;
}

template <class S>
std::unique_ptr<S[]> array(int64_t count) {
  return std::unique_ptr<S[]>(new S[static_cast<size_t>(count)]);
}

int64_t plane_units(const RowNormShape& s) { return s.N * s.width() * pieces_of_plane(s); }

// Statistics of sets that threads share chunk by chunk; looks a second time where a shift was bad.
void chunk_statistics(const RowNormFwd& args) {
  const RowNormShape& s = args.shape;
  const int64_t sets = s.sets(), chunks = chunks_of_set(s);
  const auto partial = array<ChannelSums>(sets * chunks);
  const auto shift = array<double>(sets);
  kernels().sets_shift(args, shift.get(), 0, sets);
  for (const bool again : {false, true}) {
    parallel(sets * chunks, s.elements(),
             [&](int64_t b, int64_t e) { kernels().sets_sum(args, shift.get(), partial.get(), b, e); });
    if (row_norm_finish_fwd(args, partial.get(), shift.get(), again)) return;
  }
}

void runs_forward(const RowNormFwd& args) {
  const RowNormShape& s = args.shape;
  if (!long_runs(s) || !shared(s.sets(), s)) {
    parallel(s.sets(), s.elements(), [&](int64_t b, int64_t e) { kernels().runs_fwd(args, b, e); });
    return;
  }
  chunk_statistics(args);
  parallel(s.sets() * chunks_of_set(s), s.elements(),
           [&](int64_t b, int64_t e) { kernels().runs_write(args, b, e); });
}

void planes_forward(const RowNormFwd& args) {
  const RowNormShape& s = args.shape;
  if (s.set_size() <= kSetChunk || !shared(s.sets(), s)) {
    parallel(s.sets(), s.elements(), [&](int64_t b, int64_t e) { kernels().planes_fwd(args, b, e); });
    return;
  }
  chunk_statistics(args);
  parallel(plane_units(s), s.elements(), [&](int64_t b, int64_t e) { kernels().planes_write(args, b, e); });
}

void columns_forward(const RowNormFwd& args) {
  const RowNormShape& s = args.shape;
  const int64_t blocks = blocks_of_sample(s), units = s.N * blocks;
  if (blocks == 1 || !shared(s.N, s)) {
    parallel(s.N, s.elements(), [&](int64_t b, int64_t e) { kernels().columns_fwd(args, b, e); });
    return;
  }
  const auto partial = array<ChannelSums>(units * s.width());
  const auto shift = array<double>(s.sets());
  kernels().columns_shift(args, shift.get(), 0, s.N);
  for (const bool again : {false, true}) {
    parallel(units, s.elements(),
             [&](int64_t b, int64_t e) { kernels().columns_sum(args, shift.get(), partial.get(), b, e); });
    bool finished = true;
    for (int64_t n = 0; n < s.N; ++n) {
      const ChannelSums* sums = partial.get() + n * blocks * s.width();
      finished &= kernels().columns_finish(args, n, sums, shift.get() + n * s.G, again);
    }
    if (finished) break;
  }
  parallel(units, s.elements(), [&](int64_t b, int64_t e) { kernels().columns_write(args, b, e); });
}

void forward(const RowNormFwd& args) {
  switch (args.shape.order) {
    case RowOrder::runs: return runs_forward(args);
    case RowOrder::planes: return planes_forward(args);
    case RowOrder::columns: return columns_forward(args);
    case RowOrder::positions:
      return parallel(tiles_of_positions(args.shape, args.dtype), args.shape.elements(),
                      [&](int64_t b, int64_t e) { kernels().positions_fwd(args, b, e); });
  }
}

// Bands of rows whose x and dy stay in the last cache between their two sweeps.
void long_backward(const RowNormBwd& args) {
  constexpr int64_t kBandBytes = 4 << 20;
  const RowNormShape& s = args.shape;
  const int64_t chunks = chunks_of_set(s), tiles = (s.K + kLongTile - 1) / kLongTile, block = samples_of_block(s);
  const int64_t fitting = kBandBytes / (2 * s.sample() * size_of(args.dtype));
  const int64_t most = fitting < 1 ? 1 : fitting < block ? fitting : block;
  const auto partial = array<ChannelSums>(most * s.G * chunks);
  const auto grads = array<RowGrad>(most * s.G);
  for (int64_t n0 = 0, n1 = 0; n0 < s.N; n0 = n1) {
    const int64_t end = n0 / block * block + block;  // bands do not cross blocks
    n1 = n0 + most < end ? n0 + most : end;
    if (n1 > s.N) n1 = s.N;
    const int64_t sets = (n1 - n0) * s.G, elements = sets * s.K;
    parallel(sets * chunks, elements,
             [&](int64_t b, int64_t e) { kernels().long_grad_sum(args, partial.get(), n0, b, e); });
    row_norm_finish_bwd(args, partial.get(), n0 * s.G, sets, grads.get());
    parallel(s.G * tiles, elements,
             [&](int64_t b, int64_t e) { kernels().long_grad_write(args, grads.get(), n0, n1, b, e); });
  }
}

void planes_backward(const RowNormBwd& args) {
  const RowNormShape& s = args.shape;
  const int64_t units = plane_units(s), pieces = pieces_of_plane(s);
  if (units == s.sets() || !shared(s.sets(), s)) {
    parallel(s.sets(), s.elements(), [&](int64_t b, int64_t e) { kernels().planes_bwd(args, b, e); });
    return;
  }
  const auto partial = array<ChannelSums>(units);
  const auto grads = array<RowGrad>(s.sets());
  parallel(units, s.elements(),
           [&](int64_t b, int64_t e) { kernels().planes_grad_sum(args, partial.get(), b, e); });
  for (int64_t set = 0; set < s.sets(); ++set) {
    grads[static_cast<size_t>(set)] = kernels().planes_grad_finish(args, set, partial.get() + set * s.K * pieces);
  }
  if (args.dx == nullptr) return;
  parallel(units, s.elements(), [&](int64_t b, int64_t e) { kernels().planes_grad_write(args, grads.get(), b, e); });
}

void columns_backward(const RowNormBwd& args) {
  const RowNormShape& s = args.shape;
  const int64_t blocks = blocks_of_sample(s), units = s.N * blocks;
  if (blocks == 1 || !shared(s.N, s)) {
    parallel(s.N, s.elements(), [&](int64_t b, int64_t e) { kernels().columns_bwd(args, b, e); });
    return;
  }
  const auto partial = array<ChannelSums>(units * s.width());
  const auto grads = array<RowGrad>(s.sets());
  parallel(units, s.elements(),
           [&](int64_t b, int64_t e) { kernels().columns_grad_sum(args, partial.get(), b, e); });
  for (int64_t n = 0; n < s.N; ++n) {
    kernels().columns_grad_finish(args, n, partial.get() + n * blocks * s.width(), grads.get() + n * s.G);
  }
  if (args.dx == nullptr) return;
  parallel(units, s.elements(), [&](int64_t b, int64_t e) { kernels().columns_grad_write(args, grads.get(), b, e); });
}

void backward(const RowNormBwd& args) {
  const RowNormShape& s = args.shape;
  switch (s.order) {
    case RowOrder::runs:
      if (long_runs(s)) return long_backward(args);
      return parallel(parameter_units(s, args.dtype), s.elements(),
                      [&](int64_t b, int64_t e) { kernels().runs_bwd(args, b, e); });
    case RowOrder::planes: return planes_backward(args);
    case RowOrder::columns: return columns_backward(args);
    case RowOrder::positions:
      return parallel(parameter_units(s, args.dtype), s.elements(),
                      [&](int64_t b, int64_t e) { kernels().positions_bwd(args, b, e); });
  }
}

// partial: the first of `units` gradients of this parameter, each `stride` numbers from the next.
void store_gradient(const Tensor& grad, const RowNormGeometry& g, Dtype dtype, const void* partial, int64_t units,
                    int64_t stride) {
  const Parameter p = gradient_of(grad, g);
  const int64_t rows = p.outer * p.rows, groups = (rows + kParameterRows - 1) / kParameterRows;
  parallel(groups, units * p.numbers(), [&](int64_t b, int64_t e) {
    const int64_t row1 = e * kParameterRows < rows ? e * kParameterRows : rows;
    kernels().store_parameter(p, dtype == Dtype::f64 ? dtype : Dtype::f32, partial, units, stride, b * kParameterRows,
                              row1);
  });
}

ScalarType stat_dtype(Dtype dtype) { return dtype == Dtype::f64 ? ScalarType::Double : ScalarType::Float; }

Tensor zeroed(Tensor t) {
  if (t.numel() > 0) std::memset(t.data_ptr(), 0, static_cast<size_t>(t.numel()) * t.element_size());
  return t;
}

// out as the caller expects it: in x's memory format.
Tensor formatted(const Tensor& out, const RowNormGeometry& g) { return dense(out, g.format); }

void check_statistic(const Tensor& stat, const RowNormGeometry& g, Dtype dtype) {
  STD_TORCH_CHECK(stat.is_cpu() && stat.dim() == 1 && stat.numel() == g.sets && stat.is_contiguous() &&
                      stat.scalar_type() == stat_dtype(dtype),
                  "mean and rstd must be as row_norm_fwd returned them");
}

std::tuple<Tensor, Tensor, Tensor> row_norm_fwd(Tensor x, OptionalTensor weight, OptionalTensor bias,
                                                OptionalTensor residual, int64_t dims, int64_t groups, double eps,
                                                bool rms, bool unbiased, bool act, OptionalNumber leak,
                                                OptionalNumber sub, OptionalNumber maxv, OptionalNumber max_leak) {
  const Dtype dtype = dtype_of(x, "x");
  const RowNormGeometry g = row_norm_geometry(x, dims, groups);
  Tensor in = dense(x, g.order), added = residual.has_value() ? dense_like(*residual, x, "residual", g.order) : in;
  const OptionalNumber one = bias.has_value() ? OptionalNumber(1) : std::nullopt;
  const ParameterNumbers weights(weight, "weight", g, dtype, one), biases(bias, "bias", g, dtype, std::nullopt);
  Tensor y = empty_like(x, g.order);
  Tensor mean = empty({rms ? 0 : g.sets}, stat_dtype(dtype)), rstd = empty({g.sets}, stat_dtype(dtype));
  if (x.numel() == 0) return {formatted(y, g), zeroed(mean), zeroed(rstd)};
  RowNormFwd args{};
  args.x = in.data_ptr(), args.residual = residual.has_value() ? added.data_ptr() : nullptr, args.y = y.data_ptr();
  args.mean = rms ? nullptr : mean.data_ptr(), args.rstd = rstd.data_ptr();
  args.weight = weights.data(), args.bias = biases.data();
  args.shape = g.shape, args.dtype = dtype, args.act = activation(act, leak, sub, maxv, max_leak);
  args.eps = eps, args.rms = rms, args.unbiased = unbiased;
  args.stream = streams(g.shape.elements() * size_of(dtype) * (residual.has_value() ? 3 : 2));
  forward(args);
  return {formatted(y, g), mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> row_norm_bwd(
    Tensor dy, Tensor x, OptionalTensor weight, OptionalTensor bias, OptionalTensor residual, Tensor mean, Tensor rstd,
    int64_t dims, int64_t groups, bool rms, bool unbiased, bool need_dx, bool act, OptionalNumber leak,
    OptionalNumber sub, OptionalNumber maxv, OptionalNumber max_leak) {
  const Dtype dtype = dtype_of(x, "x");
  const RowNormGeometry g = row_norm_geometry(x, dims, groups);
  const bool through = act && residual.has_value(), parameters = weight.has_value() || bias.has_value();
  if (!rms) check_statistic(mean, g, dtype);
  check_statistic(rstd, g, dtype);
  Tensor in = dense(x, g.order), grad = dense_like(dy, x, "dy", g.order);
  Tensor added = through ? dense_like(*residual, x, "residual", g.order) : in;
  const bool both = act || bias.has_value();  // what computes dz takes both or, without an activation, needs no bias
  const ParameterNumbers weights(weight, "weight", g, dtype, both ? OptionalNumber(1) : std::nullopt);
  const ParameterNumbers biases(bias, "bias", g, dtype, act ? OptionalNumber(0) : std::nullopt);
  const auto nothing = [](ScalarType type) { return empty({0}, type); };
  Tensor dx = need_dx ? empty_like(x, g.order) : nothing(x.scalar_type());
  Tensor dresidual = through ? empty_like(x, g.order) : nothing(x.scalar_type());
  const auto gradient = [&](const OptionalTensor& v) {
    return v.has_value() ? empty_like(*v, MemoryFormat::Contiguous) : nothing(stat_dtype(dtype));
  };
  Tensor dweight = gradient(weight), dbias = gradient(bias);
  const auto result = [&] {
    return std::make_tuple(need_dx ? formatted(dx, g) : dx, dweight, dbias,
                           through ? formatted(dresidual, g) : dresidual);
  };
  if (x.numel() == 0) {
    zeroed(dweight), zeroed(dbias);
    return result();
  }
  RowNormBwd args{};
  args.dy = grad.data_ptr(), args.x = in.data_ptr(), args.residual = through ? added.data_ptr() : nullptr;
  args.mean = rms ? nullptr : mean.data_ptr(), args.rstd = rstd.data_ptr();
  args.weight = weights.data(), args.bias = biases.data();
  args.dx = need_dx ? dx.data_ptr() : nullptr, args.dresidual = through ? dresidual.data_ptr() : nullptr;
  args.shape = g.shape, args.dtype = dtype, args.act = activation(act, leak, sub, maxv, max_leak);
  args.rms = rms, args.unbiased = unbiased;
  args.stream = streams(g.shape.elements() * size_of(dtype) * (through ? 5 : 3));
  const int64_t width = g.shape.width(), units = parameter_units(g.shape, dtype);
  const int64_t number = dtype == Dtype::f64 ? 8 : 4;
  const auto partial = scratch<char>(parameters ? units * 2 * width * number : 0);
  args.parameters = parameters ? partial.get() : nullptr;
  backward(args);
  if (weight.has_value()) store_gradient(dweight, g, dtype, partial.get(), units, 2 * width);
  if (bias.has_value()) {
    store_gradient(dbias, g, dtype, partial.get() + width * number, units, 2 * width);
  }
  return result();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastnorm_native, CPU, m) {
  m.impl("row_norm_fwd", TORCH_BOX(&row_norm_fwd));
  m.impl("row_norm_bwd", TORCH_BOX(&row_norm_bwd));
  add_direct<&row_norm_fwd>("row_norm_fwd");
  add_direct<&row_norm_bwd>("row_norm_bwd");
}

}  // namespace fastnorm
