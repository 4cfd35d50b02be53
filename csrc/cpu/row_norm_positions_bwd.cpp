// row_norm backward where a set is the K elements at one position (channels-first layer norm).
#include "cpu/kernels.h"
#include "cpu/row_norm_positions.h"

namespace fastnorm {
namespace FASTNORM_ISA {
namespace {

template <class T>
class Backward {
  using A = acc_t<T>;
  using V = vec_t<T>;
  static constexpr int L = kLanes<T>;

 public:
  explicit Backward(const RowNormBwd& args)
      : args_(args), K_(args.shape.K), S_(args.shape.S), most_(positions_of_tile(args.shape, args.dtype)),
        wide_(scratch<double>(2 * most_)), slope_(zeros<A>(3 * most_)),
        lanes_(scratch<A>(args.parameters != nullptr ? K_ * 2 * L : 0)) {}

  // Tiles [tile0, tile1), whose part of dweight and dbias goes to parameters [2, K].
  void tiles(int64_t tile0, int64_t tile1, A* parameters) const {
    if (parameters != nullptr) std::memset(lanes_.get(), 0, static_cast<size_t>(K_ * 2 * L) * sizeof(A));
    for (int64_t t = tile0; t < tile1; ++t) tile(PositionTile::of(args_.shape, args_.dtype, t));
    for (int64_t k = 0; parameters != nullptr && k < K_; ++k) {
      parameters[k] = static_cast<A>(lane_sum(load(lanes_.get() + k * 2 * L)));
      parameters[K_ + k] = static_cast<A>(lane_sum(load(lanes_.get() + k * 2 * L + L)));
    }
  }

 private:
  void tile(const PositionTile& tile) const {
    const A* mean = args_.mean == nullptr ? slope_.get() + 2 * most_ : static_cast<const A*>(args_.mean) + tile.set;
    const PositionNumbers<A> numbers{mean, static_cast<const A*>(args_.rstd) + tile.set};
    for (int64_t i = 0; i < 2 * most_; ++i) wide_[static_cast<size_t>(i)] = 0;
    const auto z = positions_z<T>(args_, tile, numbers);
    with_dz<T, Steps::any>(args_, tile.at, true, nullptr, z, [&](auto dz) FASTNORM_INLINED {
      for (int64_t k = 0; k < K_; k += kRows) sum_rows(tile, numbers, k, K_ - k < kRows ? K_ - k : kRows, dz);
    });
    if (args_.dx == nullptr) return;
    finish(tile, numbers);
    with_dz<T, Steps::any>(args_, tile.at, false, nullptr, z,
                           [&](auto dz) FASTNORM_INLINED { write_rows(tile, numbers, dz); });
  }
  A weight(int64_t k) const { return args_.weight == nullptr ? A{1} : static_cast<const A*>(args_.weight)[k]; }

  // Adds g = dz * weight and g * (x - mean) of rows [k, k + rows) to the positions' sums, and the rows' own to the
  // lanes of dweight and dbias.
  template <class Dz>
  FASTNORM_INLINE void sum_rows(const PositionTile& tile, const PositionNumbers<A>& numbers, int64_t k, int64_t rows,
                                Dz dz) const {
    const T* x = static_cast<const T*>(args_.x) + tile.at;
    double *sum = wide_.get(), *square = sum + most_;
    A* lanes = lanes_ == nullptr ? nullptr : lanes_.get() + k * 2 * L;
    each_position_group<T>(tile.count, [&](int64_t i, auto group, int m) FASTNORM_INLINED {
      constexpr int G = decltype(group)::value;
      V s[G] = {}, q[G] = {}, mean[G], rstd[G];
      for (int g = 0; g < G; ++g) {
        mean[g] = load(numbers.mean + i + g * L, m), rstd[g] = load(numbers.rstd + i + g * L, m);
      }
      for (int64_t j = 0; j < rows; ++j) {
        const V w = splat<V>(weight(k + j));
        V own_product{}, own_sum{};
        for (int g = 0; g < G; ++g) {
          const int64_t position = i + g * L, at = (k + j) * S_ + position;
          const V d = dz(at, m, position, k + j), centred = load(x + at, m) - mean[g];
          const V weighted = d * w;
          s[g] += weighted, q[g] += weighted * centred;
          own_sum += d, own_product += (d * rstd[g]) * centred;
        }
        if (lanes != nullptr) {
          A* own = lanes + j * 2 * L;
          store(own, load(own) + own_product), store(own + L, load(own + L) + own_sum);
        }
      }
      alignas(kCacheLine) A lane[G * L];
      for (int g = 0; g < G; ++g) store(lane + g * L, s[g]);
      add_wide(sum + i, lane, (G - 1) * L + m);
      for (int g = 0; g < G; ++g) store(lane + g * L, q[g]);
      add_wide(square + i, lane, (G - 1) * L + m);
    });
  }
  void finish(const PositionTile& tile, const PositionNumbers<A>& numbers) const {
    const double n = static_cast<double>(K_);
    A *slope = slope_.get(), *shift = slope + most_;
    for (int64_t i = 0; i < tile.count; ++i) {
      const ChannelSums sums{wide_[static_cast<size_t>(i)], wide_[static_cast<size_t>(most_ + i)]};
      const RowGrad g = row_grad(numbers.rstd[i], sums, n, args_.rms, args_.unbiased);
      slope[i] = static_cast<A>(g.slope), shift[i] = static_cast<A>(g.offset);
    }
  }
  template <class Dz>
  FASTNORM_INLINE void write_rows(const PositionTile& tile, const PositionNumbers<A>& numbers, Dz dz) const {
    const A *mean = numbers.mean, *rstd = numbers.rstd, *slope = slope_.get(), *shift = slope + most_;
    for (int64_t k = 0; k < K_; ++k) {
      const T* x = static_cast<const T*>(args_.x) + tile.at + k * S_;
      const V w = splat<V>(weight(k));
      T* dx = static_cast<T*>(args_.dx) + tile.at + k * S_;
      write_run(dx, tile.count, args_.stream, [=, S = S_](int64_t i, int m) FASTNORM_INLINED {
        const V centred = load(x + i, m) - load(mean + i, m), d = dz(k * S + i, m, i, k);
        return (d * load(rstd + i, m)) * w + (centred * load(slope + i, m) + load(shift + i, m));
      });
    }
  }

  const RowNormBwd& args_;
  int64_t K_, S_, most_;
  Scratch<double> wide_;  // the sums per position
  Scratch<A> slope_;      // slope and offset per position, and zeros: the mean of rms
  Scratch<A> lanes_;      // [K, 2] vectors of dweight and dbias
};

}  // namespace

void positions_bwd(const RowNormBwd& args, int64_t block0, int64_t block1) {
  const int64_t tiles = tiles_of_positions(args.shape, args.dtype), block = tiles_of_block(args.shape, args.dtype);
  const int64_t numbers = 2 * args.shape.K;
  with_dtype(args.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const Backward<T> backward(args);
    for (int64_t b = block0; b < block1; ++b) {
      const int64_t end = (b + 1) * block;
      backward.tiles(b * block, end < tiles ? end : tiles, offset<acc_t<T>>(args.parameters, b * numbers));
    }
  });
  if (args.stream) stream_fence();
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
