// Batch norm backward where a channel is a column of [M, C] (channels_last, or [N, C]).
#include <type_traits>

#include "cpu/channel.h"
#include "cpu/kernels.h"
#include "cpu/rows.h"

namespace fastnorm {
namespace FASTNORM_ISA {
namespace {

enum Column { kMean, kScale, kBias, kFirst, kSecond, kThird, kColumns };  // kFirst...: sums, or the input's gradient

template <class T>
struct Pointers {  // of a run of rows
  const T *x, *dy, *residual;
  T *dx, *dresidual;

  Pointers(const BatchNormBwd& args, int64_t first)
      : x(at(args.x, first)), dy(at(args.dy, first)), residual(at(args.residual, first)),
        dx(const_cast<T*>(at(args.dx, first))), dresidual(const_cast<T*>(at(args.dresidual, first))) {}

  static const T* at(const void* p, int64_t first) { return p == nullptr ? nullptr : static_cast<const T*>(p) + first; }
};

template <class T>
Columns<acc_t<T>> affine_columns(const BatchNormBwd& args, const RowPlan& plan) {
  using A = acc_t<T>;
  Columns<A> columns(plan, kColumns);
  columns.fill(kMean, [&](int64_t c) { return affine_of<A>(args, c).mean; });
  columns.fill(kScale, [&](int64_t c) { return affine_of<A>(args, c).scale; });
  columns.fill(kBias, [&](int64_t c) { return affine_of<A>(args, c).bias; });
  return columns;
}

// Adds dz and dz * (x - mean), column by column, to the first two sums. With kMore it also adds a residual to the
// activation's argument and writes what can be written in this sweep: dresidual, which is dz, and now_dx = scale * dz.
template <bool kMore, class T, class Act>
void sum_columns(const Pointers<T> p, T* now_dx, const Act act, int64_t rows, int64_t width,
                 const Columns<acc_t<T>>& columns) {
  using V = vec_t<T>;
  constexpr int L = kLanes<T>;
  each_column_group<T>(rows, width, 2, [&](int64_t r, int64_t count, int64_t c, auto group, int lanes) {
    constexpr int K = decltype(group)::value;
    V mean[K], scale[K], bias[K], s[K] = {}, q[K] = {};
    for (int k = 0; k < K; ++k) {
      mean[k] = load(columns[kMean] + c + k * L);
      scale[k] = load(columns[kScale] + c + k * L);
      bias[k] = load(columns[kBias] + c + k * L);
    }
    int64_t i = r * width + c;
    for (int64_t row = 0; row < count; ++row, i += width) {
      for (int k = 0; k < K; ++k) {
        const V x = load(p.x + i + k * L, lanes);
        V z = normalized(x, mean[k], scale[k], bias[k]);
        if constexpr (kMore) {
          if (p.residual != nullptr) z = z + load(p.residual + i + k * L, lanes);
        }
        const V dz = keep_first<T>(act.backward(z, load(p.dy + i + k * L, lanes)), lanes);
        if constexpr (kMore) {
          if (p.dresidual != nullptr) store(p.dresidual + i + k * L, dz, lanes);
          if (now_dx != nullptr) store(now_dx + i + k * L, dz * scale[k], lanes);
        }
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

template <bool kResidual, class T, class Act>
void write_dx(const Pointers<T> p, const Act act, int64_t rows, int64_t width, const Columns<acc_t<T>>& columns,
              bool stream_out) {
  using V = vec_t<T>;
  const auto *mean = columns[kMean], *scale = columns[kScale], *bias = columns[kBias];
  const auto *first = columns[kFirst], *slope = columns[kSecond], *offset = columns[kThird];
  write_rows(p.dx, rows, width, stream_out, [=](int64_t i, int64_t c, int n) {
    const V x = load(p.x + i, n), m = load(mean + c);
    V z = normalized(x, m, load(scale + c), load(bias + c));
    if constexpr (kResidual) z = z + load(p.residual + i, n);
    return act.backward(z, load(p.dy + i, n)) * load(first + c) + ((x - m) * load(slope + c) + load(offset + c));
  });
}

}  // namespace

void rows_grad_sum(const BatchNormBwd& args, ChannelSums* partial, int64_t block0, int64_t block1) {
  const int64_t M = args.shape.N, C = args.shape.C, block = rows_of_block(args.shape);
  with_types(args, [&](auto* type, const auto act) {
    using T = std::remove_pointer_t<decltype(type)>;
    const RowPlan plan = RowPlan::of<T>(C, 0);
    const auto columns = affine_columns<T>(args, plan);
    for (int64_t b = block0; b < block1; ++b) {
      columns.clear(kFirst), columns.clear(kSecond);
      plan.each(b * block, b * block + block < M ? b * block + block : M,
                [&](int64_t first, int64_t rows, int64_t width) {
                  const Pointers<T> p(args, first);
                  T* now_dx = args.batch_stats ? nullptr : p.dx;
                  if (p.residual != nullptr || now_dx != nullptr) {
                    sum_columns<true>(p, now_dx, act, rows, width, columns);
                  } else {
                    sum_columns<false>(p, now_dx, act, rows, width, columns);
                  }
                });
      for (int64_t c = 0; c < C; ++c) partial[b * C + c] = {columns.total(kFirst, c), columns.total(kSecond, c)};
    }
  });
}

void rows_grad_write(const BatchNormBwd& args, const InputGrad* grads, int64_t block0, int64_t block1) {
  const int64_t M = args.shape.N, C = args.shape.C, block = rows_of_block(args.shape);
  const int64_t row0 = block0 * block, row1 = block1 * block < M ? block1 * block : M;
  with_types(args, [&](auto* type, const auto act) {
    using T = std::remove_pointer_t<decltype(type)>;
    using A = acc_t<T>;
    const RowPlan plan = RowPlan::of<T>(C, kWriteWidth);
    const auto columns = affine_columns<T>(args, plan);
    columns.fill(kFirst, [&](int64_t c) { return static_cast<A>(grads[c].scale); });
    columns.fill(kSecond, [&](int64_t c) { return static_cast<A>(grads[c].slope); });
    columns.fill(kThird, [&](int64_t c) { return static_cast<A>(grads[c].offset); });
    plan.each(row0, row1, [&](int64_t first, int64_t rows, int64_t width) {
      const Pointers<T> p(args, first);
      if (p.residual != nullptr) write_dx<true>(p, act, rows, width, columns, args.stream);
      else write_dx<false>(p, act, rows, width, columns, args.stream);
    });
  });
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
