// row_norm backward where a set is K planes of S elements, one after the other (group and instance norm).
#include <memory>

#include "cpu/kernels.h"
#include "cpu/row_norm_elements.h"
#include "cpu/row_norm_planes.h"

namespace fastnorm {
namespace FASTNORM_ISA {
namespace {

// dz of elements from s on of a plane, as with_dz gives it.
template <class T, class F>
FASTNORM_INLINE void with_plane_dz(const RowNormBwd& args, int64_t plane, int64_t s, bool first_sweep, acc_t<T>* kept,
                                   F f) {
  with_dz<T>(args, plane * args.shape.S + s, first_sweep, kept, plane_z<T>(args, plane, s), f);
}

// How many elements ahead x and dy are fetched while they are summed: fp32 waits for memory, where the hardware's
// prefetcher stops at every page (8 % of the time of a backward); 16-bit types do not, and lose by it.
template <class T>
constexpr int64_t kFetched = sizeof(T) < sizeof(acc_t<T>) ? 0 : 2048 / sizeof(T);

// The sums of dz and dz * (x - mean) of elements [s0, s1) of each plane. kept, unless null, is a place for dz of whole
// planes.
template <class T>
void sum_planes(const RowNormBwd& args, int64_t plane0, int64_t plane1, int64_t s0, int64_t s1, ChannelSums* sums,
                int64_t stride, acc_t<T>* kept) {
  using A = acc_t<T>;
  for (int64_t plane = plane0; plane < plane1; ++plane, sums += stride) {
    const int64_t at = plane * args.shape.S + s0;
    const T *x = offset<T>(args.x, at), *dy = offset<T>(args.dy, at);
    const SetNumbers<A> numbers = numbers_of<A>(args, plane / args.shape.K);
    with_plane_dz<T>(args, plane, s0, true, kept, [&](auto dz) FASTNORM_INLINED {
      const auto fetched = [=](int64_t i, int m) FASTNORM_INLINED {
        if constexpr (kFetched<T> > 0) prefetch(x + i + kFetched<T>), prefetch(dy + i + kFetched<T>);
        return dz(i, m);
      };
      *sums = grad_sums(x, fetched, static_cast<const A*>(nullptr), s1 - s0, numbers);
    });
    kept = offset<A>(kept, args.shape.S);
  }
}

// dx of elements [s0, s1) of planes [plane0, plane1) of one set.
template <class T>
void write_planes(const RowNormBwd& args, const RowGrad& grad, int64_t plane0, int64_t plane1, int64_t s0, int64_t s1,
                  acc_t<T>* kept) {
  using A = acc_t<T>;
  using V = vec_t<T>;
  const V slope = splat<V>(narrow<A>(grad).slope), shift = splat<V>(narrow<A>(grad).offset);
  for (int64_t plane = plane0; plane < plane1; ++plane) {
    const int64_t at = plane * args.shape.S + s0;
    const PlaneNumbers<A> numbers = plane_numbers<A>(args, plane);
    const V mean = splat<V>(numbers.mean), scale = splat<V>(numbers.scale);
    const T* x = offset<T>(args.x, at);
    with_plane_dz<T>(args, plane, s0, false, kept, [&](auto dz) FASTNORM_INLINED {
      write_run(offset<T>(args.dx, at), s1 - s0, args.stream, [=](int64_t i, int m) FASTNORM_INLINED {
        return dz(i, m) * scale + ((load(x + i, m) - mean) * slope + shift);
      });
    });
    kept = offset<A>(kept, args.shape.S);
  }
}

int64_t piece_end(const RowNormShape& shape, int64_t s0) { return s0 + kSetChunk < shape.S ? s0 + kSetChunk : shape.S; }

}  // namespace

RowGrad group_planes_grad_finish(const RowNormBwd& args, int64_t set, const ChannelSums* partial) {
  RowGrad grad;
  with_dtype(args.dtype, [&](auto* type) {
    using A = acc_t<std::remove_pointer_t<decltype(type)>>;
    const int64_t K = args.shape.K, C = args.shape.width(), pieces = pieces_of_plane(args.shape);
    const double rstd = numbers_of<A>(args, set).rstd;
    const int64_t c0 = set % args.shape.G * K;
    A* parameters = offset<A>(args.parameters, set / args.shape.G * 2 * C);
    ChannelSums total;
    for (int64_t k = 0; k < K; ++k) {
      ChannelSums plane;
      for (int64_t p = k * pieces; p < (k + 1) * pieces; ++p) {
        plane.sum += partial[p].sum, plane.product += partial[p].product;
      }
      const double weight = args.weight == nullptr ? 1 : static_cast<const A*>(args.weight)[c0 + k];
      total.sum += weight * plane.sum, total.product += weight * plane.product;
      if (parameters == nullptr) continue;
      parameters[c0 + k] = static_cast<A>(plane.product * rstd);
      parameters[C + c0 + k] = static_cast<A>(plane.sum);
    }
    grad = grad_of(args, rstd, total);
  });
  return grad;
}

void group_planes_bwd(const RowNormBwd& args, int64_t set0, int64_t set1) {
  const int64_t K = args.shape.K, S = args.shape.S, pieces = pieces_of_plane(args.shape);
  const std::unique_ptr<ChannelSums[]> partial(new ChannelSums[static_cast<size_t>(K * pieces)]);
  with_dtype(args.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using A = acc_t<T>;
    const bool keep = args.act.active && args.shape.set_size() <= kSetChunk && sizeof(T) < sizeof(A);
    const Scratch<A> kept = scratch<A>(keep ? K * S : 0);
    for (int64_t set = set0; set < set1; ++set) {
      for (int64_t p = 0; p < pieces; ++p) {
        const int64_t s0 = p * kSetChunk, s1 = piece_end(args.shape, s0);
        sum_planes<T>(args, set * K, set * K + K, s0, s1, partial.get() + p, pieces, kept.get());
      }
      const RowGrad grad = group_planes_grad_finish(args, set, partial.get());
      if (args.dx != nullptr) write_planes<T>(args, grad, set * K, set * K + K, 0, S, kept.get());
    }
  });
  if (args.stream) stream_fence();
}

void group_planes_grad_sum(const RowNormBwd& args, ChannelSums* partial, int64_t unit0, int64_t unit1) {
  const int64_t pieces = pieces_of_plane(args.shape);
  with_dtype(args.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for (int64_t u = unit0; u < unit1; ++u) {
      const int64_t s0 = u % pieces * kSetChunk;
      sum_planes<T>(args, u / pieces, u / pieces + 1, s0, piece_end(args.shape, s0), partial + u, 1, nullptr);
    }
  });
}

void group_planes_grad_write(const RowNormBwd& args, const RowGrad* grads, int64_t unit0, int64_t unit1) {
  const int64_t pieces = pieces_of_plane(args.shape);
  with_dtype(args.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for (int64_t u = unit0; u < unit1; ++u) {
      const int64_t plane = u / pieces, s0 = u % pieces * kSetChunk;
      const RowGrad& grad = grads[plane / args.shape.K];
      write_planes<T>(args, grad, plane, plane + 1, s0, piece_end(args.shape, s0), nullptr);
    }
  });
  if (args.stream) stream_fence();
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
