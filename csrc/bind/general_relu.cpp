// general_relu on CPU tensors.
#include "bind/activation.h"
#include "bind/direct.h"
#include "op/cpu_kernels.h"

namespace fastnorm {
namespace {

void run(GeneralReluKernel kernel, const GeneralReluArgs& args, int64_t elements) {
  constexpr int64_t kUnit = 4096;  // elements: whole cache lines of every dtype
  parallel((elements + kUnit - 1) / kUnit, elements, [&](int64_t begin, int64_t end) {
    kernel(args, begin * kUnit, end * kUnit < elements ? end * kUnit : elements);
  });
}

Tensor general_relu_fwd(Tensor x, OptionalNumber leak, OptionalNumber sub, OptionalNumber maxv,
                        OptionalNumber max_leak) {
  const Dtype dtype = dtype_of(x, "x");
  const MemoryFormat format = memory_format_of(x);
  const Tensor in = dense(x, format), y = empty_like(x, format);
  const int64_t n = x.numel();
  const GeneralReluArgs args{in.data_ptr(), nullptr, y.data_ptr(), dtype,
                             activation(true, leak, sub, maxv, max_leak), beyond_cache(2 * n * size_of(dtype))};
  run(cpu_kernels().general_relu_fwd, args, n);
  return y;
}

Tensor general_relu_bwd(Tensor dy, Tensor x, OptionalNumber leak, OptionalNumber sub, OptionalNumber maxv,
                        OptionalNumber max_leak) {
  const Dtype dtype = dtype_of(x, "x");
  const MemoryFormat format = memory_format_of(x);
  const Tensor in = dense(x, format), grad = dense_like(dy, x, "dy", format), dx = empty_like(x, format);
  const int64_t n = x.numel();
  const GeneralReluArgs args{in.data_ptr(), grad.data_ptr(), dx.data_ptr(), dtype,
                             activation(true, leak, sub, maxv, max_leak), beyond_cache(3 * n * size_of(dtype))};
  run(cpu_kernels().general_relu_bwd, args, n);
  return dx;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastnorm_native, CPU, m) {
  m.impl("general_relu_fwd", TORCH_BOX(&general_relu_fwd));
  m.impl("general_relu_bwd", TORCH_BOX(&general_relu_bwd));
  add_direct<&general_relu_fwd>("general_relu_fwd");
  add_direct<&general_relu_bwd>("general_relu_bwd");
}

}  // namespace fastnorm
