// GeneralRelu on runs of elements: one read (two in the backward) and one write each.
#include "op/general_relu.h"

#include "op/cpu_kernels.h"
#include "cpu/loops.h"

namespace fastnorm {
namespace FASTNORM_ISA {

void general_relu_fwd(const GeneralReluArgs& args, int64_t begin, int64_t end) {
  with_types(args, [&](auto* type, const auto act) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* x = static_cast<const T*>(args.x) + begin;
    write_run(static_cast<T*>(args.out) + begin, end - begin, args.stream,
              [=](int64_t i, int n) FASTNORM_INLINED { return act.forward(load(x + i, n)); });
  });
}

void general_relu_bwd(const GeneralReluArgs& args, int64_t begin, int64_t end) {
  with_types(args, [&](auto* type, const auto act) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T *x = static_cast<const T*>(args.x) + begin, *dy = static_cast<const T*>(args.dy) + begin;
    write_run(static_cast<T*>(args.out) + begin, end - begin, args.stream,
              [=](int64_t i, int n) FASTNORM_INLINED { return act.backward(load(x + i, n), load(dy + i, n)); });
  });
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
