// row_norm where a set is K neighbouring columns over the S rows of a sample: the numbers of a sample's columns, and
// its tiles. Rows are joined as in batch norm (cpu/rows.h).
#pragma once

#include <initializer_list>
#include <memory>

#include "cpu/row_norm.h"
#include "cpu/rows.h"

namespace fastnorm {
namespace FASTNORM_ISA {

enum Column { kMean, kScale, kBias, kSlope, kShift, kColumns };  // the last two in the backward

// Per-channel numbers of one sample at a time, repeated for rows wide enough to be written, and a tile of such rows.
template <class T>
class SampleColumns {
  using A = acc_t<T>;

 public:
  SampleColumns(const RowNormShape& shape, bool tiled)
      : shape_(shape), plan_(RowPlan::of<T>(shape.width(), kWriteWidth)), columns_(plan_, kColumns) {
    tile_rows_ = plan_.width < kTile ? kTile / plan_.width * plan_.joined : plan_.joined;
    if (tiled) tile_.reset(new A[static_cast<size_t>(tile_rows_ * shape.width())]);
  }
  // z = (x - mean) * scale + bias (R4 with the form of N3).
  template <class Args>
  void affine(const Args& args, int64_t n) const {
    const A *weight = static_cast<const A*>(args.weight), *bias = static_cast<const A*>(args.bias);
    each(n, [&](int64_t set, int64_t c) {
      const SetNumbers<A> numbers = numbers_of<A>(args, set);
      columns_[kMean][c] = numbers.mean;
      columns_[kScale][c] = (weight == nullptr ? A{1} : weight[c]) * numbers.rstd;
      columns_[kBias][c] = bias == nullptr ? A{0} : bias[c];
    });
    for (const Column column : {kMean, kScale, kBias}) columns_.repeat(column);
  }
  void gradient(const RowGrad* grads, int64_t n) const {
    each(n, [&](int64_t set, int64_t c) {
      const SetGrad<A> grad = narrow<A>(grads[set - n * shape_.G]);
      columns_[kSlope][c] = grad.slope, columns_[kShift][c] = grad.offset;
    });
    for (const Column column : {kSlope, kShift}) columns_.repeat(column);
  }
  // out = z of rows that begin at element `first`; as T it is y, in the arithmetic's type z of a tile.
  template <class O>
  void normalize(const T* x, O* out, int64_t rows, bool stream_out) const {
    const A *mean = columns_[kMean], *scale = columns_[kScale], *bias = columns_[kBias];
    const int64_t row0 = std::is_same_v<O, T> ? normalize_narrow(x, out, rows, stream_out) : 0;
    plan_.each(row0, rows, [&](int64_t first, int64_t wide, int64_t width) {
      if constexpr (std::is_same_v<O, T>) {
        if (width % (4 * kLanes<T>) == 0) return normalize_tiles(x + first, out + first, wide, width, stream_out);
      }
      const T* p = x + first;
      write_rows(out + first, wide, width, stream_out, [=](int64_t i, int64_t c, int m) FASTNORM_INLINED {
        return normalized(load(p + i, m), load(mean + c), load(scale + c), load(bias + c));
      });
    });
  }
  const RowPlan& plan() const { return plan_; }
  const A* operator[](Column column) const { return columns_[column]; }
  A* tile() const { return tile_.get(); }
  int64_t tile_rows() const { return tile_rows_; }

 private:
  // Tiles of a few rows, four vectors of columns at a time: their numbers are loaded once for all rows of the tile.
  void normalize_tiles(const T* x, T* y, int64_t rows, int64_t width, bool stream_out) const {
    using V = vec_t<T>;
    constexpr int L = kLanes<T>, K = 4;
    constexpr int64_t kRows = 8;
    const bool streams = stream_out && reinterpret_cast<uintptr_t>(y) % kRegister == 0;
    for (int64_t row = 0; row < rows; row += kRows) {
      const int64_t end = (rows - row < kRows ? rows : row + kRows) * width;
      for (int64_t c = 0; c < width; c += K * L) {
        V mean[K], scale[K], bias[K];
        for (int k = 0; k < K; ++k) {
          mean[k] = load(columns_[kMean] + c + k * L), scale[k] = load(columns_[kScale] + c + k * L);
          bias[k] = load(columns_[kBias] + c + k * L);
        }
        for (int64_t i = row * width + c; i < end; i += width) {
          V v[K];
          for (int k = 0; k < K; ++k) v[k] = normalized(load(x + i + k * L), mean[k], scale[k], bias[k]);
          if (streams) stream_pair(y + i, v[0], v[1]), stream_pair(y + i + 2 * L, v[2], v[3]);
          else store_pair(y + i, v[0], v[1]), store_pair(y + i + 2 * L, v[2], v[3]);
        }
      }
    }
  }
  // Where the channels divide four vectors, their numbers stay in registers. Returns how many rows that served.
  template <class O>
  int64_t normalize_narrow(const T* x, O* y, int64_t rows, bool stream_out) const {
    using V = vec_t<T>;
    constexpr int L = kLanes<T>, K = 4;
    const int64_t C = shape_.width(), served = K * L % C == 0 ? rows - rows % (K * L / C) : 0;
    const bool streams = stream_out && reinterpret_cast<uintptr_t>(y) % kRegister == 0;
    V mean[K], scale[K], bias[K];
    for (int k = 0; k < K; ++k) {
      mean[k] = load(columns_[kMean] + k * L), scale[k] = load(columns_[kScale] + k * L);
      bias[k] = load(columns_[kBias] + k * L);
    }
    for (int64_t i = 0; i < served * C; i += K * L) {
      V v[K];
      for (int k = 0; k < K; ++k) v[k] = normalized(load(x + i + k * L), mean[k], scale[k], bias[k]);
      if (streams) stream_pair(y + i, v[0], v[1]), stream_pair(y + i + 2 * L, v[2], v[3]);
      else store_pair(y + i, v[0], v[1]), store_pair(y + i + 2 * L, v[2], v[3]);
    }
    return served;
  }
  template <class F>
  void each(int64_t n, F f) const {
    for (int64_t g = 0; g < shape_.G; ++g) {
      for (int64_t k = 0; k < shape_.K; ++k) f(n * shape_.G + g, g * shape_.K + k);
    }
  }

  RowNormShape shape_;
  RowPlan plan_;
  Columns<A> columns_;
  int64_t tile_rows_;
  std::unique_ptr<A[]> tile_;
};

// Wide rows from element `first` on. z is the forward's.
template <class T>
struct ColumnRows {
  using A = acc_t<T>;
  const RowNormBwd& args;
  const A *mean, *scale, *bias;
  int64_t first, width;

  struct Z {
    const T* x;
    const A *mean, *scale, *bias;

    FASTNORM_INLINE vec_t<T> operator()(int64_t i, int m) const {
      return normalized(load(x + i, m), load(mean + i), load(scale + i), load(bias + i));
    }
  };
  FASTNORM_INLINE int64_t at(int64_t j) const { return first + j * width; }
  FASTNORM_INLINE Z row(int64_t j) const { return {offset<T>(args.x, at(j)), mean, scale, bias}; }
};

FASTNORM_INLINE int64_t block_end(const RowNormShape& shape, int64_t block) {
  const int64_t row = (block + 1) * kBlockRows;
  return row < shape.S ? row : shape.S;
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
