// row_norm backward where a set is a run of at most kSetChunk elements with a weight each: a row, or a few short ones
// at a time, are summed, then written from the cache.
#include <cstring>

#include "cpu/kernels.h"
#include "cpu/row_norm_elements.h"

namespace fastnorm {
namespace FASTNORM_ISA {
namespace {

// Up to here dweight and dbias stay in L1 and are added to with the sums: what is left is one stream to write. Beyond,
// a pair of rows is swept in tiles of columns. (4096 x 768 fp32: 1.4 times as fast as a sweep; 512 x 4096: 0.9 times.)
constexpr int64_t kShortColumns = 2048;
constexpr int64_t kTileColumns = 512;

template <class T>
class Backward {
  using A = acc_t<T>;

 public:
  explicit Backward(const RowNormBwd& args) : args_(args), K_(args.shape.K), width_(args.shape.width()) {
    together_ = K_ > kShortColumns ? 2 : sets_together(K_ * static_cast<int64_t>(sizeof(T)));
    if (args.act.active) kept_ = scratch<A>(together_ * K_);
  }
  // Samples [n0, n1), whose part of dweight and dbias goes to parameters [2, width].
  void block(int64_t n0, int64_t n1, A* parameters) const {
    if (parameters != nullptr) std::memset(parameters, 0, static_cast<size_t>(2 * width_) * sizeof(A));
    for (int64_t n = n0; n < n1; n += together_) {
      const int64_t count = n1 - n < together_ ? n1 - n : together_;
      for (int64_t g = 0; g < args_.shape.G; ++g) take(n, count, g, offset<A>(parameters, g * K_));
    }
  }

 private:
  // The sets g of `count` samples.
  void take(int64_t n, int64_t count, int64_t g, A* dweight) const {
    const bool swept = dweight != nullptr && (args_.dx == nullptr || K_ <= kShortColumns);
    GradRows<T> rows;
    rows.x = offset<T>(args_.x, n * width_ + g * K_), rows.dx = offset<T>(args_.dx, n * width_ + g * K_);
    rows.weight = offset<A>(args_.weight, g * K_), rows.count = count, rows.stride = width_;
    A* added = swept ? dweight : nullptr;
    for (int64_t j = 0; j < count; ++j) {
      const SetNumbers<A> set = numbers_of<A>(args_, (n + j) * args_.shape.G + g);
      const ChannelSums sums = kept_ == nullptr ? plain_sums(n + j, g, set, added) : act_sums(n + j, g, j, set, added);
      rows.set[j] = set, rows.grad[j] = narrow<A>(grad_of(args_, set.rstd, sums));
    }
    if (args_.dx == nullptr) return;
    if (swept) dweight = nullptr;
    if (kept_ == nullptr) write(rows, dweight, offset<T>(args_.dy, n * width_ + g * K_), width_);
    else write(rows, dweight, const_cast<const A*>(kept_.get()), K_);
  }
  // The sums of set g of sample n; adds its part of dweight and dbias unless that is null. (Short rows feel the call
  // and the choices of with_dz: without an activation there are none.)
  FASTNORM_INLINE ChannelSums plain_sums(int64_t n, int64_t g, const SetNumbers<A>& set, A* dweight) const {
    const T* dy = offset<T>(args_.dy, n * width_ + g * K_);
    return sums_of(n, g, set, dweight, [=](int64_t i, int m) FASTNORM_INLINED { return load(dy + i, m); });
  }
  // With an activation: of the j-th of the sets taken together, whose dz is kept.
  ChannelSums act_sums(int64_t n, int64_t g, int64_t j, const SetNumbers<A>& set, A* dweight) const {
    ChannelSums sums;
    with_dz<T>(args_, n * width_ + g * K_, true, kept_.get() + j * K_, elements_z<T>(args_, n * args_.shape.G + g, 0),
               [&](auto dz) FASTNORM_INLINED { sums = sums_of(n, g, set, dweight, dz); });
    return sums;
  }
  template <class Dz>
  FASTNORM_INLINE ChannelSums sums_of(int64_t n, int64_t g, const SetNumbers<A>& set, A* dweight, Dz dz) const {
    const T* x = offset<T>(args_.x, n * width_ + g * K_);
    const A* weight = offset<A>(args_.weight, g * K_);
    return dweight == nullptr ? grad_sums(x, dz, weight, K_, set)
                              : grad_sums<true>(x, dz, weight, K_, set, dweight, dweight + width_);
  }
  // dx of the rows, and their part of dweight and dbias unless that is null.
  template <class D>
  void write(const GradRows<T>& rows, A* dweight, const D* dz, int64_t dz_stride) const {
    const int64_t columns = K_ > kShortColumns ? kTileColumns : K_;
    for (int64_t c = 0; c < K_; c += columns) {
      const int64_t n = K_ - c < columns ? K_ - c : columns;
      const GradPiece<A> piece{c, n, dweight, offset<A>(dweight, width_), args_.stream};
      const auto row = [=](int64_t j) FASTNORM_INLINED { return dz + j * dz_stride + c; };
      const auto of_row = [=](int j, int64_t i, int m) FASTNORM_INLINED { return load(row(j) + i, m); };
      if (dweight != nullptr && rows.count == 2) {
        sweep<2>(rows, 0, piece, of_row);
      } else if (dweight != nullptr) {
        sweep<1>(rows, 0, piece, of_row);
      } else {
        for (int64_t j = 0; j < rows.count; ++j) {
          const D* d = row(j);
          write_dx(rows, j, piece, [=](int64_t i, int m) FASTNORM_INLINED { return load(d + i, m); });
        }
      }
    }
  }

  const RowNormBwd& args_;
  int64_t K_, width_, together_;
  Scratch<A> kept_;  // [together, K] of dz, where there is an activation
};

}  // namespace

void runs_bwd(const RowNormBwd& args, int64_t block0, int64_t block1) {
  const int64_t N = args.shape.N, block = samples_of_block(args.shape), numbers = 2 * args.shape.width();
  with_dtype(args.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const Backward<T> backward(args);
    for (int64_t b = block0; b < block1; ++b) {
      const int64_t end = b * block + block;
      backward.block(b * block, end < N ? end : N, offset<acc_t<T>>(args.parameters, b * numbers));
    }
  });
  if (args.stream) stream_fence();
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
