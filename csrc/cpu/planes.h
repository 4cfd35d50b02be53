// Planes cut into tiles: rows of up to four vectors, down which sums are kept in registers.
#pragma once

#include <type_traits>

#include "cpu/sums.h"
#include "op/batch_norm.h"

namespace fastnorm {
namespace FASTNORM_ISA {

// `rows` rows of K vectors, `stride` elements apart; the last vector of each has `last` elements. The elements `ahead`
// of a row are fetched with it; 0: the hardware's prefetcher finds its own way.
struct Tile {
  int64_t rows, stride, ahead;
  int last;
};

constexpr int64_t kTileSamples = 8;  // more open more pages at once, one alone is all overhead
constexpr int64_t kAhead = 512;      // elements

// Calls f with the number of vectors, as a tag, that hold n elements, at most four.
template <int L, class F>
FASTNORM_INLINE void with_vectors(int64_t n, F f) {
  if (n > 3 * L) f(std::integral_constant<int, 4>{}, n < 4 * L ? static_cast<int>(n - 3 * L) : L);
  else if (n > 2 * L) f(std::integral_constant<int, 3>{}, static_cast<int>(n - 2 * L));
  else if (n > L) f(std::integral_constant<int, 2>{}, static_cast<int>(n - L));
  else f(std::integral_constant<int, 1>{}, static_cast<int>(n));
}

// Short planes: down a tile lie the same elements of some samples.
template <class T, class Lanes, class F>
FASTNORM_INLINE void tiles_down_samples(const BatchNormShape& shape, const PlaneChunk& k, int64_t c0, int count,
                                        Lanes& lanes, F f) {
  constexpr int L = kLanes<T>;
  constexpr int64_t kWidth = 4 * L;
  const int64_t length = k.s1 - k.s0, sample = shape.C * shape.S;
  for (int64_t n = k.n0; n < k.n1; n += kTileSamples) {
    const int64_t rows = k.n1 - n < kTileSamples ? k.n1 - n : kTileSamples;
    for (int j = 0; j < count; ++j) {
      const int64_t start = (n * shape.C + c0 + j) * shape.S + k.s0;
      for (int64_t i = 0; i < length; i += kWidth) {
        with_vectors<L>(length - i, [&](auto vectors, int last) {
          f(j, start + i, Tile{rows, sample, kAhead, last}, vectors);
        });
      }
    }
    lanes.round(rows + length / kWidth, count);
  }
}

// Long ones: down a tile lies what follows in the same plane.
template <class T, class Lanes, class F>
FASTNORM_INLINE void tiles_along_planes(const BatchNormShape& shape, const PlaneChunk& k, int64_t c0, int count,
                                        Lanes& lanes, F f) {
  constexpr int L = kLanes<T>;
  constexpr int64_t kWidth = 4 * L;
  const int64_t full = (k.s1 - k.s0) / kWidth, rest = (k.s1 - k.s0) % kWidth;
  for (int64_t n = k.n0; n < k.n1; ++n) {
    for (int j = 0; j < count; ++j) {
      const int64_t start = (n * shape.C + c0 + j) * shape.S + k.s0;
      for (int64_t r = 0; r < full; r += kChain) {
        const int64_t rows = full - r < kChain ? full - r : kChain;
        f(j, start + r * kWidth, Tile{rows, kWidth, 0, L}, std::integral_constant<int, 4>{});
        lanes.take(j);
      }
      if (rest == 0) continue;
      with_vectors<L>(rest, [&](auto vectors, int last) {
        f(j, start + full * kWidth, Tile{1, 0, 0, last}, vectors);
      });
      lanes.take(j);
    }
  }
}

// Calls f(channel - c0, element, tile, K tag) for the tiles of one chunk of `count` channels.
template <class T, class Lanes, class F>
FASTNORM_INLINE void each_tile(const BatchNormShape& shape, const PlaneChunk& k, int64_t c0, int count, Lanes& lanes,
                               F f) {
  const bool is_short = short_plane((k.s1 - k.s0) * static_cast<int64_t>(sizeof(T)));
  if (is_short) tiles_down_samples<T>(shape, k, c0, count, lanes, f);
  else tiles_along_planes<T>(shape, k, c0, count, lanes, f);
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
