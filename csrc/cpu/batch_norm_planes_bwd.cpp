// Batch norm backward where a channel is N runs of S elements (contiguous [N, C, S]).
#include <type_traits>

#include "cpu/batch_norm_grad.h"
#include "cpu/kernels.h"
#include "cpu/loops.h"
#include "cpu/planes.h"

namespace fastnorm {
namespace FASTNORM_ISA {
namespace {

// Adds dz and dz * (x - mean) over a tile of rows to the lanes of s and q.
template <Way kWay, Sweep kSweep, int K, class T, class Act>
FASTNORM_INLINE void sum_tile(const BatchNormBwd& args, int64_t at, const Tile& tile, const Affine<acc_t<T>>& affine,
                              const Act& act, vec_t<T>& s, vec_t<T>& q) {
  using V = vec_t<T>;
  constexpr int L = kLanes<T>;
  const V mean = splat<V>(affine.mean), scale = splat<V>(affine.scale), bias = splat<V>(affine.bias);
  const GradRun<T> g(args, at);
  V sum[K] = {}, product[K] = {};
  int64_t i = 0;
  for (int64_t r = 0; r < tile.rows; ++r, i += tile.stride) {
    if (tile.ahead > 0) prefetch_run(g.x + i + tile.ahead, K * L), prefetch_run(g.dy + i + tile.ahead, K * L);
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) {
      const int n = k + 1 < K ? L : tile.last;
      const V x = load(g.x + i + k * L, n);
      const V dz = dz_written<kWay, kSweep>(g, i + k * L, n, x, mean, scale, bias, act);
      sum[k] += dz;
      product[k] += dz * (x - mean);
    }
  }
  for (int k = 0; k < K; ++k) s += sum[k], q += product[k];
}

// Adds one chunk of `count` neighbouring channels to their sums, and writes what this sweep can write.
template <Way kWay, Sweep kSweep, class T, class Act>
void sum_planes(const BatchNormBwd& args, const Act& activation, const PlaneChunk& k, int64_t c0, int count,
                const Affine<acc_t<T>>* affine, ChannelSums* sums) {
  const Act act = activation;
  PairSums<vec_t<T>, kMostChannels> lanes;
  each_tile<T>(args.shape, k, c0, count, lanes, [&](int j, int64_t at, const Tile& tile, auto vectors) {
    constexpr int K = decltype(vectors)::value;
    sum_tile<kWay, kSweep, K, T>(args, at, tile, affine[j], act, lanes.s[j], lanes.q[j]);
  });
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

// dx of n elements of one channel, the first of which is element i of g.
template <Way kWay, class T, class Act>
FASTNORM_INLINE void write_plane(const GradRun<T>& g, int64_t i0, int64_t n, bool stream_out, int64_t ahead,
                                 const Act& act, const Affine<acc_t<T>>& affine, const GradNumbers<acc_t<T>>& grad) {
  using V = vec_t<T>;
  const V mean = splat<V>(affine.mean), scale = splat<V>(affine.scale), bias = splat<V>(affine.bias);
  const V factor = splat<V>(grad.scale), slope = splat<V>(grad.slope), offset = splat<V>(grad.offset);
  write_run(g.dx + i0, n, stream_out, [&](int64_t i, int lanes) FASTNORM_INLINED {
    prefetch(g.x + i0 + i + ahead), prefetch(g.dy + i0 + i + ahead);
    const V x = load(g.x + i0 + i, lanes);
    return dz_at<kWay>(g, i0 + i, lanes, x, mean, scale, bias, act) * factor + ((x - mean) * slope + offset);
  });
}

// dx of `count` neighbouring channels, last planes first: those that were read last are still in the cache.
template <Way kWay, class T, class Act>
void write_channels(const BatchNormBwd& args, const Act& activation, int64_t c0, int count,
                    const Affine<acc_t<T>>* affine, const GradNumbers<acc_t<T>>* grads) {
  const Act act = activation;
  const int64_t S = args.shape.S, ahead = next_channels<T>(args);
  const bool stream_out = args.stream;
  for (int64_t n = args.shape.N - 1; n >= 0; --n) {
    const GradRun<T> g(args, (n * args.shape.C + c0) * S);
    for (int j = 0; j < count; ++j) write_plane<kWay, T>(g, j * S, S, stream_out, ahead, act, affine[j], grads[j]);
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
        const GradRun<T> g(args, plane * args.shape.S + s0);
        write_plane<decltype(way)::value, T>(g, 0, (s1 < args.shape.S ? s1 : args.shape.S) - s0, args.stream, 0, act,
                                             affine, grad);
      });
    }
  });
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
