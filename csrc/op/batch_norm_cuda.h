// The seam of batch_norm on a GPU: arguments, the launch plan and the launchers.
//
// The blocks that share a channel are a *team*. A team takes one *group* of channels at a time: each block sums its
// part, the team adds up, and each block writes its part, which it has kept in shared memory as far as that goes. In
// plane order a group is one channel; in row order it is a strip of neighbouring columns.
#pragma once

#include "op/batch_norm.h"
#include "op/cuda.h"

namespace fastnorm {

// How the blocks of a team wait for each other.
enum class Team : uint8_t { block, cluster, grid };  // it is one block; within a cluster; the whole grid does

struct BatchNormPlan {
  Team kind = Team::block;
  bool rows = false;
  int lanes = 1;     // elements of a vector
  int columns = 1;   // vectors of a row that a group has; planes: 1
  int threads = 32;
  int team = 1;      // blocks
  int teams = 1;
  int held = 0;      // vectors of each tensor that a thread keeps in shared memory
  int shared_bytes = 0;
  int64_t groups = 1;
  int64_t vectors = 1;  // of one group: planes: of a channel; rows: rows * columns

  FASTNORM_INLINE int channels() const { return rows ? columns * lanes : 1; }  // of a group
  FASTNORM_INLINE int blocks() const { return team * teams; }
  FASTNORM_INLINE int64_t rounds() const { return (groups + teams - 1) / teams; }
  // ChannelSums that the blocks of the grid exchange through global memory: twice, for rounds take turns.
  int64_t exchanged() const { return kind == Team::grid ? int64_t{2} * blocks() * channels() : 0; }
};

// tensors: how many are read twice. alignment: the largest power of two that divides all addresses.
BatchNormPlan batch_norm_plan(const CudaDevice& device, const BatchNormShape& shape, bool rows, Dtype dtype,
                              int tensors, int64_t alignment);

struct BatchNormFwdCuda {
  BatchNormFwd op;
  ChannelVector factor;  // in place of momentum, one number; null where it is not given
  BatchNormPlan plan;
  ChannelSums* exchange;
};

struct BatchNormBwdCuda {
  BatchNormBwd op;
  BatchNormPlan plan;
  ChannelSums* exchange;
};

void batch_norm_fwd_cuda(const BatchNormFwdCuda& args, const CudaStream& stream);
void batch_norm_bwd_cuda(const BatchNormBwdCuda& args, const CudaStream& stream);

}  // namespace fastnorm
