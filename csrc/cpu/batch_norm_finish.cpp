// Compiled once: what lies between the two sweeps when several units share a channel. Sums of units are added in the
// order of units, whichever threads took them.
#include "cpu/channel.h"

namespace fastnorm {
namespace {

ChannelSums total_of(const ChannelSums* partial, int64_t count, int64_t stride) {
  ChannelSums total;
  for (int64_t k = 0; k < count; ++k) {
    total.sum += partial[k * stride].sum;
    total.product += partial[k * stride].product;
  }
  return total;
}

}  // namespace

bool batch_norm_finish_fwd(const BatchNormFwd& args, const Partials& partials, double* shift, bool again) {
  const double n = static_cast<double>(args.shape.per_channel());
  bool cancelled = false;
  for (int64_t c = 0; c < args.shape.C && !again; ++c) {
    const ChannelSums total = total_of(partials.of_channel(c), partials.count, partials.stride);
    cancelled = cancelled || moments(total, shift[c], n).cancelled;
  }
  for (int64_t c = 0; c < args.shape.C; ++c) {
    const ChannelSums total = total_of(partials.of_channel(c), partials.count, partials.stride);
    const Moments m = moments(total, shift[c], n);
    if (!cancelled) finish_channel(args, c, m);
    else if (m.cancelled) shift[c] = m.mean;
  }
  return !cancelled;
}

void batch_norm_finish_bwd(const BatchNormBwd& args, const Partials& partials, InputGrad* grads) {
  for (int64_t c = 0; c < args.shape.C; ++c) {
    grads[c] = finish_grads(args, c, total_of(partials.of_channel(c), partials.count, partials.stride));
  }
}

void batch_norm_running_stats(const BatchNormFwd& args) {
  for (int64_t c = 0; c < args.shape.C; ++c) {
    write_stat(args.mean, args.dtype, c, read(args.running_mean, c, 0));
    write_stat(args.rstd, args.dtype, c, inverse_std(read(args.running_var, c, 1), 2, args.eps, false));
  }
}

}  // namespace fastnorm
