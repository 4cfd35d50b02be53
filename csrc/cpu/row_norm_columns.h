// row_norm where a set is K neighbouring columns over the S rows of a sample: the numbers of a sample's
// columns. Rows are joined as in batch norm (cpu/rows.h).
#pragma once

#include <initializer_list>

#include "cpu/row_norm.h"
#include "cpu/rows.h"

namespace fastnorm {
namespace FASTNORM_ISA {

enum Column { kMean, kScale, kBias, kSlope, kShift, kColumns };  // the last two in the backward

// Per-channel numbers of one sample at a time, repeated for rows wide enough to be written.
template <class T>
class SampleColumns {
  using A = acc_t<T>;

 public:
  explicit SampleColumns(const RowNormShape& shape)
      : shape_(shape), plan_(RowPlan::of<T>(shape.width(), kWriteWidth)), columns_(plan_, kColumns) {}
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
  // out[i] = y(i, count, z) for rows that begin at x and out. Tiles are for what is read from near: streams from memory
  // want whole rows.
  template <class Y>
  void normalize(const T* x, T* out, int64_t rows, bool near, bool stream_out, Y y) const {
    const int64_t row0 = normalize_narrow(x, out, rows, stream_out, y);
    plan_.each(row0, rows, [&](int64_t first, int64_t wide, int64_t width) {
      if (near && width % (4 * kLanes<T>) == 0) return normalize_tiles(x, out, first, wide, width, stream_out, y);
      const auto z_of = z(x + first);
      write_rows(out + first, wide, width, stream_out, [=](int64_t i, int64_t c, int m) FASTNORM_INLINED {
        return y(first + i, m, z_of(i, m, c));
      });
    });
  }
  // z(i, count, column) of elements x[i].
  FASTNORM_INLINE auto z(const T* x) const {
    const A *mean = columns_[kMean], *scale = columns_[kScale], *bias = columns_[kBias];
    return [=](int64_t i, int m, int64_t c) FASTNORM_INLINED {
      return normalized(load(x + i, m), load(mean + c), load(scale + c), load(bias + c));
    };
  }
  const RowPlan& plan() const { return plan_; }
  const A* operator[](Column column) const { return columns_[column]; }

 private:
  // Tiles of a few rows, four vectors of columns at a time: their numbers are loaded once for all rows of the tile.
  template <class Y>
  void normalize_tiles(const T* x, T* out, int64_t first, int64_t rows, int64_t width, bool stream_out, Y y) const {
    using V = vec_t<T>;
    constexpr int L = kLanes<T>, K = 4;
    constexpr int64_t kRows = 8;
    const bool streams = stream_out && reinterpret_cast<uintptr_t>(out + first) % kRegister == 0;
    for (int64_t row = 0; row < rows; row += kRows) {
      const int64_t end = first + (rows - row < kRows ? rows : row + kRows) * width;
      for (int64_t c = 0; c < width; c += K * L) {
        V mean[K], scale[K], bias[K];
        for (int k = 0; k < K; ++k) {
          mean[k] = load(columns_[kMean] + c + k * L), scale[k] = load(columns_[kScale] + c + k * L);
          bias[k] = load(columns_[kBias] + c + k * L);
        }
        for (int64_t i = first + row * width + c; i < end; i += width) {
          V v[K];
          for (int k = 0; k < K; ++k) {
            v[k] = y(i + k * L, L, normalized(load(x + i + k * L), mean[k], scale[k], bias[k]));
          }
          if (streams) stream_pair(out + i, v[0], v[1]), stream_pair(out + i + 2 * L, v[2], v[3]);
          else store_pair(out + i, v[0], v[1]), store_pair(out + i + 2 * L, v[2], v[3]);
        }
      }
    }
  }
  // Where the channels divide four vectors, their numbers stay in registers. Returns how many rows that served.
  template <class Y>
  int64_t normalize_narrow(const T* x, T* out, int64_t rows, bool stream_out, Y y) const {
    using V = vec_t<T>;
    constexpr int L = kLanes<T>, K = 4;
    const int64_t C = shape_.width(), served = K * L % C == 0 ? rows - rows % (K * L / C) : 0;
    const bool streams = stream_out && reinterpret_cast<uintptr_t>(out) % kRegister == 0;
    V mean[K], scale[K], bias[K];
    for (int k = 0; k < K; ++k) {
      mean[k] = load(columns_[kMean] + k * L), scale[k] = load(columns_[kScale] + k * L);
      bias[k] = load(columns_[kBias] + k * L);
    }
    for (int64_t i = 0; i < served * C; i += K * L) {
      V v[K];
      for (int k = 0; k < K; ++k) {
        v[k] = y(i + k * L, L, normalized(load(x + i + k * L), mean[k], scale[k], bias[k]));
      }
      if (streams) stream_pair(out + i, v[0], v[1]), stream_pair(out + i + 2 * L, v[2], v[3]);
      else store_pair(out + i, v[0], v[1]), store_pair(out + i + 2 * L, v[2], v[3]);
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
};

FASTNORM_INLINE int64_t block_end(const RowNormShape& shape, int64_t block) {
  const int64_t row = (block + 1) * kBlockRows;
  return row < shape.S ? row : shape.S;
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
