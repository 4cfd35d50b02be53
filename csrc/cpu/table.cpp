#include "cpu/kernels.h"

namespace fastnorm {
namespace FASTNORM_ISA {

#define FASTNORM_STRING_OF(name) #name
#define FASTNORM_STRING(name) FASTNORM_STRING_OF(name)

const CpuKernels table = {
    FASTNORM_STRING(FASTNORM_ISA) + sizeof("isa_") - 1,
    general_relu_fwd,
    general_relu_bwd,
    copy,
    {planes_fwd, planes_shift, planes_sum, planes_write, rows_shift, rows_sum, rows_write,
     planes_bwd, planes_grad_sum, planes_grad_write, rows_grad_sum, rows_grad_write},
    {load_parameter, store_parameter,
     sets_shift, sets_sum, runs_fwd, runs_write, group_planes_fwd, group_planes_write,
     group_columns_fwd, group_columns_shift, group_columns_sum, group_columns_finish, group_columns_write,
     positions_fwd,
     runs_bwd, long_grad_sum, long_grad_write,
     group_planes_bwd, group_planes_grad_sum, group_planes_grad_finish, group_planes_grad_write,
     group_columns_bwd, group_columns_grad_sum, group_columns_grad_finish, group_columns_grad_write,
     positions_bwd},
    {activation_shift, activation_sums},
};

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
