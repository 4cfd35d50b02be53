// What the CPU's loops over channels share.
#pragma once

#include "op/batch_norm_channel.h"

namespace fastnorm {

// How far ahead of a channel's elements those of `together` channels later lie, to be fetched while these are written:
// the hardware's prefetcher stops at the end of a plane. 0 where the tensors stay in the cache anyhow, and for short
// planes, whose sums fetch for themselves.
template <class T, class Args>
FASTNORM_INLINE int64_t next_channels(const Args& args) {
  const bool fetch = args.stream && !short_plane(args.shape.S * static_cast<int64_t>(sizeof(T)));
  return fetch ? args.together * args.shape.S : 0;
}

// Stores a channel's parameter gradients and returns the input's (N5, N6).
FASTNORM_INLINE InputGrad finish_grads(const BatchNormBwd& args, int64_t c, const ChannelSums& sums) {
  store_parameter_grads(args, c, sums);
  return input_grad_of(args, c, sums);
}

}  // namespace fastnorm
