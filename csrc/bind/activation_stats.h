// What activation_stats asks of its arguments on every device.
#pragma once

#include <cmath>

#include "bind/tensor.h"

namespace fastnorm {

inline void check_bins(int64_t bins, double low, double high) {
  constexpr int64_t kMostBins = 255;  // as in fastnorm/checks.py
  STD_TORCH_CHECK(bins >= 1 && bins <= kMostBins, "bins must be from 1 to ", kMostBins, ", got ", bins);
  STD_TORCH_CHECK(std::isfinite(low) && std::isfinite(high) && low < high,
                  "the histogram's range must be finite, its low end below its high end");
}

}  // namespace fastnorm
