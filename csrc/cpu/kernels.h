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

void load_parameter(const Parameter& parameter, Dtype arithmetic, void* out);
void store_parameter(const Parameter& parameter, Dtype arithmetic, const void* partial, int64_t units, int64_t stride,
                     int64_t row0, int64_t row1);
void sets_shift(const RowNormFwd& args, double* shift, int64_t set0, int64_t set1);
void sets_sum(const RowNormFwd& args, const double* shift, ChannelSums* partial, int64_t unit0, int64_t unit1);
void runs_fwd(const RowNormFwd& args, int64_t set0, int64_t set1);
void runs_write(const RowNormFwd& args, int64_t unit0, int64_t unit1);
void group_planes_fwd(const RowNormFwd& args, int64_t set0, int64_t set1);
void group_planes_write(const RowNormFwd& args, int64_t unit0, int64_t unit1);
void group_columns_fwd(const RowNormFwd& args, int64_t n0, int64_t n1);
void group_columns_shift(const RowNormFwd& args, double* shift, int64_t n0, int64_t n1);
void group_columns_sum(const RowNormFwd& args, const double* shift, ChannelSums* partial, int64_t unit0, int64_t unit1);
bool group_columns_finish(const RowNormFwd& args, int64_t n, const ChannelSums* partial, double* shift, bool again);
void group_columns_write(const RowNormFwd& args, int64_t unit0, int64_t unit1);
void positions_fwd(const RowNormFwd& args, int64_t tile0, int64_t tile1);

void runs_bwd(const RowNormBwd& args, int64_t block0, int64_t block1);
void long_grad_sum(const RowNormBwd& args, ChannelSums* partial, int64_t n0, int64_t unit0, int64_t unit1);
void long_grad_write(const RowNormBwd& args, const RowGrad* grads, int64_t n0, int64_t n1, int64_t unit0,
                     int64_t unit1);
void group_planes_bwd(const RowNormBwd& args, int64_t set0, int64_t set1);
void group_planes_grad_sum(const RowNormBwd& args, ChannelSums* partial, int64_t unit0, int64_t unit1);
RowGrad group_planes_grad_finish(const RowNormBwd& args, int64_t set, const ChannelSums* partial);
void group_planes_grad_write(const RowNormBwd& args, const RowGrad* grads, int64_t unit0, int64_t unit1);
void group_columns_bwd(const RowNormBwd& args, int64_t n0, int64_t n1);
void group_columns_grad_sum(const RowNormBwd& args, ChannelSums* partial, int64_t unit0, int64_t unit1);
void group_columns_grad_finish(const RowNormBwd& args, int64_t n, ChannelSums* partial, RowGrad* grads);
void group_columns_grad_write(const RowNormBwd& args, const RowGrad* grads, int64_t unit0, int64_t unit1);
void positions_bwd(const RowNormBwd& args, int64_t block0, int64_t block1);

double activation_shift(const ActivationStatsArgs& args);
void activation_sums(const ActivationStatsArgs& args, const Around& around, ChannelSums* partial, int64_t* counts,
                     uint32_t* scratch, int64_t begin, int64_t end);

extern const CpuKernels table;

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
