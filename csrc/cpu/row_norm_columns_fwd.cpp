// row_norm forward where a set is K neighbouring columns over the rows of a sample (channels_last group and instance
// norm).
#include "cpu/kernels.h"
#include "cpu/row_norm_columns.h"

namespace fastnorm {
namespace FASTNORM_ISA {
namespace {

// Adds x - shift and its square, column by column, to s and q.
template <class T>
void add_columns(const T* x, int64_t rows, int64_t width, const acc_t<T>* shift, acc_t<T>* s, acc_t<T>* q) {
  using V = vec_t<T>;
  constexpr int L = kLanes<T>;
  each_column_group<T>(rows, width, 1, [&](int64_t row, int64_t count, int64_t c, auto group, int lanes) {
    constexpr int G = decltype(group)::value;
    V near[G], sum[G] = {}, square[G] = {};
    for (int k = 0; k < G; ++k) near[k] = load(shift + c + k * L);
    const T* p = x + row * width + c;
    const int64_t ahead = next_tile<T>(width, count);
    for (int64_t i = 0; i < count; ++i, p += width) {
      for (int k = 0; ahead > 0 && k < G; ++k) prefetch(p + ahead + k * L);
      for (int k = 0; k < G; ++k) {
        const V d = keep_first<T>(load(p + k * L, lanes) - near[k], lanes);
        sum[k] += d;
        square[k] += d * d;
      }
    }
    for (int k = 0; k < G; ++k) {
      store(s + c + k * L, load(s + c + k * L) + sum[k]);
      store(q + c + k * L, load(q + c + k * L) + square[k]);
    }
  });
}

// A value near each set's mean: the average of its columns over a few rows, 0 if that is not finite.
template <class T>
void shifts_of(const RowNormFwd& args, int64_t n, double* shift) {
  using A = acc_t<T>;
  constexpr int64_t kSamples = 16;
  const RowNormShape& s = args.shape;
  const int64_t C = s.width(), wanted = (kSamples + s.K - 1) / s.K, rows = wanted < s.S ? wanted : s.S;
  const Columns<A> sums({C, 1, C}, 3);  // of the rows taken, beside zeros for their shift
  for (int64_t i = 0; i < rows; ++i) {
    add_columns(offset<T>(args.x, n * s.sample() + s.S / rows * i * C), 1, C, sums[0], sums[1], sums[2]);
  }
  for (int64_t g = 0; g < s.G; ++g) {
    double sum = 0;
    for (int64_t k = 0; k < s.K; ++k) sum += sums[1][g * s.K + k];
    const double mean = as_stored<T>(sum / static_cast<double>(rows * s.K));
    shift[g] = std::isfinite(mean) && !args.rms ? mean : 0;
  }
}

template <class T>
class BlockSums {
  using A = acc_t<T>;

 public:
  explicit BlockSums(const RowNormFwd& args)
      : args_(args), C_(args.shape.width()), plan_(RowPlan::of<T>(C_, 0)), columns_(plan_, 3) {}
  // The columns' sums over one block of a sample.
  void take(int64_t n, int64_t block, const double* shift, ChannelSums* partial) const {
    columns_.fill(0, [&, K = args_.shape.K](int64_t c) { return static_cast<A>(shift[c / K]); });
    columns_.clear(1), columns_.clear(2);
    const T* x = offset<T>(args_.x, n * args_.shape.sample());
    plan_.each(block * kBlockRows, block_end(args_.shape, block), [&](int64_t first, int64_t rows, int64_t width) {
      add_columns(x + first, rows, width, columns_[0], columns_[1], columns_[2]);
    });
    for (int64_t c = 0; c < C_; ++c) partial[c] = {columns_.total(1, c), columns_.total(2, c)};
  }

