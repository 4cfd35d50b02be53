// Batch norm forward where a channel is N runs of S elements (contiguous [N, C, S]).
#include <cmath>
#include <memory>
#include <type_traits>

#include "cpu/channel.h"
#include "cpu/kernels.h"
#include "cpu/loops.h"

namespace fastnorm {
namespace FASTNORM_ISA {
namespace {

// Adds one chunk of `count` neighbouring channels to their sums.
template <class T>
void sum_chunk(const BatchNormFwd& args, const PlaneChunk& k, int64_t c0, int count, const double* shift,
               ChannelSums* sums) {
  using V = vec_t<T>;
  constexpr int64_t kPiece = kChain * kLanes<T>;
  const BatchNormShape& shape = args.shape;
  const int64_t ahead = next_sample<T>(shape, k);
  PairSums<V, kMostChannels> lanes;
  for (int64_t n = k.n0; n < k.n1; ++n) {
    const T* x = static_cast<const T*>(args.x) + (n * shape.C + c0) * shape.S;
    for (int j = 0; j < count; ++j, x += shape.S) {
      const V near = splat<V>(static_cast<acc_t<T>>(shift[j]));
      if (ahead > 0) prefetch_run(x + ahead + k.s0, k.s1 - k.s0);
      int64_t s = k.s0;
      for (; s + kPiece <= k.s1; s += kPiece) {
        sum_run(x + s, kPiece, near, lanes.s[j], lanes.q[j]);
        lanes.take(j);
      }
      sum_run(x + s, k.s1 - s, near, lanes.s[j], lanes.q[j]);
    }
    lanes.round((k.s1 - k.s0) % kPiece / kLanes<T> + 1, count);
  }
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

// y of elements [s0, s1) of one plane.
template <bool kResidual, class T, class Act>
FASTNORM_INLINE void write_plane(const BatchNormFwd& args, const Act& act, const Affine<acc_t<T>>& affine,
                                 int64_t plane, int64_t s0, int64_t s1) {
  using V = vec_t<T>;
  const int64_t at = plane * args.shape.S + s0;
  const V mean = splat<V>(affine.mean), scale = splat<V>(affine.scale), bias = splat<V>(affine.bias);
  const T* x = static_cast<const T*>(args.x) + at;
  const T* residual = kResidual ? static_cast<const T*>(args.residual) + at : nullptr;
  const T* next = next_channels(args, x);
  write_run(static_cast<T*>(args.y) + at, s1 - s0, args.stream, [&](int64_t i, int n) {
    prefetch(next + i);
    V z = normalized(load(x + i, n), mean, scale, bias);
    if constexpr (kResidual) z = z + load(residual + i, n);
    return act.forward(z);
  });
}

// y of `count` neighbouring channels, last planes first: those that were read last are still in the cache.
template <bool kResidual, class T, class Act>
void write_channels(const BatchNormFwd& args, const Act& activation, int64_t c0, int count,
                    const Affine<acc_t<T>>* affine) {
  const Act act = activation;
  for (int64_t n = args.shape.N - 1; n >= 0; --n) {
    for (int j = 0; j < count; ++j) {
      write_plane<kResidual, T>(args, act, affine[j], n * args.shape.C + c0 + j, 0, args.shape.S);
    }
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
      if (args.residual == nullptr) write_plane<false, T>(args, act, affine, plane, s0, s1);
      else write_plane<true, T>(args, act, affine, plane, s0, s1);
      if (++piece < pieces) continue;
      piece = 0, ++plane;
      c = c + 1 < C ? c + 1 : 0;
    }
  });
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
