// The seam of activation_stats: the sums of a dense tensor, taken in chunks, and its histogram.
#pragma once

#include "math/norm.h"
#include "op/tensor.h"

namespace fastnorm {

// Elements. The sums of each chunk are kept apart and added in order: bits do not depend on who took which.
constexpr int64_t kStatsChunk = 16384;
// Histograms side by side that a kernel may count in, so that neighbours of one bin need not wait for each other.
constexpr int64_t kStatsTables = 16;

struct ActivationStatsArgs {
  const void* x;
  int64_t n;
  Dtype dtype;
  int64_t bins;
  double low, high;
};

// The sums are of (x - shift) * unit and of its square.
struct Around {
  double shift, unit;
};

struct ActivationStatsKernels {
  // A value near the mean, exact in x's dtype; 0 where that is not finite. n > 0.
  double (*shift)(const ActivationStatsArgs&);
  // The sums of chunks [begin, end) go to partial[begin..end). With counts, the histogram of these chunks is added to
  // counts[bins]; scratch: kStatsTables * (bins + 1) numbers, in any state.
  void (*sums)(const ActivationStatsArgs&, const Around&, ChannelSums* partial, int64_t* counts, uint32_t* scratch,
               int64_t begin, int64_t end);
};

}  // namespace fastnorm