 private:
  const RowNormFwd& args_;
  int64_t C_;
  RowPlan plan_;
  Columns<A> columns_;
};

// y of rows [row0, row1) of sample n, whose numbers are in columns.
template <class T>
void write_rows_of(const RowNormFwd& args, const SampleColumns<T>& columns, int64_t n, int64_t row0, int64_t row1) {
  const int64_t at = n * args.shape.sample() + row0 * args.shape.width();
  with_y<T>(args, at, [&](auto y) FASTNORM_INLINED {
    columns.normalize(offset<T>(args.x, at), offset<T>(args.y, at), row1 - row0, args.residual == nullptr, args.stream, y);
  });
}

template <class T>
bool finish(const RowNormFwd& args, int64_t n, const ChannelSums* partial, double* shift, bool again) {
  const RowNormShape& s = args.shape;
  const int64_t C = s.width(), blocks = blocks_of_sample(s);
  bool cancelled = false;
  for (int64_t g = 0; g < s.G; ++g) {
    ChannelSums total;
    for (int64_t b = 0; b < blocks; ++b) {
      for (int64_t c = g * s.K; c < g * s.K + s.K; ++c) {
        total.sum += partial[b * C + c].sum, total.product += partial[b * C + c].product;
      }
    }
    const double count = static_cast<double>(s.set_size());
    const Moments m = args.rms ? rms_moments(total, count) : moments(total, shift[g], count);
    if (m.cancelled && !again) shift[g] = as_stored<T>(m.mean), cancelled = true;
    else finish_set<acc_t<T>>(args, n * s.G + g, m);
  }
  return !cancelled;
}

}  // namespace

void group_columns_shift(const RowNormFwd& args, double* shift, int64_t n0, int64_t n1) {
  with_dtype(args.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for (int64_t n = n0; n < n1; ++n) shifts_of<T>(args, n, shift + n * args.shape.G);
  });
}

void group_columns_sum(const RowNormFwd& args, const double* shift, ChannelSums* partial, int64_t unit0,
                       int64_t unit1) {
  const int64_t blocks = blocks_of_sample(args.shape);
  with_dtype(args.dtype, [&](auto* type) {
    const BlockSums<std::remove_pointer_t<decltype(type)>> sums(args);
    for (int64_t u = unit0; u < unit1; ++u) {
      sums.take(u / blocks, u % blocks, shift + u / blocks * args.shape.G, partial + u * args.shape.width());
    }
  });
}

bool group_columns_finish(const RowNormFwd& args, int64_t n, const ChannelSums* partial, double* shift, bool again) {
  bool finished = false;
  with_dtype(args.dtype, [&](auto* type) {
    finished = finish<std::remove_pointer_t<decltype(type)>>(args, n, partial, shift, again);
  });
  return finished;
}

void group_columns_write(const RowNormFwd& args, int64_t unit0, int64_t unit1) {
  const int64_t blocks = blocks_of_sample(args.shape);
  with_dtype(args.dtype, [&](auto* type) {
    const SampleColumns<std::remove_pointer_t<decltype(type)>> columns(args.shape);
    for (int64_t u = unit0; u < unit1; ++u) {
      const int64_t n = u / blocks, block = u % blocks;
      if (u == unit0 || block == 0) columns.affine(args, n);
      write_rows_of(args, columns, n, block * kBlockRows, block_end(args.shape, block));
    }
  });
  if (args.stream) stream_fence();
}

void group_columns_fwd(const RowNormFwd& args, int64_t n0, int64_t n1) {
  const int64_t blocks = blocks_of_sample(args.shape), C = args.shape.width();
  const std::unique_ptr<ChannelSums[]> partial(new ChannelSums[static_cast<size_t>(blocks * C)]);
  const std::unique_ptr<double[]> shift(new double[static_cast<size_t>(args.shape.G)]);
  with_dtype(args.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const BlockSums<T> sums(args);
    const SampleColumns<T> columns(args.shape);
    for (int64_t n = n0; n < n1; ++n) {
      shifts_of<T>(args, n, shift.get());
      for (const bool again : {false, true}) {
        for (int64_t b = 0; b < blocks; ++b) sums.take(n, b, shift.get(), partial.get() + b * C);
        if (finish<T>(args, n, partial.get(), shift.get(), again)) break;
      }
      columns.affine(args, n);
      write_rows_of(args, columns, n, 0, args.shape.S);
    }
  });
  if (args.stream) stream_fence();
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
