// row_norm where a set is a run of elements with a weight each: the loops over a piece of a set, or of several.
#pragma once

#include "cpu/row_norm.h"

namespace fastnorm {
namespace FASTNORM_ISA {

// out = ((x - mean) * rstd) * weight + bias of n elements (R4). As T it is y of a norm without activation; in the
// arithmetic's type it is z of a tile.
template <class T, class O>
FASTNORM_INLINE void normalize_elements(const T* x, O* out, int64_t n, const SetNumbers<acc_t<T>>& set,
                                        const acc_t<T>* weight, const acc_t<T>* bias, bool stream_out) {
  using V = vec_t<T>;
  const V mean = splat<V>(set.mean), rstd = splat<V>(set.rstd);
  if (bias != nullptr) {
    write_run(out, n, stream_out, [&](int64_t i, int m) {
      return normalized(load(x + i, m), mean, rstd, load(weight + i, m), load(bias + i, m));
    });
  } else if (weight != nullptr) {
    write_run(out, n, stream_out,
              [&](int64_t i, int m) { return ((load(x + i, m) - mean) * rstd) * load(weight + i, m); });
  } else {
    write_run(out, n, stream_out, [&](int64_t i, int m) { return (load(x + i, m) - mean) * rstd; });
  }
}

// z of elements [begin, begin + n) of a set, without the residual.
template <class T>
FASTNORM_INLINE void z_of_elements(const RowNormFwd& args, int64_t set, int64_t begin, int64_t n, acc_t<T>* z) {
  using A = acc_t<T>;
  const int64_t K = args.shape.K, weights = set % args.shape.G * K + begin;
  normalize_elements(offset<T>(args.x, set * K + begin), z, n, numbers_of<A>(args, set),
                     offset<A>(args.weight, weights), offset<A>(args.bias, weights), false);
}

// Elements from `begin` on of the sets set, set + step, ..., which share their weights. z is the forward's.
template <class T>
struct ElementRows {
  using A = acc_t<T>;
  const RowNormBwd& args;
  int64_t set, step, begin;

  struct Z {
    const T* x;
    const A *weight, *bias;
    vec_t<T> mean, rstd;

    FASTNORM_INLINE vec_t<T> operator()(int64_t i, int m) const {
      return normalized(load(x + i, m), mean, rstd, load(weight + i, m), load(bias + i, m));
    }
  };
  FASTNORM_INLINE int64_t at(int64_t j) const { return (set + j * step) * args.shape.K + begin; }
  FASTNORM_INLINE Z row(int64_t j) const {
    const SetNumbers<A> numbers = numbers_of<A>(args, set + j * step);
    const int64_t weights = set % args.shape.G * args.shape.K + begin;
    return {offset<T>(args.x, at(j)), offset<A>(args.weight, weights), offset<A>(args.bias, weights),
            splat<vec_t<T>>(numbers.mean), splat<vec_t<T>>(numbers.rstd)};
  }
};

// The sums of g = dz * weight and of g * (x - mean) of n elements; with kParameters also their part of dweight and
// dbias. D is T, where dz is dy itself or dresidual, or the arithmetic's type, where it is a tile.
template <bool kParameters = false, class T, class D>
ChannelSums grad_sums(const T* x, const D* dz, const acc_t<T>* weight, int64_t n, const SetNumbers<acc_t<T>>& set,
                      acc_t<T>* dweight = nullptr, acc_t<T>* dbias = nullptr) {
  using V = vec_t<T>;
  constexpr int L = kLanes<T>;
  const V mean = splat<V>(set.mean), rstd = splat<V>(set.rstd);
  WideSum<V> wide_s, wide_q;
  each_chain<T>(n, [&](int64_t begin, int64_t length) {
    V s[4] = {}, q[4] = {};
    const auto step = [&](int64_t i, int m, int chain) {
      const V d = load(dz + i, m), centred = keep_first<T>(load(x + i, m) - mean, m);
      const V g = weight == nullptr ? d : d * load(weight + i, m);
      s[chain] += g;
      q[chain] += g * centred;
      if constexpr (kParameters) {
        store(dweight + i, load(dweight + i, m) + (d * rstd) * centred, m);
        store(dbias + i, load(dbias + i, m) + d, m);
      }
    };
    const int64_t end = begin + length;
    int64_t i = begin;
    for (; i + 4 * L <= end; i += 4 * L) step(i, L, 0), step(i + L, L, 1), step(i + 2 * L, L, 2), step(i + 3 * L, L, 3);
    for (; i < end; i += L) step(i, end - i < L ? static_cast<int>(end - i) : L, 0);
    s[0] += s[1] + (s[2] + s[3]), q[0] += q[1] + (q[2] + q[3]);
    wide_s.take(s[0]), wide_q.take(q[0]);
  });
  return {wide_s.total(), wide_q.total()};
}

// Rows, that is sets, that share their weights.
constexpr int kMostRows = 8;
template <class T, class D>
struct GradRows {
  const T* x;
  const D* dz;
  T* dx;  // may be null: not wanted
  int64_t count, stride, dz_stride;
  SetNumbers<acc_t<T>> set[kMostRows];
  SetGrad<acc_t<T>> grad[kMostRows];
  const acc_t<T>* weight;

