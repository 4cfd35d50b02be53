// Batch norm backward where a channel is N runs of S elements (contiguous [N, C, S]).
#include <type_traits>

#include "cpu/channel.h"
#include "cpu/kernels.h"
#include "cpu/loops.h"

namespace fastnorm {
namespace FASTNORM_ISA {
namespace {

// dz of vectors of one plane: dy through the activation, whose argument is computed again from x.
template <class T, class Act>
struct PlaneGrad {
  using V = vec_t<T>;
  const T *x, *dy, *residual;
  const Act& act;
  V mean, scale, bias;

  FASTNORM_INLINE PlaneGrad(const BatchNormBwd& args, const Act& a, const Affine<acc_t<T>>& affine, int64_t at)
      : x(static_cast<const T*>(args.x) + at), dy(static_cast<const T*>(args.dy) + at),
        residual(args.residual == nullptr ? nullptr : static_cast<const T*>(args.residual) + at), act(a),
        mean(splat<V>(affine.mean)), scale(splat<V>(affine.scale)), bias(splat<V>(affine.bias)) {}

  template <bool kResidual>
  FASTNORM_INLINE V dz(int64_t i, int n, V xi) const {
    V z = normalized(xi, mean, scale, bias);
    if constexpr (kResidual) z = z + load(residual + i, n);
    return act.backward(z, load(dy + i, n));
  }
};

// Adds dz and dz * (x - mean) of a run's elements [begin, end) to the lanes of s and q; each(i, n, dz) sees every dz.
template <bool kResidual, class T, class Act, class F>
FASTNORM_INLINE void sum_piece(const PlaneGrad<T, Act>& g, int64_t begin, int64_t end, vec_t<T>& s, vec_t<T>& q,
                               F each) {
  using V = vec_t<T>;
  constexpr int L = kLanes<T>;
  V s1{}, q1{};
  int64_t i = begin;
  for (; i + 2 * L <= end; i += 2 * L) {
    const V xa = load(g.x + i), xb = load(g.x + i + L);
    const V a = g.template dz<kResidual>(i, L, xa), b = g.template dz<kResidual>(i + L, L, xb);
    each(i, L, a), each(i + L, L, b);
    s += a, s1 += b;
    q += a * (xa - g.mean), q1 += b * (xb - g.mean);
  }
  for (; i < end; i += L) {
    const int n = end - i < L ? static_cast<int>(end - i) : L;
    const V xi = load(g.x + i, n);
    const V dz = keep_first<T>(g.template dz<kResidual>(i, n, xi), n);
    each(i, n, dz);
    s1 += dz;
    q1 += keep_first<T>(dz * (xi - g.mean), n);
  }
  s += s1;
  q += q1;
}

// A whole run of channel j, emptied into double where it is long.
template <bool kResidual, class T, class Act, class F>
FASTNORM_INLINE void sum_run(const PlaneGrad<T, Act>& g, int64_t length, PairSums<vec_t<T>, kMostChannels>& lanes,
                             int j, F each) {
  constexpr int64_t kPiece = kChain * kLanes<T>;
  int64_t i = 0;
  for (; i + kPiece <= length; i += kPiece) {
    sum_piece<kResidual>(g, i, i + kPiece, lanes.s[j], lanes.q[j], each);
    lanes.take(j);
  }
  sum_piece<kResidual>(g, i, length, lanes.s[j], lanes.q[j], each);
}

// Activations are passed by value here and below: a kernel's own copy lies in registers, where no store can be taken to
// change it.
//
// Adds one chunk of `count` neighbouring channels to their sums, and writes what can be written in this sweep:
// dresidual, which is dz, and with fixed statistics dx, which is scale * dz.
template <class T, class Act>
void sum_chunk(const BatchNormBwd& args, const Act act, const PlaneChunk& k, int64_t c0, int count,
               const Affine<acc_t<T>>* affine, bool write_dx, ChannelSums* sums) {
  using V = vec_t<T>;
  const int64_t length = k.s1 - k.s0;
  PairSums<V, kMostChannels> lanes;
  for (int64_t n = k.n0; n < k.n1; ++n) {
    for (int j = 0; j < count; ++j) {
      const int64_t at = (n * args.shape.C + c0 + j) * args.shape.S + k.s0;
      const PlaneGrad<T, Act> g(args, act, affine[j], at);
      T* dx = write_dx ? static_cast<T*>(args.dx) + at : nullptr;
      T* dresidual = args.dresidual == nullptr ? nullptr : static_cast<T*>(args.dresidual) + at;
      const auto each = [&](int64_t i, int m, V dz) {
        if (dresidual != nullptr) store(dresidual + i, dz, m);
        if (dx != nullptr) store(dx + i, dz * g.scale, m);
      };
      if (g.residual != nullptr) sum_run<true>(g, length, lanes, j, each);
      else if (write_dx) sum_run<false>(g, length, lanes, j, each);
      else sum_run<false>(g, length, lanes, j, [](int64_t, int, V) {});
    }
    lanes.round(length % (kChain * kLanes<T>) / kLanes<T> + 1, count);
  }
  lanes.add_to(sums, count);
}

// The numbers of dx = dz * scale + (x - mean) * slope + offset, in the arithmetic's type.
template <class A>
struct GradNumbers {
  A scale, slope, offset;

