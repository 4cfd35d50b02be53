// The benchmark's floors, in a namespace of their own: fastnorm_bench.
#include "bind/tensor.h"
#include "op/cpu_kernels.h"

namespace fastnorm {
namespace {

void run(const Tensor& a, const Tensor* b, const Tensor& out, bool stream) {
  constexpr int64_t kUnit = 4096;
  const int64_t n = a.numel();
  const CopyArgs args{a.data_ptr(), b == nullptr ? nullptr : b->data_ptr(), out.data_ptr(), dtype_of(a, "a"), stream};
  parallel((n + kUnit - 1) / kUnit, n, [&](int64_t begin, int64_t end) {
    cpu_kernels().copy(args, begin * kUnit, end * kUnit < n ? end * kUnit : n);
  });
}

void check(const Tensor& t, const Tensor& like) {
  STD_TORCH_CHECK(t.is_cpu() && t.numel() == like.numel() && t.scalar_type() == like.scalar_type() &&
                      t.is_contiguous() && like.is_contiguous(),
                  "the floors take contiguous CPU tensors of one size and dtype");
}

void copy(Tensor a, Tensor out, bool stream) {
  check(out, a);
  run(a, nullptr, out, stream);
}

void add(Tensor a, Tensor b, Tensor out, bool stream) {
  check(b, a), check(out, a);
  run(a, &b, out, stream);
}

}  // namespace

STABLE_TORCH_LIBRARY(fastnorm_bench, m) {
  m.def("copy(Tensor a, Tensor(a!) out, bool stream) -> ()");
  m.def("add(Tensor a, Tensor b, Tensor(a!) out, bool stream) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(fastnorm_bench, CPU, m) {
  m.impl("copy", TORCH_BOX(&copy));
  m.impl("add", TORCH_BOX(&add));
}

}  // namespace fastnorm
