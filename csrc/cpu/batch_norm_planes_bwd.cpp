// Batch norm backward where a channel is N runs of S elements (contiguous [N, C, S]).
#include <type_traits>

#include "cpu/batch_norm_grad.h"
#include "cpu/kernels.h"
#include "cpu/loops.h"

namespace fastnorm {
namespace FASTNORM_ISA {
namespace {

// Adds dz and dz * (x - mean) of elements [begin, end) to the lanes of s and q.
template <Way kWay, Sweep kSweep, class T, class Act>
FASTNORM_INLINE void sum_piece(const GradRun<T>& g, int64_t begin, int64_t end, const Affine<acc_t<T>>& affine,
                               const Act& act, vec_t<T>& s, vec_t<T>& q) {
  using V = vec_t<T>;
  constexpr int L = kLanes<T>;
  const V mean = splat<V>(affine.mean), scale = splat<V>(affine.scale), bias = splat<V>(affine.bias);
  const auto dz = [&](int64_t i, int n, V x) {
    return dz_written<kWay, kSweep>(g, i, n, x, mean, scale, bias, act);
  };
  V s0 = s, q0 = q, s1{}, q1{};
  int64_t i = begin;
  for (; i + 2 * L <= end; i += 2 * L) {
    const V xa = load(g.x + i), xb = load(g.x + i + L);
    const V a = dz(i, L, xa), b = dz(i + L, L, xb);
    s0 += a, s1 += b;
    q0 += a * (xa - mean), q1 += b * (xb - mean);
  }
  for (; i < end; i += L) {
    const int n = end - i < L ? static_cast<int>(end - i) : L;
    const V x = load(g.x + i, n);
    const V d = keep_first<T>(dz(i, n, x), n);
    s1 += d;
    q1 += keep_first<T>(d * (x - mean), n);
  }
  s = s0 + s1;
  q = q0 + q1;
}

// Adds one chunk of `count` neighbouring channels to their sums, and writes what this sweep can write.
template <Way kWay, Sweep kSweep, class T, class Act>
void sum_planes(const BatchNormBwd& args, const Act& activation, const PlaneChunk& k, int64_t c0, int count,
                const Affine<acc_t<T>>* affine, ChannelSums* sums) {
  constexpr int64_t kPiece = kChain * kLanes<T>;
  const Act act = activation;
  const int64_t length = k.s1 - k.s0, ahead = next_sample<T>(args.shape, k);
  PairSums<vec_t<T>, kMostChannels> lanes;
  for (int64_t n = k.n0; n < k.n1; ++n) {
    for (int j = 0; j < count; ++j) {
      const GradRun<T> g(args, (n * args.shape.C + c0 + j) * args.shape.S + k.s0);
      if (ahead > 0) prefetch_run(g.x + ahead, length), prefetch_run(g.dy + ahead, length);
      int64_t i = 0;
      for (; i + kPiece <= length; i += kPiece) {
        sum_piece<kWay, kSweep>(g, i, i + kPiece, affine[j], act, lanes.s[j], lanes.q[j]);
        lanes.take(j);
      }
      sum_piece<kWay, kSweep>(g, i, length, affine[j], act, lanes.s[j], lanes.q[j]);
    }
    lanes.round(length % kPiece / kLanes<T> + 1, count);
  }
  lanes.add_to(sums, count);
}

template <class T, class Act>
void sum_chunk(const BatchNormBwd& args, const Act& act, const PlaneChunk& k, int64_t c0, int count,
               const Affine<acc_t<T>>* affine, ChannelSums* sums) {
  with_sweep(args, [&](auto way, auto sweep) {
    sum_planes<decltype(way)::value, decltype(sweep)::value, T>(args, act, k, c0, count, affine, sums);
  });
}

// The numbers of dx = dz * scale + (x - mean) * slope + offset, in the arithmetic's type.
template <class A>
struct GradNumbers {
  A scale, slope, offset;

