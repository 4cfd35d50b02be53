// row_norm where a set is a run of elements with a weight each: the loops over a piece of a set, or of several.
#pragma once

#include "cpu/row_norm.h"

namespace fastnorm {
namespace FASTNORM_ISA {

// z(i, count) of elements from `begin` on of a set, which has a weight and a bias (R4).
template <class T, class Args>
FASTNORM_INLINE auto elements_z(const Args& args, int64_t set, int64_t begin) {
  using A = acc_t<T>;
  using V = vec_t<T>;
  const SetNumbers<A> numbers = numbers_of<A>(args, set);
  const V mean = splat<V>(numbers.mean), rstd = splat<V>(numbers.rstd);
  const int64_t weights = set % args.shape.G * args.shape.K + begin;
  const A *weight = offset<A>(args.weight, weights), *bias = offset<A>(args.bias, weights);
  const T* x = offset<T>(args.x, set * args.shape.K + begin);
  return [=](int64_t i, int m) FASTNORM_INLINED {
    return normalized(load(x + i, m), mean, rstd, load(weight + i, m), load(bias + i, m));
  };
}

// Elements from which on a run is summed in several chains: shorter ones lose more by adding the chains up.
constexpr int64_t kManyChains = 512;

// The sums of g = dz * weight and of g * (x - mean) of n elements; with kParameters also their part of dweight and
// dbias.
template <bool kParameters = false, class T, class Dz>
FASTNORM_INLINE ChannelSums grad_sums(const T* x, Dz dz, const acc_t<T>* weight, int64_t n,
                                      const SetNumbers<acc_t<T>>& set, acc_t<T>* dweight = nullptr,
                                      acc_t<T>* dbias = nullptr) {
  using V = vec_t<T>;
  constexpr int L = kLanes<T>;
  const V mean = splat<V>(set.mean), rstd = splat<V>(set.rstd);
  WideSum<V> wide_s, wide_q;
  const auto step = [&](int64_t i, int m, V& s, V& q) FASTNORM_INLINED {
    const V d = dz(i, m), centred = keep_first<T>(load(x + i, m) - mean, m);
    const V g = weight == nullptr ? d : d * load(weight + i, m);
    s += g;
    q += g * centred;
    if constexpr (kParameters) {
      store(dweight + i, load(dweight + i, m) + (d * rstd) * centred, m);
      store(dbias + i, load(dbias + i, m) + d, m);
    }
  };
  each_chain<T>(n, [&](int64_t begin, int64_t length) FASTNORM_INLINED {
    const int64_t end = begin + length;
    int64_t i = begin;
    V s{}, q{};
    if (length >= kManyChains) {  // four chains of additions hide their latency
      V s1{}, s2{}, s3{}, q1{}, q2{}, q3{};
      for (; i + 4 * L <= end; i += 4 * L) {
        step(i, L, s, q), step(i + L, L, s1, q1), step(i + 2 * L, L, s2, q2), step(i + 3 * L, L, s3, q3);
      }
      s += s1 + (s2 + s3), q += q1 + (q2 + q3);
    }
    for (; i + L <= end; i += L) step(i, L, s, q);
    if (i < end) step(i, static_cast<int>(end - i), s, q);
    wide_s.take(s), wide_q.take(q);
  });
  return {wide_s.total(), wide_q.total()};
}

// Rows, that is sets, that share their weights: where they begin and their numbers.
constexpr int kMostRows = 8;
template <class T>
struct GradRows {
  const T* x;
  T* dx;
  const acc_t<T>* weight;
  int64_t count, stride;
  SetNumbers<acc_t<T>> set[kMostRows];
  SetGrad<acc_t<T>> grad[kMostRows];
};

// Elements [begin, begin + n) of every row, and where dweight and dbias of a whole row lie: null where not wanted.
template <class A>
struct GradPiece {
  int64_t begin, n;
  A *dweight, *dbias;
  bool stream;
};

// dx of K rows, column by column, and their part of dweight and dbias, touched once for all K. dz(j, i, count) is of
// element begin + i of row first + j.
template <int K, class T, class Dz>
FASTNORM_INLINE void sweep(const GradRows<T>& rows, int64_t first, const GradPiece<acc_t<T>>& piece, Dz dz) {
  using V = vec_t<T>;
  constexpr int L = kLanes<T>;
  const int64_t n = piece.n, stride = rows.stride;
  const acc_t<T>* weight = rows.weight + piece.begin;
  acc_t<T> *dweight = piece.dweight + piece.begin, *dbias = piece.dbias + piece.begin;
  const T* x = rows.x + first * stride + piece.begin;
  T* dx = rows.dx + first * stride + piece.begin;
  V mean[K], rstd[K], slope[K], shift[K];
  for (int j = 0; j < K; ++j) {
    mean[j] = splat<V>(rows.set[first + j].mean), rstd[j] = splat<V>(rows.set[first + j].rstd);
    slope[j] = splat<V>(rows.grad[first + j].slope), shift[j] = splat<V>(rows.grad[first + j].offset);
  }
  const auto dx_of = [&](int j, int64_t i, int m, V w, V& product, V& sum) FASTNORM_INLINED {
    const V d = dz(j, i, m), centred = load(x + j * stride + i, m) - mean[j];
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

// dx alone, of row j; dz(i, count) is of its element begin + i.
template <class T, class Dz>
FASTNORM_INLINE void write_dx(const GradRows<T>& rows, int64_t j, const GradPiece<acc_t<T>>& piece, Dz dz) {
  using V = vec_t<T>;
  const V mean = splat<V>(rows.set[j].mean), rstd = splat<V>(rows.set[j].rstd);
  const V slope = splat<V>(rows.grad[j].slope), shift = splat<V>(rows.grad[j].offset);
  const T* x = rows.x + j * rows.stride + piece.begin;
  const acc_t<T>* weight = rows.weight == nullptr ? nullptr : rows.weight + piece.begin;
  write_run(rows.dx + j * rows.stride + piece.begin, piece.n, piece.stream, [=](int64_t i, int m) FASTNORM_INLINED {
    V g = dz(i, m) * rstd;
    if (weight != nullptr) g = g * load(weight + i, m);
    return g + ((load(x + i, m) - mean) * slope + shift);
  });
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
