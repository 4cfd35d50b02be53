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
};

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
