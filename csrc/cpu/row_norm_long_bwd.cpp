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
  const int64_t at = set * args.shape.K, weights = set % args.shape.G * args.shape.K;
  const SetNumbers<A> numbers = numbers_of<A>(args, set);
  const auto sums = [&](int64_t i, int64_t n, const auto* dz) {
    return grad_sums(offset<T>(args.x, at + i), dz, offset<A>(args.weight, weights + i), n, numbers);
  };
  if (!args.act.active) return sums(begin, end - begin, offset<T>(args.dy, at + begin));
  A tile[kTile];
  ChannelSums total;
  for (int64_t i = begin; i < end; i += kTile) {
    const int64_t n = end - i < kTile ? end - i : kTile;
    dz_of_rows<T>(args, ElementRows<T>{args, set, 1, i}, 1, n, true, tile);
    const ChannelSums part = sums(i, n, const_cast<const A*>(tile));
    total.sum += part.sum, total.product += part.product;
  }
  return total;
}

// dx of one tile of the sets g of samples [n0, n1), and their part of dweight and dbias.
template <class T>
void write_tile(const RowNormBwd& args, const RowGrad* grads, int64_t n0, int64_t n1, int64_t g, int64_t begin,
                int64_t n, acc_t<T>* dweight, acc_t<T>* dbias) {
  using A = acc_t<T>;
  const int64_t K = args.shape.K, G = args.shape.G;
  const T* ready = stored_dz<T>(args);
  A tile[kTile];
  const auto write = [&](int64_t set, const auto* dz) {
    GradRows<T, std::remove_const_t<std::remove_pointer_t<decltype(dz)>>> rows;
    rows.x = offset<T>(args.x, set * K + begin), rows.dx = offset<T>(args.dx, set * K + begin), rows.dz = dz;
    rows.count = 1, rows.stride = args.shape.width(), rows.dz_stride = rows.stride;
    rows.set[0] = numbers_of<A>(args, set), rows.grad[0] = narrow<A>(grads[set - n0 * G]);
    rows.weight = offset<A>(args.weight, g * K + begin);
    write_grads(rows, {0, n, dweight, dbias, args.stream});
  };
  for (int64_t set = n0 * G + g; set < n1 * G; set += G) {
    if (ready != nullptr) {
      write(set, ready + set * K + begin);
    } else {
      dz_of_rows<T>(args, ElementRows<T>{args, set, 1, begin}, 1, n, false, tile);
      write(set, const_cast<const A*>(tile));
    }
  }
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
      write_tile<T>(args, grads, n0, n1, g, begin, n, dweight, dbias);
    }
  });
  if (args.stream) stream_fence();
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
