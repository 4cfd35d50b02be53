// Batch norm forward where a channel is a column of [M, C] (channels_last, or [N, C]).
#include <cmath>
#include <type_traits>

#include "cpu/channel.h"
#include "cpu/kernels.h"
#include "cpu/rows.h"

namespace fastnorm {
namespace FASTNORM_ISA {
namespace {

// Adds x - shift and its square, column by column, to s and q.
template <class T>
void sum_columns(const T* x, int64_t rows, int64_t width, const acc_t<T>* shift, acc_t<T>* s, acc_t<T>* q) {
  using V = vec_t<T>;
  constexpr int L = kLanes<T>;
  each_column_group<T>(rows, width, 1, [&](int64_t r, int64_t count, int64_t c, auto group, int lanes) {
    constexpr int K = decltype(group)::value;
    V near[K], sum[K] = {}, square[K] = {};
    for (int k = 0; k < K; ++k) near[k] = load(shift + c + k * L);
    const T* p = x + r * width + c;
    const int64_t ahead = next_tile<T>(width, count);
    for (int64_t i = 0; i < count; ++i, p += width) {
      for (int k = 0; ahead > 0 && k < K; ++k) prefetch(p + ahead + k * L);
      for (int k = 0; k < K; ++k) {
        const V d = keep_first<T>(load(p + k * L, lanes) - near[k], lanes);
        sum[k] += d;
        square[k] += d * d;
      }
    }
    for (int k = 0; k < K; ++k) {
      store(s + c + k * L, load(s + c + k * L) + sum[k]);
      store(q + c + k * L, load(q + c + k * L) + square[k]);
    }
  });
}

template <bool kResidual, class T, class Act>
void write_wide(const BatchNormFwd& args, const Act act, const RowPlan& plan, const Columns<acc_t<T>>& numbers,
                int64_t row0, int64_t row1) {
  const auto *mean = numbers[0], *scale = numbers[1], *bias = numbers[2];
  plan.each(row0, row1, [&](int64_t first, int64_t rows, int64_t width) {
    const T* x = static_cast<const T*>(args.x) + first;
    const T* residual = kResidual ? static_cast<const T*>(args.residual) + first : nullptr;
    T* y = static_cast<T*>(args.y) + first;
    write_rows(y, rows, width, args.stream, [=](int64_t i, int64_t c, int n) FASTNORM_INLINED {
      auto z = normalized(load(x + i, n), load(mean + c), load(scale + c), load(bias + c));
      if constexpr (kResidual) z = z + load(residual + i, n);
      return act.forward(z);
    });
  });
}

// Rows that are four vectors wide, alone or joined: their columns' numbers stay in registers.
template <bool kResidual, class T, class Act>
void write_narrow(const BatchNormFwd& args, const Act& activation, const Columns<acc_t<T>>& numbers, int64_t first,
                  int64_t rows) {
  using V = vec_t<T>;
  constexpr int L = kLanes<T>, K = 4;
  const Act act = activation;
  V mean[K], scale[K], bias[K];
  for (int k = 0; k < K; ++k) {
    mean[k] = load(numbers[0] + k * L), scale[k] = load(numbers[1] + k * L), bias[k] = load(numbers[2] + k * L);
  }
  const T* x = static_cast<const T*>(args.x) + first;
  const T* residual = kResidual ? static_cast<const T*>(args.residual) + first : nullptr;
  T* y = static_cast<T*>(args.y) + first;
  const bool stream_out = args.stream && reinterpret_cast<uintptr_t>(y) % kRegister == 0;
  for (int64_t i = 0; i < rows * K * L; i += K * L) {
    V v[K];
    for (int k = 0; k < K; ++k) {
      v[k] = normalized(load(x + i + k * L), mean[k], scale[k], bias[k]);
      if constexpr (kResidual) v[k] = v[k] + load(residual + i + k * L);
      v[k] = act.forward(v[k]);
    }
    if (stream_out) stream_pair(y + i, v[0], v[1]), stream_pair(y + i + 2 * L, v[2], v[3]);
    else store_pair(y + i, v[0], v[1]), store_pair(y + i + 2 * L, v[2], v[3]);
  }
}

// y of rows [row0, row1), by the way that fits the number of channels.
template <bool kResidual, class T, class Act>
void write_all(const BatchNormFwd& args, const Act& act, int64_t row0, int64_t row1) {
  using A = acc_t<T>;
  const int64_t C = args.shape.C;
  const RowPlan plan = RowPlan::written<T>(C);
  const Columns<A> numbers(plan, 3);
  numbers.fill(0, [&](int64_t c) { return affine_of<A>(args, c).mean; });
  numbers.fill(1, [&](int64_t c) { return affine_of<A>(args, c).scale; });
  numbers.fill(2, [&](int64_t c) { return affine_of<A>(args, c).bias; });
  if (plan.narrow<T>()) {
    const int64_t rows = (row1 - row0) / plan.joined;
    write_narrow<kResidual, T>(args, act, numbers, row0 * C, rows);
    row0 += rows * plan.joined;
  }
  write_wide<kResidual, T>(args, act, plan, numbers, row0, row1);
}

}  // namespace

void rows_shift(const BatchNormFwd& args, double* shift) {
  constexpr int64_t kRows = 16;
  const int64_t M = args.shape.N, C = args.shape.C, step = M < kRows ? 1 : M / kRows;
  with_dtype(args.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const RowPlan plan{C, 1, C};
    const Columns<acc_t<T>> sums(plan, 3);
    int64_t taken = 0;
    for (int64_t r = 0; r < M && taken < kRows; r += step, ++taken) {
      sum_columns(static_cast<const T*>(args.x) + r * C, 1, C, sums[0], sums[1], sums[2]);
    }
    for (int64_t c = 0; c < C; ++c) {
      const double mean = as_stored<T>(static_cast<double>(sums[1][c]) / static_cast<double>(taken));
      shift[c] = std::isfinite(mean) ? mean : 0;
    }
  });
}

void rows_sum(const BatchNormFwd& args, const double* shift, ChannelSums* partial, int64_t block0, int64_t block1) {
  const int64_t M = args.shape.N, C = args.shape.C, block = rows_of_block(args.shape);
  with_dtype(args.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using A = acc_t<T>;
    const RowPlan plan = RowPlan::of<T>(C, 0);
    const Columns<A> columns(plan, 3);
    columns.fill(0, [&](int64_t c) { return static_cast<A>(shift[c]); });
    for (int64_t b = block0; b < block1; ++b) {
      columns.clear(1), columns.clear(2);
      plan.each(b * block, b * block + block < M ? b * block + block : M,
                [&](int64_t first, int64_t rows, int64_t width) {
                  sum_columns(static_cast<const T*>(args.x) + first, rows, width, columns[0], columns[1], columns[2]);
                });
      for (int64_t c = 0; c < C; ++c) partial[b * C + c] = {columns.total(1, c), columns.total(2, c)};
    }
  });
}

void rows_write(const BatchNormFwd& args, int64_t block0, int64_t block1) {
  const int64_t block = rows_of_block(args.shape), last = block1 * block;
  const int64_t row1 = last < args.shape.N ? last : args.shape.N;
  with_types(args, [&](auto* type, const auto& act) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (args.residual == nullptr) write_all<false, T>(args, act, block0 * block, row1);
    else write_all<true, T>(args, act, block0 * block, row1);
  });
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
