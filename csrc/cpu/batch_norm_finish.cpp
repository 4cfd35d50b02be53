// Compiled once: what lies between the two sweeps when several units share a channel. Sums of units are added in the
// order of units, whichever threads took them.
#include <vector>

#include "cpu/channel.h"

namespace fastnorm {
namespace {

using Totals = std::vector<ChannelSums>;

void add(ChannelSums& total, const ChannelSums& part) {
  total.sum += part.sum;
  total.product += part.product;
}

// Walks the partial sums as they lie in memory; per channel the order is the same either way.
Totals totals_of(const Partials& partials, int64_t channels) {
  Totals totals(static_cast<size_t>(channels));
  if (partials.channel_stride == 1) {
    for (int64_t k = 0; k < partials.count; ++k) {
      const ChannelSums* row = partials.data + k * partials.stride;
      for (int64_t c = 0; c < channels; ++c) add(totals[static_cast<size_t>(c)], row[c]);
    }
  } else {
    for (int64_t c = 0; c < channels; ++c) {
      const ChannelSums* own = partials.data + c * partials.channel_stride;
      for (int64_t k = 0; k < partials.count; ++k) add(totals[static_cast<size_t>(c)], own[k * partials.stride]);
    }
  }
  return totals;
}

double stored(double v, Dtype dtype) {
  switch (dtype) {
    case Dtype::f64: return as_stored<double>(v);
    case Dtype::f32: return as_stored<float>(v);
    case Dtype::bf16: return as_stored<bfloat16>(v);
    case Dtype::f16: return as_stored<float16>(v);
  }
  return v;
}

}  // namespace

bool batch_norm_finish_fwd(const BatchNormFwd& args, const Partials& partials, double* shift, bool again) {
  const double n = static_cast<double>(args.shape.per_channel());
  const Totals totals = totals_of(partials, args.shape.C);
  bool cancelled = false;
  for (int64_t c = 0; c < args.shape.C && !again; ++c) {
    const Moments m = moments(totals[static_cast<size_t>(c)], shift[c], n);
    if (!m.cancelled) continue;
    shift[c] = stored(m.mean, args.dtype);
    cancelled = true;
  }
  if (cancelled) return false;
  for (int64_t c = 0; c < args.shape.C; ++c) {
    finish_channel(args, c, moments(totals[static_cast<size_t>(c)], shift[c], n));
  }
  return true;
}

void batch_norm_finish_bwd(const BatchNormBwd& args, const Partials& partials, InputGrad* grads) {
  const Totals totals = totals_of(partials, args.shape.C);
  for (int64_t c = 0; c < args.shape.C; ++c) grads[c] = finish_grads(args, c, totals[static_cast<size_t>(c)]);
}

void batch_norm_running_stats(const BatchNormFwd& args) {
  for (int64_t c = 0; c < args.shape.C; ++c) {
    write_stat(args.mean, args.dtype, c, read(args.running_mean, c, 0));
    write_stat(args.rstd, args.dtype, c, inverse_std(read(args.running_var, c, 1), 2, args.eps, false));
  }
}

}  // namespace fastnorm
