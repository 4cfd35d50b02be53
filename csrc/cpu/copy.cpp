// The floors that benchmarks measure norms against: a copy (one read, one write) and a sum (two reads, one write).
#include "op/copy.h"

#include <type_traits>

#include "cpu/kernels.h"
#include "cpu/loops.h"

namespace fastnorm {
namespace FASTNORM_ISA {

void copy(const CopyArgs& args, int64_t begin, int64_t end) {
  with_dtype(args.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T *a = static_cast<const T*>(args.a) + begin, *b = static_cast<const T*>(args.b);
    T* out = static_cast<T*>(args.out) + begin;
    if (b == nullptr) {
      write_run(out, end - begin, args.stream, [&](int64_t i, int n) FASTNORM_INLINED { return load(a + i, n); });
    } else {
      b += begin;
      write_run(out, end - begin, args.stream,
                [&](int64_t i, int n) FASTNORM_INLINED { return load(a + i, n) + load(b + i, n); });
    }
  });
  if (args.stream) stream_fence();
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
