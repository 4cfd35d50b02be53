// The table of CPU kernels of one instruction set, and the choice of one for this CPU.
#pragma once

#include "op/activation_stats.h"
#include "op/batch_norm.h"
#include "op/copy.h"
#include "op/general_relu.h"
#include "op/row_norm.h"

namespace fastnorm {

struct CpuKernels {
  const char* isa;
  GeneralReluKernel general_relu_fwd, general_relu_bwd;
  CopyKernel copy;
  BatchNormKernels batch_norm;
  RowNormKernels row_norm;
  ActivationStatsKernels activation_stats;
};

// The best that this CPU can run, or what FASTNORM_CPU=default|avx2|avx512 asks for; chosen at the first call.
const CpuKernels& cpu_kernels();

}  // namespace fastnorm
