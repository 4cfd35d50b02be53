// The seam of activation_stats on a GPU: arguments, the launch plan and the launcher.
#pragma once

#include "op/activation_stats.h"
#include "op/cuda.h"

namespace fastnorm {

struct ActivationStatsPlan {
  bool wide = false;  // loads of 16 bytes, else of one element
  int blocks = 1, threads = 32;
};

// What a block finds in its share: deviations are from its own mean.
struct BlockStats {
  double mean, squares, count;
};

struct ActivationStatsCuda {
  ActivationStatsArgs op;
  ActivationStatsPlan plan;
  ChannelVector mean, std;  // one number each
  int64_t* hist;            // [bins]
  BlockStats* stats;        // [blocks]
  uint32_t* counts;         // [blocks, bins]
};

ActivationStatsPlan activation_stats_plan(const CudaDevice& device, const ActivationStatsArgs& args);

void activation_stats_cuda(const ActivationStatsCuda& args, const CudaStream& stream);

}  // namespace fastnorm
