// Batch norm backward where a channel is a column of [M, C] (channels_last, or [N, C]).
#include <type_traits>

#include "cpu/batch_norm_grad.h"
#include "cpu/kernels.h"
#include "cpu/rows.h"

namespace fastnorm {
namespace FASTNORM_ISA {
namespace {

enum Column { kMean, kScale, kBias, kFirst, kSecond, kThird, kColumns };  // kFirst...: sums, or the input's gradient

template <class T>
Columns<acc_t<T>> affine_columns(const BatchNormBwd& args, const RowPlan& plan) {
  using A = acc_t<T>;
  Columns<A> columns(plan, kColumns);
  columns.fill(kMean, [&](int64_t c) { return affine_of<A>(args, c).mean; });
  columns.fill(kScale, [&](int64_t c) { return affine_of<A>(args, c).scale; });
  columns.fill(kBias, [&](int64_t c) { return affine_of<A>(args, c).bias; });
  return columns;
}

// Adds dz and dz * (x - mean), column by column, to the first two sums.
template <Way kWay, Sweep kSweep, class T, class Act>
void sum_columns(const GradRun<T> g, const Act& activation, int64_t rows, int64_t width,
                 const Columns<acc_t<T>>& columns) {
  using V = vec_t<T>;
  constexpr int L = kLanes<T>;
  const Act act = activation;
  each_column_group<T>(rows, width, 2, [&](int64_t r, int64_t count, int64_t c, auto group, int lanes) {
    constexpr int K = decltype(group)::value;
    V mean[K], scale[K], bias[K], s[K] = {}, q[K] = {};
    for (int k = 0; k < K; ++k) {
      mean[k] = load(columns[kMean] + c + k * L);
      scale[k] = load(columns[kScale] + c + k * L);
      bias[k] = load(columns[kBias] + c + k * L);
    }
    int64_t i = r * width + c;
    const int64_t ahead = next_tile<T>(width, count);
    for (int64_t row = 0; row < count; ++row, i += width) {
      for (int k = 0; ahead > 0 && k < K; ++k) {
        const int64_t at = i + ahead + k * L;
        prefetch(g.x + at), prefetch(g.dy + at);
        if constexpr (kWay == Way::residual) prefetch(g.residual + at), prefetch_to_write(g.dresidual + at);
      }
      for (int k = 0; k < K; ++k) {
        const V x = load(g.x + i + k * L, lanes);
        const V dz = keep_first<T>(
            dz_written<kWay, kSweep>(g, i + k * L, lanes, x, mean[k], scale[k], bias[k], act), lanes);
        s[k] += dz;
        q[k] += keep_first<T>(dz * (x - mean[k]), lanes);
      }
    }
    for (int k = 0; k < K; ++k) {
      store(columns[kFirst] + c + k * L, load(columns[kFirst] + c + k * L) + s[k]);
      store(columns[kSecond] + c + k * L, load(columns[kSecond] + c + k * L) + q[k]);
    }
  });
}

template <Way kWay, class T, class Act>
void write_wide(const BatchNormBwd& args, const Act& activation, const RowPlan& plan,
                const Columns<acc_t<T>>& columns, int64_t row0, int64_t row1) {
  using V = vec_t<T>;
  const Act act = activation;
  const auto *mean = columns[kMean], *scale = columns[kScale], *bias = columns[kBias];
  const auto *factor = columns[kFirst], *slope = columns[kSecond], *offset = columns[kThird];
  plan.each(row0, row1, [&](int64_t first, int64_t rows, int64_t width) {
    const GradRun<T> g(args, first);
    write_rows(g.dx, rows, width, args.stream, [&](int64_t i, int64_t c, int n) FASTNORM_INLINED {
      const V x = load(g.x + i, n), m = load(mean + c);
      const V dz = dz_at<kWay>(g, i, n, x, m, load(scale + c), load(bias + c), act);
      return dz * load(factor + c) + ((x - m) * load(slope + c) + load(offset + c));
    });
  });
}

// Rows that are four vectors wide, alone or joined: their columns' numbers stay in registers.
template <Way kWay, class T, class Act>
void write_narrow(const BatchNormBwd& args, const Act& activation, const Columns<acc_t<T>>& columns, int64_t first,
                  int64_t rows) {
  using V = vec_t<T>;
  constexpr int L = kLanes<T>, K = 4;
  const Act act = activation;
  V mean[K], scale[K], bias[K], factor[K], slope[K], offset[K];
  for (int k = 0; k < K; ++k) {
    mean[k] = load(columns[kMean] + k * L), scale[k] = load(columns[kScale] + k * L);
    bias[k] = load(columns[kBias] + k * L), factor[k] = load(columns[kFirst] + k * L);
    slope[k] = load(columns[kSecond] + k * L), offset[k] = load(columns[kThird] + k * L);
  }
  const GradRun<T> g(args, first);
  const bool stream_out = args.stream && reinterpret_cast<uintptr_t>(g.dx) % kRegister == 0;
  for (int64_t i = 0; i < rows * K * L; i += K * L) {
    V v[K];
    for (int k = 0; k < K; ++k) {
      const V x = load(g.x + i + k * L);
      v[k] = dz_at<kWay>(g, i + k * L, L, x, mean[k], scale[k], bias[k], act) * factor[k] +
             ((x - mean[k]) * slope[k] + offset[k]);
    }
    if (stream_out) stream_pair(g.dx + i, v[0], v[1]), stream_pair(g.dx + i + 2 * L, v[2], v[3]);
    else store_pair(g.dx + i, v[0], v[1]), store_pair(g.dx + i + 2 * L, v[2], v[3]);
  }
}

// dx of rows [row0, row1), by the way that fits the number of channels.
template <Way kWay, class T, class Act>
void write_all(const BatchNormBwd& args, const Act& act, const InputGrad* grads, int64_t row0, int64_t row1) {
  using A = acc_t<T>;
  const int64_t C = args.shape.C;
  const RowPlan plan = RowPlan::written<T>(C);
  const auto columns = affine_columns<T>(args, plan);
  columns.fill(kFirst, [&](int64_t c) { return static_cast<A>(grads[c].scale); });
  columns.fill(kSecond, [&](int64_t c) { return static_cast<A>(grads[c].slope); });
  columns.fill(kThird, [&](int64_t c) { return static_cast<A>(grads[c].offset); });
  if (plan.narrow<T>()) {
    const int64_t rows = (row1 - row0) / plan.joined;
    write_narrow<kWay, T>(args, act, columns, row0 * C, rows);
    row0 += rows * plan.joined;
  }
  write_wide<kWay, T>(args, act, plan, columns, row0, row1);
}

}  // namespace

void rows_grad_sum(const BatchNormBwd& args, ChannelSums* partial, int64_t block0, int64_t block1) {
  const int64_t M = args.shape.N, C = args.shape.C, block = rows_of_block(args.shape);
  with_types(args, [&](auto* type, const auto& act) {
    using T = std::remove_pointer_t<decltype(type)>;
    const RowPlan plan = RowPlan::of<T>(C, 0);
    const auto columns = affine_columns<T>(args, plan);
    for (int64_t b = block0; b < block1; ++b) {
      columns.clear(kFirst), columns.clear(kSecond);
      plan.each(b * block, b * block + block < M ? b * block + block : M,
                [&](int64_t first, int64_t rows, int64_t width) {
                  with_sweep(args, [&](auto way, auto sweep) {
                    sum_columns<decltype(way)::value, decltype(sweep)::value>(GradRun<T>(args, first), act, rows,
                                                                              width, columns);
                  });
                });
      for (int64_t c = 0; c < C; ++c) partial[b * C + c] = {columns.total(kFirst, c), columns.total(kSecond, c)};
    }
  });
}

void rows_grad_write(const BatchNormBwd& args, const InputGrad* grads, int64_t block0, int64_t block1) {
  const int64_t block = rows_of_block(args.shape), last = block1 * block;
  const int64_t row1 = last < args.shape.N ? last : args.shape.N;
  with_types(args, [&](auto* type, const auto& act) {
    using T = std::remove_pointer_t<decltype(type)>;
    with_way<T>(args, [&](auto way) {
      write_all<decltype(way)::value, T>(args, act, grads, block0 * block, row1);
    });
  });
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
