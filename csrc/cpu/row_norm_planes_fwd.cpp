// row_norm forward where a set is K planes of S elements, one after the other (group and instance norm).
#include "cpu/kernels.h"
#include "cpu/row_norm_planes.h"

namespace fastnorm {
namespace FASTNORM_ISA {
namespace {

// y of elements [s0, s1) of planes [plane0, plane1).
template <class T>
void write_planes(const RowNormFwd& args, int64_t plane0, int64_t plane1, int64_t s0, int64_t s1) {
  for (int64_t plane = plane0; plane < plane1; ++plane) {
    const int64_t at = plane * args.shape.S + s0;
    const auto z = plane_z<T>(args, plane, s0);
    with_y<T>(args, at, [&](auto y) FASTNORM_INLINED {
      write_run(offset<T>(args.y, at), s1 - s0, args.stream,
                [=](int64_t i, int m) FASTNORM_INLINED { return y(i, m, z(i, m)); });
    });
  }
}

}  // namespace

void group_planes_fwd(const RowNormFwd& args, int64_t set0, int64_t set1) {
  const int64_t K = args.shape.K;
  with_dtype(args.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    each_set_group<T>(args, set0, set1, [&](int64_t set, int64_t count) {
      write_planes<T>(args, set * K, (set + count) * K, 0, args.shape.S);
    });
  });
  if (args.stream) stream_fence();
}

void group_planes_write(const RowNormFwd& args, int64_t unit0, int64_t unit1) {
  const int64_t S = args.shape.S, pieces = pieces_of_plane(args.shape);
  with_dtype(args.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for (int64_t u = unit0; u < unit1; ++u) {
      const int64_t s0 = u % pieces * kSetChunk, s1 = s0 + kSetChunk < S ? s0 + kSetChunk : S;
      write_planes<T>(args, u / pieces, u / pieces + 1, s0, s1);
    }
  });
  if (args.stream) stream_fence();
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
