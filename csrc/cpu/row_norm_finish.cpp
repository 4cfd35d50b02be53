// Compiled once: what lies between the sweeps when threads share a set. Sums of chunks are added in the order of
// chunks, whichever threads took them.
#include "cpu/channel.h"
#include "op/row_norm.h"

namespace fastnorm {
namespace {

ChannelSums total_of(const ChannelSums* partial, int64_t count) {
  ChannelSums total;
  for (int64_t k = 0; k < count; ++k) total.sum += partial[k].sum, total.product += partial[k].product;
  return total;
}

}  // namespace

bool row_norm_finish_fwd(const RowNormFwd& args, const ChannelSums* partial, double* shift, bool again) {
  const double n = static_cast<double>(args.shape.set_size());
  const int64_t chunks = chunks_of_set(args.shape);
  bool cancelled = false;
  for (int64_t set = 0; set < args.shape.sets(); ++set) {
    const ChannelSums sums = total_of(partial + set * chunks, chunks);
    const Moments m = args.rms ? rms_moments(sums, n) : moments(sums, shift[set], n);
    if (m.cancelled && !again) {
      shift[set] = as_stored(m.mean, args.dtype);
      cancelled = true;
      continue;
    }
    if (args.mean != nullptr) write_stat(args.mean, args.dtype, set, m.mean);
    write_stat(args.rstd, args.dtype, set, inverse_std(m.var, n, args.eps, args.unbiased));
  }
  return !cancelled;
}

void row_norm_finish_bwd(const RowNormBwd& args, const ChannelSums* partial, int64_t set0, int64_t sets,
                         RowGrad* grads) {
  const double n = static_cast<double>(args.shape.set_size());
  const int64_t chunks = chunks_of_set(args.shape);
  for (int64_t i = 0; i < sets; ++i) {
    const double rstd = read_stat(args.rstd, args.dtype, set0 + i);
    grads[i] = row_grad(rstd, total_of(partial + i * chunks, chunks), n, args.rms, args.unbiased);
  }
}

}  // namespace fastnorm
