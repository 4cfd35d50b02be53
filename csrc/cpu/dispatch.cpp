// Compiled once, for every CPU: picks the table of kernels that this one can run.
#include <cstdlib>
#include <cstring>

#include "op/cpu_kernels.h"
#include "op/optim.h"

namespace fastnorm {

namespace isa_default { extern const CpuKernels table; extern const OptimKernels optim_table; }
#if defined(FASTNORM_HAVE_X86_ISAS)
namespace isa_avx2 { extern const CpuKernels table; extern const OptimKernels optim_table; }
namespace isa_avx512 { extern const CpuKernels table; extern const OptimKernels optim_table; }
#endif

namespace {

bool allowed(const char* isa) {
  const char* wanted = std::getenv("FASTNORM_CPU");
  return wanted == nullptr || *wanted == '\0' || std::strcmp(wanted, isa) == 0;
}

struct Tables {
  const CpuKernels& norms;
  const OptimKernels& optimizers;
};

Tables choose() {
#if defined(FASTNORM_HAVE_X86_ISAS)
  __builtin_cpu_init();
  // Every CPU with AVX2 has F16C, which not every compiler can ask for.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bf16");
  if (avx512 && allowed("avx512")) return {isa_avx512::table, isa_avx512::optim_table};
  if (avx2 && allowed("avx2")) return {isa_avx2::table, isa_avx2::optim_table};
#endif
  return {isa_default::table, isa_default::optim_table};
}

}  // namespace

const CpuKernels& cpu_kernels() {
  static const CpuKernels& chosen = choose().norms;
  return chosen;
}

const OptimKernels& optim_kernels() {
  static const OptimKernels& chosen = choose().optimizers;
  return chosen;
}

}  // namespace fastnorm
