// Every kernel of one instruction set, declared once; the table at the end of csrc/cpu/table.cpp names them.
#pragma once

#include "op/cpu_kernels.h"

namespace fastnorm {
namespace FASTNORM_ISA {

void general_relu_fwd(const GeneralReluArgs& args, int64_t begin, int64_t end);
void general_relu_bwd(const GeneralReluArgs& args, int64_t begin, int64_t end);
void copy(const CopyArgs& args, int64_t begin, int64_t end);

void planes_fwd(const BatchNormFwd& args, int64_t channel0, int64_t channel1);
void planes_shift(const BatchNormFwd& args, double* shift, int64_t channel0, int64_t channel1);
void planes_sum(const BatchNormFwd& args, const double* shift, ChannelSums* partial, int64_t unit0, int64_t unit1);
void planes_write(const BatchNormFwd& args, int64_t unit0, int64_t unit1);
void rows_shift(const BatchNormFwd& args, double* shift);
void rows_sum(const BatchNormFwd& args, const double* shift, ChannelSums* partial, int64_t block0, int64_t block1);
void rows_write(const BatchNormFwd& args, int64_t block0, int64_t block1);

void planes_bwd(const BatchNormBwd& args, int64_t channel0, int64_t channel1);
void planes_grad_sum(const BatchNormBwd& args, ChannelSums* partial, int64_t unit0, int64_t unit1);
void planes_grad_write(const BatchNormBwd& args, const InputGrad* grads, int64_t unit0, int64_t unit1);
void rows_grad_sum(const BatchNormBwd& args, ChannelSums* partial, int64_t block0, int64_t block1);
void rows_grad_write(const BatchNormBwd& args, const InputGrad* grads, int64_t block0, int64_t block1);

extern const CpuKernels table;

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
