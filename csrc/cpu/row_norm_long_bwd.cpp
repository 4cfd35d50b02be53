// row_norm backward where a set is a run longer than kSetChunk: all rows of a band are summed chunk by chunk, then
// swept tile by tile, so that the tile's part of dweight and dbias stays in L1 for all of them.
#include <cstring>

#include "cpu/kernels.h"
#include "cpu/row_norm_elements.h"

namespace fastnorm {
namespace FASTNORM_ISA {
namespace {

template <class T>
ChannelSums sum_piece(const RowNormBwd& args, int64_t set, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const int64_t at = set * args.shape.K + begin;
  const A* weight = offset<A>(args.weight, set % args.shape.G * args.shape.K + begin);
  ChannelSums sums;
  with_dz<T, Steps::any>(args, at, true, nullptr, elements_z<T>(args, set, begin), [&](auto dz) FASTNORM_INLINED {
    sums = grad_sums(offset<T>(args.x, at), dz, weight, end - begin, numbers_of<A>(args, set));
  });
  return sums;
}

// dx of elements [begin, begin + n) of a set, at most kLongTile, and their part of dweight and dbias. D is T, where dz
// lies in memory, or the arithmetic's type, where it is a tile.
template <class T, class D>
void write_piece(const RowNormBwd& args, const RowGrad& grad, int64_t set, int64_t begin, int64_t n, const D* dz,
                 acc_t<T>* dweight, acc_t<T>* dbias) {
  using A = acc_t<T>;
  const int64_t at = set * args.shape.K + begin;
  GradRows<T> row;
  row.x = offset<T>(args.x, at), row.dx = offset<T>(args.dx, at);
  row.weight = offset<A>(args.weight, set % args.shape.G * args.shape.K + begin);
  row.count = 1, row.stride = args.shape.width();
  row.set[0] = numbers_of<A>(args, set), row.grad[0] = narrow<A>(grad);
  const GradPiece<A> piece{0, n, dweight, dbias, args.stream};
  const auto of_row = [=](int64_t i, int m) FASTNORM_INLINED { return load(dz + i, m); };
  if (row.dx == nullptr) {
    if (dweight != nullptr) grad_sums<true>(row.x, of_row, row.weight, n, row.set[0], dweight, dbias);
    return;
  }
  if (dweight == nullptr) write_dx(row, 0, piece, of_row);
  else sweep<1>(row, 0, piece, [=](int, int64_t i, int m) FASTNORM_INLINED { return load(dz + i, m); });
}

// The same, wherever dz comes from.
template <class T>
void write_piece(const RowNormBwd& args, const RowGrad& grad, int64_t set, int64_t begin, int64_t n,
                 acc_t<T>* dweight, acc_t<T>* dbias) {
  using A = acc_t<T>;
  const int64_t at = set * args.shape.K + begin;
  if (const T* dz = stored_dz<T>(args)) return write_piece<T>(args, grad, set, begin, n, dz + at, dweight, dbias);
  alignas(kCacheLine) A tile[kLongTile];
  with_dz<T, Steps::any>(args, at, false, nullptr, elements_z<T>(args, set, begin), [&](auto dz) FASTNORM_INLINED {
    write_run(tile, n, false, dz);
  });
  write_piece<T>(args, grad, set, begin, n, const_cast<const A*>(tile), dweight, dbias);
}

}  // namespace

void long_grad_sum(const RowNormBwd& args, ChannelSums* partial, int64_t n0, int64_t unit0, int64_t unit1) {
  const int64_t K = args.shape.K, chunks = chunks_of_set(args.shape);
  with_dtype(args.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for (int64_t u = unit0; u < unit1; ++u) {
      const int64_t begin = u % chunks * kSetChunk, end = begin + kSetChunk < K ? begin + kSetChunk : K;
      partial[u] = sum_piece<T>(args, n0 * args.shape.G + u / chunks, begin, end);
    }
  });
}

void long_grad_write(const RowNormBwd& args, const RowGrad* grads, int64_t n0, int64_t n1, int64_t unit0,
                     int64_t unit1) {
  const int64_t K = args.shape.K, width = args.shape.width(), block = samples_of_block(args.shape);
  const int64_t tiles = (K + kLongTile - 1) / kLongTile;
  with_dtype(args.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using A = acc_t<T>;
    for (int64_t u = unit0; u < unit1; ++u) {
      const int64_t g = u / tiles, begin = u % tiles * kLongTile, n = K - begin < kLongTile ? K - begin : kLongTile;
      A* dweight = offset<A>(args.parameters, n0 / block * 2 * width + g * K + begin);
      A* dbias = dweight == nullptr ? nullptr : dweight + width;
      if (dweight != nullptr && n0 % block == 0) {
        const size_t bytes = static_cast<size_t>(n) * sizeof(A);
        std::memset(dweight, 0, bytes), std::memset(dbias, 0, bytes);
      }
      for (int64_t set = n0 * args.shape.G + g; set < n1 * args.shape.G; set += args.shape.G) {
        write_piece<T>(args, grads[set - n0 * args.shape.G], set, begin, n, dweight, dbias);
      }
    }
  });
  if (args.stream) stream_fence();
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
