// Batch norm forward where a channel is N runs of S elements (contiguous [N, C, S]).
#include <cmath>
#include <memory>
#include <type_traits>

#include "cpu/channel.h"
#include "cpu/kernels.h"
#include "cpu/loops.h"
#include "cpu/planes.h"

namespace fastnorm {
namespace FASTNORM_ISA {
namespace {

// Adds x - shift and its square over a tile of rows to the lanes of s and q.
template <int K, class T>
FASTNORM_INLINE void sum_tile(const T* x, const Tile& tile, vec_t<T> shift, vec_t<T>& s, vec_t<T>& q) {
  using V = vec_t<T>;
  constexpr int L = kLanes<T>;
  V sum[K] = {}, square[K] = {};
  for (int64_t r = 0; r < tile.rows; ++r, x += tile.stride) {
    if (tile.ahead > 0) prefetch_run(x + tile.ahead, K * L);
#pragma GCC unroll 2
    for (int k = 0; k + 1 < K; k += 2) {
      V a, b;
      const bool whole = k + 2 < K || tile.last == L;
      if (whole) load_two(x + k * L, a, b);
      else a = load(x + k * L), b = load_first(x + (k + 1) * L, tile.last);
      a -= shift, b = whole ? b - shift : keep_first<T>(b - shift, tile.last);
      sum[k] += a, sum[k + 1] += b;
      square[k] += a * a, square[k + 1] += b * b;
    }
    if constexpr (K % 2 == 1) {
      const V d = keep_first<T>(load(x + (K - 1) * L, tile.last) - shift, tile.last);
      sum[K - 1] += d;
      square[K - 1] += d * d;
    }
  }
  for (int k = 0; k < K; ++k) s += sum[k], q += square[k];
}

// Adds one chunk of `count` neighbouring channels to their sums.
template <class T>
void sum_chunk(const BatchNormFwd& args, const PlaneChunk& k, int64_t c0, int count, const double* shift,
               ChannelSums* sums) {
  using V = vec_t<T>;
  PairSums<V, kMostChannels> lanes;
  each_tile<T>(args.shape, k, c0, count, lanes, [&](int j, int64_t at, const Tile& tile, auto vectors) {
    constexpr int K = decltype(vectors)::value;
    const V near = splat<V>(static_cast<acc_t<T>>(shift[j]));
    sum_tile<K>(static_cast<const T*>(args.x) + at, tile, near, lanes.s[j], lanes.q[j]);
  });
  lanes.add_to(sums, count);
}

// A value near the channel's mean: the average of a few vectors of it, 0 if that is not finite.
template <class T>
double shift_of(const BatchNormFwd& args, int64_t c) {
  constexpr int64_t kPlanes = 4;
  const BatchNormShape& shape = args.shape;
  const int count = shape.S < kLanes<T> ? static_cast<int>(shape.S) : kLanes<T>;
  const int64_t step = shape.N < kPlanes ? 1 : shape.N / kPlanes;
  double sum = 0;
  int64_t taken = 0;
  for (int64_t n = 0; n < shape.N && taken < kPlanes; n += step, ++taken) {
    sum += lane_sum(load(static_cast<const T*>(args.x) + (n * shape.C + c) * shape.S, count));
  }
  const double mean = as_stored<T>(sum / static_cast<double>(taken * count));
  return std::isfinite(mean) ? mean : 0;
}

template <class T>
void statistics(const BatchNormFwd& args, int64_t c0, int count) {
  const int64_t chunks = chunks_of_channel(args.shape);
  const double n = static_cast<double>(args.shape.per_channel());
  double shift[kMostChannels];
  ChannelSums sums[kMostChannels] = {};
  for (int j = 0; j < count; ++j) shift[j] = shift_of<T>(args, c0 + j);
  for (int64_t k = 0; k < chunks; ++k) sum_chunk<T>(args, plane_chunk(args.shape, k), c0, count, shift, sums);
  for (int j = 0; j < count; ++j) {
    Moments m = moments(sums[j], shift[j], n);
    if (m.cancelled) {
      const double mean = as_stored<T>(m.mean);
      ChannelSums second;
      for (int64_t k = 0; k < chunks; ++k) {
        sum_chunk<T>(args, plane_chunk(args.shape, k), c0 + j, 1, &mean, &second);
      }
      m = moments(second, mean, n);
    }
    finish_channel(args, c0 + j, m);
  }
}

// The tensors of a run of elements.
template <class T>
struct Run {
  const T *x, *residual;
  T* y;