  static GradNumbers of(const InputGrad& g) {
    return {static_cast<A>(g.scale), static_cast<A>(g.slope), static_cast<A>(g.offset)};
  }
};

// dx of elements [s0, s1) of one plane, from dz as computed again, or as dresidual holds it.
template <class T, class Act>
FASTNORM_INLINE void write_plane(const BatchNormBwd& args, const Act& act, const Affine<acc_t<T>>& affine,
                                 const GradNumbers<acc_t<T>>& grad, int64_t plane, int64_t s0, int64_t s1) {
  using V = vec_t<T>;
  const int64_t at = plane * args.shape.S + s0, length = s1 - s0;
  const PlaneGrad<T, Act> g(args, act, affine, at);
  const V scale = splat<V>(grad.scale), slope = splat<V>(grad.slope), offset = splat<V>(grad.offset);
  T* dx = static_cast<T*>(args.dx) + at;
  const auto dx_of = [&](V dz, V xi) { return dz * scale + ((xi - g.mean) * slope + offset); };
  if (g.residual != nullptr && args.dresidual != nullptr && sizeof(T) >= sizeof(acc_t<T>)) {
    const T* dz = static_cast<const T*>(args.dresidual) + at;
    write_run(dx, length, args.stream, [&](int64_t i, int n) { return dx_of(load(dz + i, n), load(g.x + i, n)); });
  } else if (g.residual != nullptr) {
    write_run(dx, length, args.stream, [&](int64_t i, int n) {
      const V xi = load(g.x + i, n);
      return dx_of(g.template dz<true>(i, n, xi), xi);
    });
  } else {
    write_run(dx, length, args.stream, [&](int64_t i, int n) {
      const V xi = load(g.x + i, n);
      return dx_of(g.template dz<false>(i, n, xi), xi);
    });
  }
}

}  // namespace

void planes_bwd(const BatchNormBwd& args, int64_t channel0, int64_t channel1) {
  const int64_t chunks = chunks_of_channel(args.shape);
  const bool one_sweep = args.dx != nullptr && !args.batch_stats;
  with_types(args, [&](auto* type, const auto act) {
    using T = std::remove_pointer_t<decltype(type)>;
    for (int64_t c0 = channel0; c0 < channel1; c0 += args.together) {
      const int count = static_cast<int>(channel1 - c0 < args.together ? channel1 - c0 : args.together);
      Affine<acc_t<T>> affine[kMostChannels];
      ChannelSums sums[kMostChannels] = {};
      GradNumbers<acc_t<T>> grads[kMostChannels];
      for (int j = 0; j < count; ++j) affine[j] = affine_of<acc_t<T>>(args, c0 + j);
      for (int64_t k = 0; k < chunks; ++k) {
        sum_chunk<T>(args, act, plane_chunk(args.shape, k), c0, count, affine, one_sweep, sums);
      }
      for (int j = 0; j < count; ++j) grads[j] = GradNumbers<acc_t<T>>::of(finish_grads(args, c0 + j, sums[j]));
      if (args.dx == nullptr || one_sweep) continue;
      for (int64_t n = args.shape.N - 1; n >= 0; --n) {
        for (int j = 0; j < count; ++j) {
          write_plane<T>(args, act, affine[j], grads[j], n * args.shape.C + c0 + j, 0, args.shape.S);
        }
      }
    }
  });
}

void planes_grad_sum(const BatchNormBwd& args, ChannelSums* partial, int64_t unit0, int64_t unit1) {
  const int64_t chunks = chunks_of_channel(args.shape);
  with_types(args, [&](auto* type, const auto act) {
    using T = std::remove_pointer_t<decltype(type)>;
    for (int64_t u = unit0; u < unit1; ++u) {
      const int64_t c = u / chunks;
      const auto affine = affine_of<acc_t<T>>(args, c);
      partial[u] = {};
      const bool write_dx = args.dx != nullptr && !args.batch_stats;
      sum_chunk<T>(args, act, plane_chunk(args.shape, u % chunks), c, 1, &affine, write_dx, partial + u);
    }
  });
}

void planes_grad_write(const BatchNormBwd& args, const InputGrad* grads, int64_t unit0, int64_t unit1) {
  const int64_t pieces = pieces_of_plane(args.shape);
  with_types(args, [&](auto* type, const auto act) {
    using T = std::remove_pointer_t<decltype(type)>;
    for (int64_t u = unit0; u < unit1; ++u) {
      const int64_t plane = u / pieces, c = plane % args.shape.C;
      const int64_t s0 = u % pieces * kChunkElements, s1 = s0 + kChunkElements;
      const auto affine = affine_of<acc_t<T>>(args, c);
      write_plane<T>(args, act, affine, GradNumbers<acc_t<T>>::of(grads[c]), plane, s0, s1 < args.shape.S ? s1 : args.shape.S);
    }
  });
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