  const T* x_row(int64_t j) const { return x + j * stride; }
  const D* dz_row(int64_t j) const { return dz + j * dz_stride; }
};

// Elements [begin, begin + n) of every row, and where dweight and dbias of a whole row lie: null where not wanted.
template <class A>
struct GradPiece {
  int64_t begin, n;
  A *dweight, *dbias;
  bool stream;
};

// dx of K rows, column by column, and their part of dweight and dbias, touched once for all K.
template <int K, class T, class D>
void sweep(const GradRows<T, D>& rows, int64_t first, const GradPiece<acc_t<T>>& piece) {
  using V = vec_t<T>;
  constexpr int L = kLanes<T>;
  const int64_t n = piece.n, stride = rows.stride, dz_stride = rows.dz_stride;
  const acc_t<T>* weight = rows.weight + piece.begin;
  acc_t<T> *dweight = piece.dweight + piece.begin, *dbias = piece.dbias + piece.begin;
  const T* x = rows.x_row(first) + piece.begin;
  const D* dz = rows.dz_row(first) + piece.begin;
  T* dx = rows.dx + first * stride + piece.begin;
  V mean[K], rstd[K], slope[K], shift[K];
  for (int j = 0; j < K; ++j) {
    mean[j] = splat<V>(rows.set[first + j].mean), rstd[j] = splat<V>(rows.set[first + j].rstd);
    slope[j] = splat<V>(rows.grad[first + j].slope), shift[j] = splat<V>(rows.grad[first + j].offset);
  }
  const auto dx_of = [&](int j, int64_t i, int m, V w, V& product, V& sum) {
    const V d = load(dz + j * dz_stride + i, m), centred = load(x + j * stride + i, m) - mean[j];
    const V e = d * rstd[j];
    product += e * centred;
    sum += d;
    return e * w + (centred * slope[j] + shift[j]);
  };
  const bool streams = piece.stream && reinterpret_cast<uintptr_t>(dx) % kRegister == 0 &&
                       stride * static_cast<int64_t>(sizeof(T)) % kRegister == 0;
  int64_t i = 0;
  for (; i + 2 * L <= n; i += 2 * L) {
    const V wa = load(weight + i), wb = load(weight + i + L);
    V product_a = load(dweight + i), product_b = load(dweight + i + L);
    V sum_a = load(dbias + i), sum_b = load(dbias + i + L);
    for (int j = 0; j < K; ++j) {
      const V a = dx_of(j, i, L, wa, product_a, sum_a), b = dx_of(j, i + L, L, wb, product_b, sum_b);
      if (streams) stream_pair(dx + j * stride + i, a, b);
      else store_pair(dx + j * stride + i, a, b);
    }
    store(dweight + i, product_a), store(dweight + i + L, product_b);
    store(dbias + i, sum_a), store(dbias + i + L, sum_b);
  }
  for (; i < n; i += L) {
    const int m = n - i < L ? static_cast<int>(n - i) : L;
    const V w = load(weight + i, m);
    V product = load(dweight + i, m), sum = load(dbias + i, m);
    for (int j = 0; j < K; ++j) store(dx + j * stride + i, dx_of(j, i, m, w, product, sum), m);
    store(dweight + i, product, m), store(dbias + i, sum, m);
  }
}

// dx alone, of one row.
template <class T, class D>
void write_dx(const GradRows<T, D>& rows, int64_t j, const GradPiece<acc_t<T>>& piece) {
  using V = vec_t<T>;
  const V mean = splat<V>(rows.set[j].mean), rstd = splat<V>(rows.set[j].rstd);
  const V slope = splat<V>(rows.grad[j].slope), shift = splat<V>(rows.grad[j].offset);
  const T* x = rows.x_row(j) + piece.begin;
  const D* dz = rows.dz_row(j) + piece.begin;
  const acc_t<T>* weight = rows.weight == nullptr ? nullptr : rows.weight + piece.begin;
  write_run(rows.dx + j * rows.stride + piece.begin, piece.n, piece.stream, [&](int64_t i, int m) {
    V g = load(dz + i, m) * rstd;
    if (weight != nullptr) g = g * load(weight + i, m);
    return g + ((load(x + i, m) - mean) * slope + shift);
  });
}

// dweight and dbias alone, of one row.
template <class T, class D>
void add_parameters(const GradRows<T, D>& rows, int64_t j, const GradPiece<acc_t<T>>& piece) {
  using V = vec_t<T>;
  constexpr int L = kLanes<T>;
  const V mean = splat<V>(rows.set[j].mean), rstd = splat<V>(rows.set[j].rstd);
  const T* x = rows.x_row(j);
  const D* dz = rows.dz_row(j);
  const int64_t end = piece.begin + piece.n;
  for (int64_t i = piece.begin; i < end; i += L) {
    const int m = end - i < L ? static_cast<int>(end - i) : L;
    const V d = load(dz + i, m);
    store(piece.dweight + i, load(piece.dweight + i, m) + (d * rstd) * (load(x + i, m) - mean), m);
    store(piece.dbias + i, load(piece.dbias + i, m) + d, m);
  }
}

template <class T, class D>
void write_grads(const GradRows<T, D>& rows, const GradPiece<acc_t<T>>& piece) {
  int64_t j = 0;
  if (rows.dx != nullptr && piece.dweight != nullptr) {
    for (; j + 4 <= rows.count; j += 4) sweep<4>(rows, j, piece);
    for (; j + 2 <= rows.count; j += 2) sweep<2>(rows, j, piece);
    if (j < rows.count) sweep<1>(rows, j, piece);
    return;
  }
  for (; j < rows.count; ++j) {
    if (rows.dx != nullptr) write_dx(rows, j, piece);
    else if (piece.dweight != nullptr) add_parameters(rows, j, piece);
  }
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