  FASTNORM_INLINE Run(const BatchNormFwd& args, int64_t at)
      : x(static_cast<const T*>(args.x) + at),
        residual(args.residual == nullptr ? nullptr : static_cast<const T*>(args.residual) + at),
        y(static_cast<T*>(args.y) + at) {}
};

// y of n elements of one channel, the first of which is element i0 of r.
template <bool kResidual, class T, class Act>
FASTNORM_INLINE void write_plane(const Run<T>& r, int64_t i0, int64_t n, bool stream_out, int64_t ahead, const Act& act,
                                 const Affine<acc_t<T>>& affine) {
  using V = vec_t<T>;
  const V mean = splat<V>(affine.mean), scale = splat<V>(affine.scale), bias = splat<V>(affine.bias);
  write_run(r.y + i0, n, stream_out, [&](int64_t i, int lanes) FASTNORM_INLINED {
    prefetch(r.x + i0 + i + ahead);
    V z = normalized(load(r.x + i0 + i, lanes), mean, scale, bias);
    if constexpr (kResidual) z = z + load(r.residual + i0 + i, lanes);
    return act.forward(z);
  });
}

// y of `count` neighbouring channels, last planes first: those that were read last are still in the cache.
template <bool kResidual, class T, class Act>
void write_channels(const BatchNormFwd& args, const Act& activation, int64_t c0, int count,
                    const Affine<acc_t<T>>* affine) {
  const Act act = activation;
  const int64_t S = args.shape.S, ahead = next_channels<T>(args);
  const bool stream_out = args.stream;
  for (int64_t n = args.shape.N - 1; n >= 0; --n) {
    const Run<T> r(args, (n * args.shape.C + c0) * S);
    for (int j = 0; j < count; ++j) write_plane<kResidual, T>(r, j * S, S, stream_out, ahead, act, affine[j]);
  }
}

}  // namespace

void planes_fwd(const BatchNormFwd& args, int64_t channel0, int64_t channel1) {
  with_types(args, [&](auto* type, const auto& act) {
    using T = std::remove_pointer_t<decltype(type)>;
    for (int64_t c0 = channel0; c0 < channel1; c0 += args.together) {
      const int count = static_cast<int>(channel1 - c0 < args.together ? channel1 - c0 : args.together);
      statistics<T>(args, c0, count);
      Affine<acc_t<T>> affine[kMostChannels];
      for (int j = 0; j < count; ++j) affine[j] = affine_of<acc_t<T>>(args, c0 + j);
      if (args.residual == nullptr) write_channels<false, T>(args, act, c0, count, affine);
      else write_channels<true, T>(args, act, c0, count, affine);
    }
  });
}

void planes_shift(const BatchNormFwd& args, double* shift, int64_t channel0, int64_t channel1) {
  with_dtype(args.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for (int64_t c = channel0; c < channel1; ++c) shift[c] = shift_of<T>(args, c);
  });
}

void planes_sum(const BatchNormFwd& args, const double* shift, ChannelSums* partial, int64_t unit0, int64_t unit1) {
  const int64_t chunks = chunks_of_channel(args.shape);
  with_dtype(args.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for (int64_t u = unit0; u < unit1; ++u) {
      partial[u] = {};
      sum_chunk<T>(args, plane_chunk(args.shape, u % chunks), u / chunks, 1, shift + u / chunks, partial + u);
    }
  });
}

// Statistics that are known already: only the elements are left to write. Short planes that come in many samples find
// their channel's coefficients worked out; a channel's few long ones work them out as they come.
void planes_write(const BatchNormFwd& args, int64_t unit0, int64_t unit1) {
  const int64_t pieces = pieces_of_plane(args.shape), C = args.shape.C;
  with_types(args, [&](auto* type, const auto& act) {
    using T = std::remove_pointer_t<decltype(type)>;
    using Coefficients = Affine<acc_t<T>>;
    const bool many = unit1 - unit0 > C * pieces;
    const std::unique_ptr<Coefficients[]> known(new Coefficients[static_cast<size_t>(many ? C : 0)]);
    for (int64_t c = 0; many && c < C; ++c) known[c] = affine_of<acc_t<T>>(args, c);
    int64_t plane = unit0 / pieces, piece = unit0 % pieces, c = plane % C;  // counted on: a division costs half a plane
    for (int64_t u = unit0; u < unit1; ++u) {
      const int64_t s0 = piece * kChunkElements, last = s0 + kChunkElements;
      const int64_t s1 = last < args.shape.S ? last : args.shape.S;
      const Coefficients affine = many ? known[c] : affine_of<acc_t<T>>(args, c);
      const Run<T> r(args, plane * args.shape.S + s0);
      if (args.residual == nullptr) write_plane<false, T>(r, 0, s1 - s0, args.stream, 0, act, affine);
      else write_plane<true, T>(r, 0, s1 - s0, args.stream, 0, act, affine);
      if (++piece < pieces) continue;
      piece = 0, ++plane;
      c = c + 1 < C ? c + 1 : 0;
    }
  });
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