  static GradNumbers of(const InputGrad& g) {
    return {static_cast<A>(g.scale), static_cast<A>(g.slope), static_cast<A>(g.offset)};
  }
};

// dx of elements [s0, s1) of one plane.
template <Way kWay, class T, class Act>
FASTNORM_INLINE void write_plane(const BatchNormBwd& args, const Act& act, const Affine<acc_t<T>>& affine,
                                 const GradNumbers<acc_t<T>>& grad, int64_t plane, int64_t s0, int64_t s1) {
  using V = vec_t<T>;
  const GradRun<T> g(args, plane * args.shape.S + s0);
  const V mean = splat<V>(affine.mean), scale = splat<V>(affine.scale), bias = splat<V>(affine.bias);
  const V factor = splat<V>(grad.scale), slope = splat<V>(grad.slope), offset = splat<V>(grad.offset);
  const T *next_x = next_channels(args, g.x), *next_dy = next_channels(args, g.dy);
  write_run(g.dx, s1 - s0, args.stream, [&](int64_t i, int n) {
    prefetch(next_x + i), prefetch(next_dy + i);
    const V x = load(g.x + i, n);
    return dz_at<kWay>(g, i, n, x, mean, scale, bias, act) * factor + ((x - mean) * slope + offset);
  });
}

// dx of `count` neighbouring channels, last planes first: those that were read last are still in the cache.
template <Way kWay, class T, class Act>
void write_channels(const BatchNormBwd& args, const Act& activation, int64_t c0, int count,
                    const Affine<acc_t<T>>* affine, const GradNumbers<acc_t<T>>* grads) {
  const Act act = activation;
  for (int64_t n = args.shape.N - 1; n >= 0; --n) {
    for (int j = 0; j < count; ++j) {
      write_plane<kWay, T>(args, act, affine[j], grads[j], n * args.shape.C + c0 + j, 0, args.shape.S);
    }
  }
}

}  // namespace

void planes_bwd(const BatchNormBwd& args, int64_t channel0, int64_t channel1) {
  const int64_t chunks = chunks_of_channel(args.shape);
  with_types(args, [&](auto* type, const auto& act) {
    using T = std::remove_pointer_t<decltype(type)>;
    for (int64_t c0 = channel0; c0 < channel1; c0 += args.together) {
      const int count = static_cast<int>(channel1 - c0 < args.together ? channel1 - c0 : args.together);
      Affine<acc_t<T>> affine[kMostChannels];
      ChannelSums sums[kMostChannels] = {};
      GradNumbers<acc_t<T>> grads[kMostChannels];
      for (int j = 0; j < count; ++j) affine[j] = affine_of<acc_t<T>>(args, c0 + j);
      for (int64_t k = 0; k < chunks; ++k) sum_chunk<T>(args, act, plane_chunk(args.shape, k), c0, count, affine, sums);
      for (int j = 0; j < count; ++j) grads[j] = GradNumbers<acc_t<T>>::of(finish_grads(args, c0 + j, sums[j]));
      if (args.dx == nullptr || !args.batch_stats) continue;
      with_way<T>(args, [&](auto way) {
        write_channels<decltype(way)::value, T>(args, act, c0, count, affine, grads);
      });
    }
  });
}

void planes_grad_sum(const BatchNormBwd& args, ChannelSums* partial, int64_t unit0, int64_t unit1) {
  const int64_t chunks = chunks_of_channel(args.shape);
  with_types(args, [&](auto* type, const auto& act) {
    using T = std::remove_pointer_t<decltype(type)>;
    for (int64_t u = unit0; u < unit1; ++u) {
      const int64_t c = u / chunks;
      const auto affine = affine_of<acc_t<T>>(args, c);
      partial[u] = {};
      sum_chunk<T>(args, act, plane_chunk(args.shape, u % chunks), c, 1, &affine, partial + u);
    }
  });
}

void planes_grad_write(const BatchNormBwd& args, const InputGrad* grads, int64_t unit0, int64_t unit1) {
  const int64_t pieces = pieces_of_plane(args.shape);
  with_types(args, [&](auto* type, const auto& act) {
    using T = std::remove_pointer_t<decltype(type)>;
    for (int64_t u = unit0; u < unit1; ++u) {
      const int64_t plane = u / pieces, c = plane % args.shape.C;
      const int64_t s0 = u % pieces * kChunkElements, s1 = s0 + kChunkElements;
      const auto affine = affine_of<acc_t<T>>(args, c);
      const auto grad = GradNumbers<acc_t<T>>::of(grads[c]);
      with_way<T>(args, [&](auto way) {
        write_plane<decltype(way)::value, T>(args, act, affine, grad, plane, s0, s1 < args.shape.S ? s1 : args.shape.S);
      });
    }
  });
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
