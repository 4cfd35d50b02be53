// The loops that kernels share: over a run of elements, and over the storage types.
#pragma once

#include <type_traits>

#include "cpu/sums.h"
#include "math/general_relu.h"
#include "op/tensor.h"

namespace fastnorm {
namespace FASTNORM_ISA {

// out[i] = f(i, count) for vectors of count elements; with stream, aligned vectors are written past the caches.
template <class T, class F>
FASTNORM_INLINE void write_run(T* out, int64_t n, bool stream_out, F f) {
  constexpr int L = kLanes<T>;
  int64_t i = 0;
  if (stream_out) {
    const int64_t skew = reinterpret_cast<uintptr_t>(out) % kRegister;
    const int64_t head = skew ? (kRegister - skew) / static_cast<int64_t>(sizeof(T)) : 0;
    if (head <= n && skew % sizeof(T) == 0) {
      for (; i < head; i += L) {
        const int count = head - i < L ? static_cast<int>(head - i) : L;
        store(out + i, f(i, count), count);
      }
      i = head;
      for (; i + 4 * L <= n; i += 4 * L) {
        const auto a = f(i, L), b = f(i + L, L), c = f(i + 2 * L, L), d = f(i + 3 * L, L);
        stream_pair(out + i, a, b), stream_pair(out + i + 2 * L, c, d);
      }
      for (; i + 2 * L <= n; i += 2 * L) {
        const auto a = f(i, L), b = f(i + L, L);
        stream_pair(out + i, a, b);
      }
    }
  }
  for (; i + 4 * L <= n; i += 4 * L) {
    const auto a = f(i, L), b = f(i + L, L), c = f(i + 2 * L, L), d = f(i + 3 * L, L);
    store_pair(out + i, a, b), store_pair(out + i + 2 * L, c, d);
  }
  for (; i + L <= n; i += L) store(out + i, f(i, L));
  if (i < n) store_first(out + i, f(i, static_cast<int>(n - i)), static_cast<int>(n - i));
}

// Calls f with a null pointer of the storage type.
template <class F>
void with_dtype(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::f64: return f(static_cast<double*>(nullptr));
    case Dtype::f32: return f(static_cast<float*>(nullptr));
    case Dtype::bf16: return f(static_cast<bfloat16*>(nullptr));
    case Dtype::f16: return f(static_cast<float16*>(nullptr));
  }
}

// Calls f with a null pointer of the storage type and the activation, and waits for streamed stores.
template <class Args, class F>
void with_types(const Args& args, F&& f) {
  with_dtype(args.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    with_activation(args.act, [&](auto activation) {
      f(type, typename decltype(activation)::template Of<vec_t<T>>(args.act));
    });
  });
  if (args.stream) stream_fence();
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
