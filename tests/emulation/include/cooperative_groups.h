// The two groups that csrc/cuda waits in, for the emulation.
#pragma once

#include "cuda_runtime.h"

namespace cooperative_groups {

struct grid_group {
  void sync() const { emulation::sync_grid(); }
};
struct cluster_group {
  void sync() const { emulation::sync_cluster(); }
  unsigned block_rank() const { return emulation::self().block->rank; }
  unsigned num_blocks() const { return emulation::current_launch().cluster; }
};
inline grid_group this_grid() { return {}; }
inline cluster_group this_cluster() { return {}; }

}  // namespace cooperative_groups
