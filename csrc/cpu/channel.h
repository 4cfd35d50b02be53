// What the CPU's loops over channels share.
#pragma once

#include "op/batch_norm_channel.h"

namespace fastnorm {

// What lies `together` channels after x, to be fetched while those of x are written: the hardware's prefetcher stops at
// the end of a plane. x itself where the tensors stay in the cache anyhow.
template <class Args, class T>
FASTNORM_INLINE const T* next_channels(const Args& args, const T* x) {
  return args.stream ? x + args.together * args.shape.S : x;
}

// How far ahead the same planes of the next sample lie, to be fetched while those of this one are summed. 0 where
// planes are long enough for the hardware's prefetcher to find its own way.
template <class T>
FASTNORM_INLINE int64_t next_sample(const BatchNormShape& shape, const PlaneChunk& chunk) {
  constexpr int64_t kLongRun = 4096;  // bytes
  return (chunk.s1 - chunk.s0) * static_cast<int64_t>(sizeof(T)) < kLongRun ? shape.C * shape.S : 0;
}

// Stores a channel's parameter gradients and returns the input's (N5, N6).
FASTNORM_INLINE InputGrad finish_grads(const BatchNormBwd& args, int64_t c, const ChannelSums& sums) {
  store_parameter_grads(args, c, sums);
  return input_grad_of(args, c, sums);
}

}  // namespace fastnorm
