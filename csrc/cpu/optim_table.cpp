// The optimizers' kernels of one instruction set.
#include "cpu/optim.h"

namespace fastnorm {
namespace FASTNORM_ISA {

extern const OptimKernels optim_table;
const OptimKernels optim_table = {sgd, rmsprop, adam, grad_squares, adam_bwd};

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
