// row_norm backward where a set is K neighbouring columns over the rows of a sample (channels_last group and instance
// norm).
#include "cpu/kernels.h"
#include "cpu/row_norm_columns.h"

namespace fastnorm {
namespace FASTNORM_ISA {
namespace {

// What the first sweep reads and writes besides x.
template <class T>
struct GradStreams {
  const T *dy, *residual;
  T* dresidual;

  GradStreams(const RowNormBwd& args, int64_t at)
      : dy(offset<T>(args.dy, at)), residual(offset<T>(args.residual, at)), dresidual(offset<T>(args.dresidual, at)) {}
  FASTNORM_INLINE void fetch(int64_t i) const {
    prefetch(dy + i);
    if (residual != nullptr) prefetch(residual + i);
    if (dresidual != nullptr) prefetch_to_write(dresidual + i);
  }
};

// Adds dz and dz * (x - mean), column by column, to s and q.
template <class T, class Dz>
FASTNORM_INLINE void add_columns(const T* x, const GradStreams<T>& streams, Dz dz, int64_t rows, int64_t width, const acc_t<T>* mean,
                                 acc_t<T>* s, acc_t<T>* q) {
  using V = vec_t<T>;
  constexpr int L = kLanes<T>;
  const auto group_sums = [&](int64_t row, int64_t count, int64_t c, auto group, int lanes) FASTNORM_INLINED {
    constexpr int G = decltype(group)::value;
    V middle[G], sum[G] = {}, product[G] = {};
    for (int k = 0; k < G; ++k) middle[k] = load(mean + c + k * L);
    int64_t i = row * width + c;
    const int64_t ahead = next_tile<T>(width, count);
    for (int64_t r = 0; r < count; ++r, i += width) {
      for (int k = 0; ahead > 0 && k < G; ++k) prefetch(x + i + ahead + k * L), streams.fetch(i + ahead + k * L);
      for (int k = 0; k < G; ++k) {
        const V d = dz(i + k * L, lanes, c + k * L);
        sum[k] += d;
        product[k] += d * keep_first<T>(load(x + i + k * L, lanes) - middle[k], lanes);
      }
    }
    for (int k = 0; k < G; ++k) {
      store(s + c + k * L, load(s + c + k * L) + sum[k]);
      store(q + c + k * L, load(q + c + k * L) + product[k]);
    }
  };
  each_column_group<T>(rows, width, 2, group_sums);
}

constexpr int64_t kKept = 65536;  // elements

template <class T>
class Backward {
  using A = acc_t<T>;

 public:
  // With `whole` samples, summed and then written by this very object, dz is kept in between where that is little.
  Backward(const RowNormBwd& args, bool whole)
      : args_(args), C_(args.shape.width()), narrow_(RowPlan::of<T>(C_, 0)), sums_(narrow_, 3),
        columns_(args.shape) {
    const bool keep = whole && args.act.active && args.shape.sample() <= kKept && sizeof(T) < sizeof(A);
    if (keep) kept_ = scratch<A>(args.shape.sample());
  }

  // The numbers of sample n, for what is summed and, with grads, for what is written.
  void sample(int64_t n, const RowGrad* grads) const {
    columns_.affine(args_, n);
    sums_.fill(0, [&](int64_t c) { return columns_[kMean][c]; });
    if (grads != nullptr) columns_.gradient(grads, n);
  }
  void sum(int64_t n, int64_t block, ChannelSums* partial) const {
    sums_.clear(1), sums_.clear(2);
    const int64_t row0 = block * kBlockRows, rows = block_end(args_.shape, block) - row0;
    const int64_t at = n * args_.shape.sample() + row0 * C_;
    narrow_.each(0, rows, [&](int64_t first, int64_t wide, int64_t width) {
      const T* x = offset<T>(args_.x, at + first);
      const GradStreams<T> streams(args_, at + first);
      with_row_dz(at + first, row0 * C_ + first, true, [&](auto dz) FASTNORM_INLINED {
        add_columns(x, streams, dz, wide, width, sums_[0], sums_[1], sums_[2]);
      });
    });
    for (int64_t c = 0; c < C_; ++c) partial[c] = {sums_.total(1, c), sums_.total(2, c)};
  }
  void write(int64_t n, int64_t row0, int64_t row1) const {
    const int64_t at = n * args_.shape.sample() + row0 * C_;
    const A *mean = columns_[kMean], *scale = columns_[kScale], *slope = columns_[kSlope], *shift = columns_[kShift];
    columns_.plan().each(0, row1 - row0, [&](int64_t first, int64_t wide, int64_t width) {
      const T* x = offset<T>(args_.x, at + first);
      with_row_dz(at + first, row0 * C_ + first, false, [&](auto dz) FASTNORM_INLINED {
        write_rows(offset<T>(args_.dx, at + first), wide, width, args_.stream,
                   [=](int64_t i, int64_t c, int m) FASTNORM_INLINED {
                     const auto centred = load(x + i, m) - load(mean + c);
                     return dz(i, m, c) * load(scale + c) + (centred * load(slope + c) + load(shift + c));
                   });
      });
    });
  }

