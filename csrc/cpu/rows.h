// Batch norm in row order: x is [M, C], a channel is a column.
//
// Rows are joined r at a time into wide rows of W = r * C elements, the smallest multiple of the vector length, with
// the per-channel numbers repeated r times: three channels then cost no more than forty-eight. The M % r rows that are
// left form one shorter wide row. Only where C is odd and large is nothing joined, and a row's last vector partial.
#pragma once

#include "cpu/loops.h"
#include "op/batch_norm.h"
#include "op/scratch.h"

namespace fastnorm {
namespace FASTNORM_ISA {

constexpr int64_t kWriteWidth = 512;   // elements, at least, of a wide row that is written: shorter ones cost overhead
constexpr int64_t kWidestJoin = 2048;  // elements; beyond it a partial vector per row is cheap
constexpr int64_t kTileBytes = 16384;  // of a tile of rows that stays in L1 while its columns are summed

struct RowPlan {
  int64_t C, joined, width;  // width = joined * C

  // Rows joined until whole vectors fill them, and until they are `at_least` wide.
  template <class T>
  static RowPlan of(int64_t C, int64_t at_least) {
    int64_t joined = 1;
    while (joined < kLanes<T> && joined * C % kLanes<T> != 0) joined *= 2;
    while (joined * C < at_least) joined *= 2;
    if (joined * C > kWidestJoin) joined = 1;
    return {C, joined, joined * C};
  }
  // For rows that are written: four vectors where the channels divide them, else wide.
  template <class T>
  static RowPlan written(int64_t C) {
    constexpr int64_t kNarrow = 4 * kLanes<T>;
    return kNarrow % C == 0 ? RowPlan{C, kNarrow / C, kNarrow} : of<T>(C, kWriteWidth);
  }
  template <class T>
  bool narrow() const { return width == 4 * kLanes<T>; }
  // Calls f(first element, wide rows, width) for the wide rows of rows [row0, row1) and for what is left of them.
  template <class F>
  FASTNORM_INLINE void each(int64_t row0, int64_t row1, F f) const {
    const int64_t wide = (row1 - row0) / joined, left = (row1 - row0) % joined;
    if (wide > 0) f(row0 * C, wide, width);
    if (left > 0) f((row0 + wide * joined) * C, int64_t{1}, left * C);
  }
};

// Arrays of `width` numbers each, from one allocation, whole vectors readable at every column.
template <class A>
class Columns {
 public:
  Columns(const RowPlan& plan, int arrays)
      : plan_(plan), pitch_((plan.width + 15) / 16 * 16), data_(zeros<A>(pitch_ * arrays)) {}
  A* operator[](int array) const { return data_.get() + array * pitch_; }
  // value(c) for every channel, repeated across the joined rows.
  template <class F>
  void fill(int array, F value) const {
    A* column = (*this)[array];
    for (int64_t c = 0; c < plan_.C; ++c) column[c] = value(c);
    repeat(array);
  }
  void repeat(int array) const {
    A* column = (*this)[array];
    for (int64_t i = plan_.C; i < plan_.width; ++i) column[i] = column[i - plan_.C];
  }
  void clear(int array) const {
    for (int64_t i = 0; i < pitch_; ++i) (*this)[array][i] = 0;
  }
  // The sum over the joined rows of what stands in channel c's columns.
  double total(int array, int64_t c) const {
    double sum = 0;
    for (int64_t i = c; i < plan_.width; i += plan_.C) sum += (*this)[array][i];
    return sum;
  }

 private:
  RowPlan plan_;
  int64_t pitch_;
  Scratch<A> data_;
};

// Calls f(row0, rows, column, K tag, lanes) for tiles of rows and, inside, groups of up to four vectors of columns.
template <class T, class F>
FASTNORM_INLINE void each_column_group(int64_t rows, int64_t width, int64_t streams, F f) {
  constexpr int L = kLanes<T>;
  const int64_t row_bytes = width * static_cast<int64_t>(sizeof(T)) * streams;
  int64_t tile = width <= 4 * L ? kChain : kTileBytes / row_bytes;
  if (tile < 8) tile = 8;
  for (int64_t r = 0; r < rows; r += tile) {
    const int64_t count = rows - r < tile ? rows - r : tile;
    int64_t c = 0;
    for (; c + 4 * L <= width; c += 4 * L) f(r, count, c, std::integral_constant<int, 4>{}, L);
    if (c + 3 * L <= width) f(r, count, c, std::integral_constant<int, 3>{}, L), c += 3 * L;
    if (c + 2 * L <= width) f(r, count, c, std::integral_constant<int, 2>{}, L), c += 2 * L;
    if (c + L <= width) f(r, count, c, std::integral_constant<int, 1>{}, L), c += L;
    if (c < width) f(r, count, c, std::integral_constant<int, 1>{}, static_cast<int>(width - c));
  }
}

// How far ahead of an element its place in the next tile is, to be fetched meanwhile: inside a tile the columns are
// walked down, in steps that the hardware's prefetcher does not follow. 0 where a tile is one run.
template <class T>
FASTNORM_INLINE int64_t next_tile(int64_t width, int64_t rows) {
  return width > 4 * kLanes<T> ? rows * width : 0;
}

// out[row][column] = f(element, column, lanes), row after row: one stream per tensor. (Sharing a column's numbers
// between four rows saves loads from L1 and costs twice the time where the streams come from L3 or memory.)
template <class T, class F>
FASTNORM_INLINE void write_rows(T* out, int64_t rows, int64_t width, bool stream_out, F f) {
  constexpr int L = kLanes<T>;
  const bool aligned = reinterpret_cast<uintptr_t>(out) % kRegister == 0 &&
                       width * static_cast<int64_t>(sizeof(T)) % kRegister == 0;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t base = r * width;
    int64_t c = 0;
    for (; c + 4 * L <= width; c += 4 * L) {  // four at a time: stores past the caches want bursts
      const auto v0 = f(base + c, c, L), v1 = f(base + c + L, c + L, L);
      const auto v2 = f(base + c + 2 * L, c + 2 * L, L), v3 = f(base + c + 3 * L, c + 3 * L, L);
      T* o = out + base + c;
      if (stream_out && aligned) stream_pair(o, v0, v1), stream_pair(o + 2 * L, v2, v3);
      else store_pair(o, v0, v1), store_pair(o + 2 * L, v2, v3);
    }
    for (; c + L <= width; c += L) store(out + base + c, f(base + c, c, L));
    if (c < width) {
      const int n = static_cast<int>(width - c);
      store_first(out + base + c, f(base + c, c, n), n);
    }
  }
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
