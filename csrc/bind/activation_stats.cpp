// activation_stats on CPU tensors.
#include <mutex>
#include <tuple>
#include <vector>

#include "bind/activation_stats.h"
#include "math/activation_stats.h"
#include "op/cpu_kernels.h"

namespace fastnorm {
namespace {

// Squares of what is this much smaller do not overflow fp32, nor do their sums.
constexpr double kSmallUnit = 1.0 / (int64_t{1} << 40) / (int64_t{1} << 40);

// One pass, chunks added in their order. With counts it takes the histogram too: integers, which any order will do.
Moments moments_around(const ActivationStatsArgs& args, const Around& around, int64_t* counts) {
  const int64_t chunks = (args.n + kStatsChunk - 1) / kStatsChunk;
  std::vector<ChannelSums> partial(static_cast<size_t>(chunks));
  std::mutex merging;
  parallel(chunks, args.n, [&](int64_t begin, int64_t end) {
    const auto& kernel = cpu_kernels().activation_stats.sums;
    if (counts == nullptr) return kernel(args, around, partial.data(), nullptr, nullptr, begin, end);
    std::vector<uint32_t> scratch(static_cast<size_t>(kStatsTables * (args.bins + 1)));
    std::vector<int64_t> own(static_cast<size_t>(args.bins));
    kernel(args, around, partial.data(), own.data(), scratch.data(), begin, end);
    const std::lock_guard<std::mutex> lock(merging);
    for (size_t i = 0; i < own.size(); ++i) counts[i] += own[i];
  });
  ChannelSums total;
  for (const ChannelSums& part : partial) {
    total.sum += part.sum / around.unit, total.product += part.product / (around.unit * around.unit);
  }
  return moments(total, around.shift, static_cast<double>(args.n));
}

Moments moments_of(const ActivationStatsArgs& args, int64_t* counts) {
  Around around{args.n > 0 ? cpu_kernels().activation_stats.shift(args) : 0, 1};
  Moments m = moments_around(args, around, counts);
  if (args.n > 0 && !(std::isfinite(m.mean) && std::isfinite(m.var))) {
    around.unit = kSmallUnit;
    m = moments_around(args, around, nullptr);
  }
  if (m.cancelled) m = moments_around(args, {as_stored(m.mean, args.dtype), around.unit}, nullptr);
  return m;
}

void write_number(const Tensor& out, double value) { write({out.data_ptr(), 0, dtype_of(out, "out")}, 0, value); }

std::tuple<Tensor, Tensor, Tensor> activation_stats_fwd(Tensor x, int64_t bins, double low, double high) {
  const Dtype dtype = dtype_of(x, "x");
  check_bins(bins, low, high);
  const Tensor in = dense(x, memory_format_of(x));
  const ScalarType stat = dtype == Dtype::f64 ? ScalarType::Double : ScalarType::Float;
  Tensor mean = empty({}, stat), std = empty({}, stat), hist = empty({bins}, ScalarType::Long);
  int64_t* counts = static_cast<int64_t*>(hist.data_ptr());
  for (int64_t i = 0; i < bins; ++i) counts[i] = 0;
  const ActivationStatsArgs args{in.data_ptr(), x.numel(), dtype, bins, low, high};
  const Moments m = moments_of(args, counts);
  write_number(mean, m.mean), write_number(std, unbiased_std(m.var, static_cast<double>(args.n)));
  return {mean, std, hist};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastnorm_native, CPU, m) { m.impl("activation_stats_fwd", TORCH_BOX(&activation_stats_fwd)); }

}  // namespace fastnorm
