// row_norm forward where a set is a run of K elements with a weight each (layer norm, RMS norm).
#include "cpu/kernels.h"
#include "cpu/row_norm_elements.h"

namespace fastnorm {
namespace FASTNORM_ISA {
namespace {

// y of elements [begin, end) of a set; z goes through a tile unless it is y.
template <class T>
void write_piece(const RowNormFwd& args, int64_t set, int64_t begin, int64_t end, acc_t<T>* tile) {
  using A = acc_t<T>;
  const int64_t K = args.shape.K, at = set * K, weights = set % args.shape.G * K + begin;
  if (tile == nullptr) {
    normalize_elements(offset<T>(args.x, at + begin), offset<T>(args.y, at + begin), end - begin,
                       numbers_of<A>(args, set), offset<A>(args.weight, weights), offset<A>(args.bias, weights),
                       args.stream);
    return;
  }
  for (int64_t i = begin; i < end; i += kTile) {
    const int64_t n = end - i < kTile ? end - i : kTile;
    z_of_elements<T>(args, set, i, n, tile);
    activate_tile<T>(args.act, tile, offset<T>(args.residual, at + i), offset<T>(args.y, at + i), n, args.stream);
  }
}

// Whole sets, so short that all of them make one tile.
template <class T>
void write_short_sets(const RowNormFwd& args, int64_t set, int64_t count, acc_t<T>* tile) {
  const int64_t K = args.shape.K, at = set * K;
  for (int64_t j = 0; j < count; ++j) z_of_elements<T>(args, set + j, 0, K, tile + j * K);
  activate_tile<T>(args.act, tile, offset<T>(args.residual, at), offset<T>(args.y, at), count * K, args.stream);
}

template <class T>
void forward(const RowNormFwd& args, int64_t set0, int64_t set1) {
  const int64_t K = args.shape.K;
  acc_t<T> tile[kTile];
  each_set_group<T>(args, set0, set1, [&](int64_t set, int64_t count) {
    if (tiled(args) && count * K <= kTile) return write_short_sets<T>(args, set, count, tile);
    for (int64_t j = 0; j < count; ++j) write_piece<T>(args, set + j, 0, K, tiled(args) ? tile : nullptr);
  });
}

}  // namespace

void runs_fwd(const RowNormFwd& args, int64_t set0, int64_t set1) {
  with_dtype(args.dtype, [&](auto* type) { forward<std::remove_pointer_t<decltype(type)>>(args, set0, set1); });
  if (args.stream) stream_fence();
}

void runs_write(const RowNormFwd& args, int64_t unit0, int64_t unit1) {
  const int64_t K = args.shape.K, chunks = chunks_of_set(args.shape);
  with_dtype(args.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    acc_t<T> tile[kTile];
    for (int64_t u = unit0; u < unit1; ++u) {
      const int64_t begin = u % chunks * kSetChunk, end = begin + kSetChunk < K ? begin + kSetChunk : K;
      write_piece<T>(args, u / chunks, begin, end, tiled(args) ? tile : nullptr);
    }
  });
  if (args.stream) stream_fence();
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
