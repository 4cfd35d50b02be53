// row_norm forward where a set is K planes of S elements, one after the other (group and instance norm).
#include "cpu/kernels.h"
#include "cpu/row_norm_planes.h"

namespace fastnorm {
namespace FASTNORM_ISA {
namespace {

// y of elements [s0, s1) of planes [plane0, plane1).
template <class T>
void write_planes(const RowNormFwd& args, int64_t plane0, int64_t plane1, int64_t s0, int64_t s1) {
  using A = acc_t<T>;
  const int64_t S = args.shape.S;
  if (!tiled(args)) {
    for (int64_t plane = plane0; plane < plane1; ++plane) {
      normalize_plane(offset<T>(args.x, plane * S + s0), offset<T>(args.y, plane * S + s0), s1 - s0,
                      plane_numbers<A>(args, plane), args.stream);
    }
    return;
  }
  A tile[kTile];
  each_plane_tile(plane0, plane1, s0, s1, [&](int64_t plane, int64_t count, int64_t begin, int64_t end) {
    const int64_t at = plane * S + begin, n = end - begin;
    for (int64_t j = 0; j < count; ++j) z_of_plane<T>(args, plane + j, begin, end, tile + j * n);
    activate_tile<T>(args.act, tile, offset<T>(args.residual, at), offset<T>(args.y, at), count * n, args.stream);
  });
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
