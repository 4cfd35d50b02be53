// row_norm forward where a set is the K elements at one position (channels-first layer norm): a tile of positions is
// read row by row, with the positions in the lanes.
#include "cpu/kernels.h"
#include "cpu/row_norm_positions.h"

namespace fastnorm {
namespace FASTNORM_ISA {
namespace {

template <class T>
class Forward {
  using A = acc_t<T>;
  using V = vec_t<T>;

 public:
  explicit Forward(const RowNormFwd& args)
      : args_(args), most_(positions_of_tile(args.shape, args.dtype)),
        wide_(scratch<double>(2 * most_)), mean_(scratch<A>(2 * most_)) {}

  void tile(const PositionTile& tile) const {
    statistics(tile);
    const int64_t K = args_.shape.K, S = args_.shape.S;
    const auto z = positions_z<T>(args_, tile, {mean_.get(), mean_.get() + most_});
    with_y<T>(args_, tile.at, [&](auto y) FASTNORM_INLINED {
      for (int64_t k = 0; k < K; ++k) {
        write_run(offset<T>(args_.y, tile.at + k * S), tile.count, args_.stream,
                  [=](int64_t i, int m) FASTNORM_INLINED { return y(k * S + i, m, z(k * S + i, m, i, k)); });
      }
    });
  }

 private:
  // Two sweeps, the second around the mean that the first one found, which it mends.
  void statistics(const PositionTile& tile) const {
    const double n = static_cast<double>(args_.shape.K);
    A *mean = mean_.get(), *rstd = mean + most_;
    double *sum = wide_.get(), *square = sum + most_;
    for (int64_t i = 0; i < tile.count; ++i) sum[i] = 0, mean[i] = 0;
    if (!args_.rms) {
      add_rows<false>(tile);
      for (int64_t i = 0; i < tile.count; ++i) mean[i] = static_cast<A>(sum[i] / n), sum[i] = 0;
    }
    for (int64_t i = 0; i < tile.count; ++i) square[i] = 0;
    add_rows<true>(tile);
    const double bessel = args_.unbiased ? n / (n - 1) : 1, eps = args_.eps, huge = std::numeric_limits<double>::max();
    for (int64_t i = 0; i < tile.count; ++i) {
      const double distance = args_.rms ? 0 : sum[i] / n, near = mean[i], var = square[i] / n - distance * distance;
      rstd[i] = static_cast<A>(1 / std::sqrt((var < 0 ? 0 : var) * bessel + eps));
      mean[i] = std::fabs(near) <= huge ? static_cast<A>(near + distance) : mean[i];  // an infinite mean stays
    }
    std::memcpy(static_cast<A*>(args_.rstd) + tile.set, rstd, static_cast<size_t>(tile.count) * sizeof(A));
    if (args_.mean == nullptr) return;
    std::memcpy(static_cast<A*>(args_.mean) + tile.set, mean, static_cast<size_t>(tile.count) * sizeof(A));
  }
  // Adds all rows, or their distances from the mean and the squares of them.
  template <bool kSquares>
  void add_rows(const PositionTile& tile) const {
    constexpr int L = kLanes<T>;
    const int64_t K = args_.shape.K, S = args_.shape.S;
    const A* mean = mean_.get();
    double *sum = wide_.get(), *square = sum + most_;
    for (int64_t k = 0; k < K; k += kRows) {
      const int64_t rows = K - k < kRows ? K - k : kRows;
      const T* x = static_cast<const T*>(args_.x) + tile.at + k * S;
      each_position_group<T>(tile.count, [&](int64_t i, auto group, int lanes) {
        constexpr int G = decltype(group)::value;
        V s[G] = {}, q[G] = {}, near[G];
        for (int g = 0; g < G; ++g) near[g] = kSquares ? load(mean + i + g * L, lanes) : V{};
        for (int64_t j = 0; j < rows; ++j) {
          for (int g = 0; g < G; ++g) {
            V v = load(x + j * S + i + g * L, lanes);
            if constexpr (kSquares) v = v - near[g], q[g] += v * v;
            s[g] += v;
          }
        }
        alignas(kCacheLine) A lane[G * L];
        for (int g = 0; g < G; ++g) store(lane + g * L, s[g]);
        add_wide(sum + i, lane, (G - 1) * L + lanes);
        if constexpr (kSquares) {
          for (int g = 0; g < G; ++g) store(lane + g * L, q[g]);
          add_wide(square + i, lane, (G - 1) * L + lanes);
        }
      });
    }
  }

  const RowNormFwd& args_;
  int64_t most_;
  Scratch<double> wide_;  // sums and squares, per position
  Scratch<A> mean_;       // mean and rstd per position
};

}  // namespace

void positions_fwd(const RowNormFwd& args, int64_t tile0, int64_t tile1) {
  with_dtype(args.dtype, [&](auto* type) {
    const Forward<std::remove_pointer_t<decltype(type)>> forward(args);
    for (int64_t t = tile0; t < tile1; ++t) forward.tile(PositionTile::of(args.shape, args.dtype, t));
  });
  if (args.stream) stream_fence();
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
