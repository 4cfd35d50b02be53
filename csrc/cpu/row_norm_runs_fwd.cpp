// row_norm forward where a set is a run of K elements with a weight each (layer norm, RMS norm).
#include "cpu/kernels.h"
#include "cpu/row_norm_elements.h"

namespace fastnorm {
namespace FASTNORM_ISA {
namespace {

// Calls f with z(i, count) of elements from `begin` on of a set.
template <class T, class F>
FASTNORM_INLINE void with_z(const RowNormFwd& args, int64_t set, int64_t begin, F f) {
  using A = acc_t<T>;
  using V = vec_t<T>;
  if (args.bias != nullptr) return f(elements_z<T>(args, set, begin));
  const SetNumbers<A> numbers = numbers_of<A>(args, set);
  const V mean = splat<V>(numbers.mean), rstd = splat<V>(numbers.rstd);
  const T* x = offset<T>(args.x, set * args.shape.K + begin);
  const A* weight = offset<A>(args.weight, set % args.shape.G * args.shape.K + begin);
  const auto hat = [=](int64_t i, int m) FASTNORM_INLINED { return (load(x + i, m) - mean) * rstd; };
  if (weight == nullptr) return f(hat);
  f([=](int64_t i, int m) FASTNORM_INLINED { return hat(i, m) * load(weight + i, m); });
}

// y of elements [begin, end) of a set.
template <class T>
void write_piece(const RowNormFwd& args, int64_t set, int64_t begin, int64_t end) {
  const int64_t at = set * args.shape.K + begin;
  with_y<T>(args, at, [&](auto y) FASTNORM_INLINED {
    with_z<T>(args, set, begin, [&](auto z) FASTNORM_INLINED {
      write_run(offset<T>(args.y, at), end - begin, args.stream,
                [=](int64_t i, int m) FASTNORM_INLINED { return y(i, m, z(i, m)); });
    });
  });
}

}  // namespace

void runs_fwd(const RowNormFwd& args, int64_t set0, int64_t set1) {
  with_dtype(args.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    each_set_group<T>(args, set0, set1, [&](int64_t set, int64_t count) {
      for (int64_t j = 0; j < count; ++j) write_piece<T>(args, set + j, 0, args.shape.K);
    });
  });
  if (args.stream) stream_fence();
}

void runs_write(const RowNormFwd& args, int64_t unit0, int64_t unit1) {
  const int64_t K = args.shape.K, chunks = chunks_of_set(args.shape);
  with_dtype(args.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for (int64_t u = unit0; u < unit1; ++u) {
      const int64_t begin = u % chunks * kSetChunk, end = begin + kSetChunk < K ? begin + kSetChunk : K;
      write_piece<T>(args, u / chunks, begin, end);
    }
  });
  if (args.stream) stream_fence();
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
