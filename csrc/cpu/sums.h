// Sums that stay exact enough: short chains of fp32 lanes, emptied into double.
#pragma once

#include "cpu/vec.h"

namespace fastnorm {
namespace FASTNORM_ISA {

// A sum in double lanes, fed with lanes of the arithmetic's type: chains of fp32 additions stay short, so that rounding
// that always goes the same way (x - shift of few distinct values) cannot add up.
constexpr int kChain = 64;  // vectors added to one before they move to double
template <class V>
class WideSum;
template <>
class WideSum<vdouble> {
 public:
  FASTNORM_INLINE void take(vdouble& v) { sum_ += v, v = vdouble{}; }
  FASTNORM_INLINE double total() const { return lane_sum(sum_); }

 private:
  vdouble sum_{};
};
template <>
class WideSum<vfloat> {
 public:
  FASTNORM_INLINE void take(vfloat& v) {
#if defined(__AVX512F__)
    low_ += (vdouble)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)v));
    high_ += (vdouble)_mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)v, 1));
#elif defined(__AVX2__)
    low_ += (vdouble)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)v));
    high_ += (vdouble)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)v, 1));
#else
    constexpr int kHalf = kRegister / static_cast<int>(sizeof(double));
    for (int i = 0; i < kHalf; ++i) low_[i] += v[i], high_[i] += v[i + kHalf];
#endif
    v = vfloat{};
  }
  FASTNORM_INLINE double total() const { return lane_sum(low_ + high_); }

 private:
  vdouble low_{}, high_{};
};

// The two sums of several channels at once: lanes, emptied into double after every kChain vectors.
template <class V, int kMost>
class PairSums {
 public:
  V s[kMost] = {}, q[kMost] = {};

  // After each round of runs of `vectors` vectors, at most kChain, in the first `count` channels.
  FASTNORM_INLINE void round(int64_t vectors, int count) {
    pending_ += vectors;
    if (pending_ < kChain) return;
    for (int j = 0; j < count; ++j) take(j);
    pending_ = 0;
  }
  FASTNORM_INLINE void take(int j) { wide_s_[j].take(s[j]), wide_q_[j].take(q[j]); }
  template <class Sums>
  FASTNORM_INLINE void add_to(Sums* sums, int count) {
    for (int j = 0; j < count; ++j) {
      take(j);
      sums[j].sum += wide_s_[j].total();
      sums[j].product += wide_q_[j].total();
    }
  }

 private:
  WideSum<V> wide_s_[kMost], wide_q_[kMost];
  int64_t pending_ = 0;
};

// Adds a run's x - shift and its square to the lanes of s and q.
template <class T>
FASTNORM_INLINE void sum_run(const T* x, int64_t n, vec_t<T> shift, vec_t<T>& s, vec_t<T>& q) {
  using V = vec_t<T>;
  constexpr int L = kLanes<T>;
  int64_t i = 0;
  if (n >= 4 * L) {  // four chains of additions hide their latency
    V s1{}, s2{}, s3{}, q1{}, q2{}, q3{};
    for (; i + 4 * L <= n; i += 4 * L) {
      V a, b, c, d;
      load_two(x + i, a, b), load_two(x + i + 2 * L, c, d);
      a -= shift, b -= shift, c -= shift, d -= shift;
      s += a, s1 += b, s2 += c, s3 += d;
      q += a * a, q1 += b * b, q2 += c * c, q3 += d * d;
    }
    s += s1 + (s2 + s3);
    q += q1 + (q2 + q3);
  }
  for (; i < n; i += L) {
    const int count = n - i < L ? static_cast<int>(n - i) : L;
    const V a = keep_first<T>(load(x + i, count) - shift, count);
    s += a;
    q += a * a;
  }
}

// Adds a run to the lanes of s.
template <class T>
FASTNORM_INLINE void add_run(const T* x, int64_t n, vec_t<T>& s) {
  using V = vec_t<T>;
  constexpr int L = kLanes<T>;
  int64_t i = 0;
  if (n >= 4 * L) {
    V s1{}, s2{}, s3{};
    for (; i + 4 * L <= n; i += 4 * L) {
      V a, b, c, d;
      load_two(x + i, a, b), load_two(x + i + 2 * L, c, d);
      s += a, s1 += b, s2 += c, s3 += d;
    }
    s += s1 + (s2 + s3);
  }
  for (; i + L <= n; i += L) s += load(x + i);
  if (i < n) s += load_first(x + i, static_cast<int>(n - i));
}

// Calls f(begin, length) for the pieces of a run that are short enough for chains of fp32 additions.
template <class T, class F>
FASTNORM_INLINE void each_chain(int64_t n, F f) {
  constexpr int64_t kPiece = kChain * kLanes<T>;
  for (int64_t i = 0; i < n; i += kPiece) f(i, n - i < kPiece ? n - i : kPiece);
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
