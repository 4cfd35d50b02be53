// fastnorm._build: what was built, and what this CPU can do. It needs neither torch nor fastnorm._C, so that
// it can still answer when those do not load. build_config.h is written by build_tools/steps.py.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <utility>
#include <vector>

#include "build_config.h"

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#define FASTNORM_X86 1
#endif

namespace py = pybind11;

namespace {

#ifdef FASTNORM_X86
// The f16c bit by hand: gcc < 11 does not know its name. The registers are those of AVX, which must be enabled.
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __builtin_cpu_supports("avx") && __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#define FASTNORM_SUPPORTS(name) (__builtin_cpu_supports(name) != 0)
#else
bool has_f16c() { return false; }
#define FASTNORM_SUPPORTS(name) false
#endif

py::dict cpu_features() {
  py::dict features;
  features["sse4_2"] = FASTNORM_SUPPORTS("sse4.2");
  features["avx"] = FASTNORM_SUPPORTS("avx");
  features["avx2"] = FASTNORM_SUPPORTS("avx2");
  features["fma"] = FASTNORM_SUPPORTS("fma");
  features["f16c"] = has_f16c();
  features["avx512f"] = FASTNORM_SUPPORTS("avx512f");
  features["avx512bw"] = FASTNORM_SUPPORTS("avx512bw");
  features["avx512vl"] = FASTNORM_SUPPORTS("avx512vl");
  features["avx512dq"] = FASTNORM_SUPPORTS("avx512dq");
  features["avx512bf16"] = FASTNORM_SUPPORTS("avx512bf16");
  return features;
}

py::dict build_info() {
  py::dict isas;
  const std::vector<std::pair<const char*, const char*>> isa_flags = {FASTNORM_ISA_FLAGS};
  for (const auto& [isa, flags] : isa_flags) isas[isa] = flags;
  py::dict info;
  info["compiler"] = FASTNORM_COMPILER;
  info["flags"] = FASTNORM_FLAGS;
  info["isas"] = isas;
  info["torch_version"] = FASTNORM_TORCH_VERSION;
  info["torch_target_version"] = FASTNORM_TORCH_TARGET_VERSION;
  info["sanitized"] = FASTNORM_SANITIZED;
  info["cuda_archs"] = std::vector<std::string>{FASTNORM_CUDA_TARGETS};
  return info;
}

}  // namespace

PYBIND11_MODULE(_build, m) {
  m.doc() = "What was built into fastnorm's extension modules, and what this CPU can do.";
  m.def("build_info", &build_info,
        "Compiler, flags, instruction sets (name -> extra flags), torch version, sanitized or not, CUDA archs.");
  m.def("cpu_features", &cpu_features, "Instruction-set extensions that this CPU and its OS offer.");
}