 private:
  // dz of elements from at + i on, which are elements begin + i of their sample, as with_dz gives it.
  template <class F>
  FASTNORM_INLINE void with_row_dz(int64_t at, int64_t begin, bool first_sweep, F f) const {
    with_dz<T>(args_, at, first_sweep, offset<A>(kept_.get(), begin), columns_.z(offset<T>(args_.x, at)), f);
  }

  const RowNormBwd& args_;
  int64_t C_;
  RowPlan narrow_;
  Columns<A> sums_;
  SampleColumns<T> columns_;
  Scratch<A> kept_;  // [S, C] of dz
};

// Adds up a sample's partial sums, stores its part of dweight and dbias, and returns the numbers of its dx.
template <class T>
void finish(const RowNormBwd& args, int64_t n, ChannelSums* partial, RowGrad* grads) {
  using A = acc_t<T>;
  const RowNormShape& s = args.shape;
  const int64_t C = s.width(), blocks = blocks_of_sample(s);
  A* parameters = offset<A>(args.parameters, n * 2 * C);
  for (int64_t b = 1; b < blocks; ++b) {
    for (int64_t c = 0; c < C; ++c) {
      partial[c].sum += partial[b * C + c].sum, partial[c].product += partial[b * C + c].product;
    }
  }
  for (int64_t g = 0; g < s.G; ++g) {
    const double rstd = numbers_of<A>(args, n * s.G + g).rstd;
    ChannelSums total;
    for (int64_t c = g * s.K; c < g * s.K + s.K; ++c) {
      const double weight = args.weight == nullptr ? 1 : static_cast<const A*>(args.weight)[c];
      total.sum += weight * partial[c].sum, total.product += weight * partial[c].product;
      if (parameters == nullptr) continue;
      parameters[c] = static_cast<A>(partial[c].product * rstd);
      parameters[C + c] = static_cast<A>(partial[c].sum);
    }
    grads[g] = grad_of(args, rstd, total);
  }
}

}  // namespace

void group_columns_grad_sum(const RowNormBwd& args, ChannelSums* partial, int64_t unit0, int64_t unit1) {
  const int64_t blocks = blocks_of_sample(args.shape);
  with_dtype(args.dtype, [&](auto* type) {
    const Backward<std::remove_pointer_t<decltype(type)>> backward(args, false);
    for (int64_t u = unit0; u < unit1; ++u) {
      if (u == unit0 || u % blocks == 0) backward.sample(u / blocks, nullptr);
      backward.sum(u / blocks, u % blocks, partial + u * args.shape.width());
    }
  });
}

void group_columns_grad_finish(const RowNormBwd& args, int64_t n, ChannelSums* partial, RowGrad* grads) {
  with_dtype(args.dtype,
             [&](auto* type) { finish<std::remove_pointer_t<decltype(type)>>(args, n, partial, grads); });
}

void group_columns_grad_write(const RowNormBwd& args, const RowGrad* grads, int64_t unit0, int64_t unit1) {
  const int64_t blocks = blocks_of_sample(args.shape);
  with_dtype(args.dtype, [&](auto* type) {
    const Backward<std::remove_pointer_t<decltype(type)>> backward(args, false);
    for (int64_t u = unit0; u < unit1; ++u) {
      const int64_t n = u / blocks, block = u % blocks;
      if (u == unit0 || block == 0) backward.sample(n, grads + n * args.shape.G);
      backward.write(n, block * kBlockRows, block_end(args.shape, block));
    }
  });
  if (args.stream) stream_fence();
}

void group_columns_bwd(const RowNormBwd& args, int64_t n0, int64_t n1) {
  const int64_t blocks = blocks_of_sample(args.shape), C = args.shape.width();
  const std::unique_ptr<ChannelSums[]> partial(new ChannelSums[static_cast<size_t>(blocks * C)]);
  const std::unique_ptr<RowGrad[]> grads(new RowGrad[static_cast<size_t>(args.shape.G)]);
  with_dtype(args.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const Backward<T> backward(args, true);
    for (int64_t n = n0; n < n1; ++n) {
      backward.sample(n, nullptr);
      for (int64_t b = 0; b < blocks; ++b) backward.sum(n, b, partial.get() + b * C);
      finish<T>(args, n, partial.get(), grads.get());
      if (args.dx == nullptr) continue;
      backward.sample(n, grads.get());
      backward.write(n, 0, args.shape.S);
    }
  });
  if (args.stream) stream_fence();
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
