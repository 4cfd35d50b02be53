// Statistics of row_norm where a set is a run in memory (runs, planes).
#include "cpu/kernels.h"
#include "cpu/row_norm.h"

namespace fastnorm {
namespace FASTNORM_ISA {
namespace {

// Sets below this many elements are read twice, from L1: their variance has too few terms to bear a bad shift.
constexpr int64_t kTwice = 512;
// From there on they are summed once, around the mean of the first vector; a second look, from the cache, is cheap.
constexpr double kWorstNearShift = 1.0;

template <class T>
double total_of(const T* x, int64_t n) {
  vec_t<T> s{};
  WideSum<vec_t<T>> wide;
  each_chain<T>(n, [&](int64_t i, int64_t length) {
    add_run(x + i, length, s);
    wide.take(s);
  });
  return wide.total();
}

template <class T>
ChannelSums shifted_sums(const T* x, int64_t n, double shift) {
  using V = vec_t<T>;
  const V near = splat<V>(static_cast<acc_t<T>>(shift));
  V s{}, q{};
  WideSum<V> wide_s, wide_q;
  each_chain<T>(n, [&](int64_t i, int64_t length) {
    sum_run(x + i, length, near, s, q);
    wide_s.take(s), wide_q.take(q);
  });
  return {wide_s.total(), wide_q.total()};
}

double finite_or_0(double v) { return std::isfinite(v) ? v : 0; }

template <class T>
double far_shift(const T* x, int64_t n) {
  constexpr int64_t kPlaces = 8;
  double sum = 0;
  for (int64_t k = 0; k < kPlaces; ++k) sum += lane_sum(load(x + n / kPlaces * k));
  return finite_or_0(as_stored<T>(sum / static_cast<double>(kPlaces * kLanes<T>)));
}

template <class T>
Moments near_moments(const T* x, int64_t n) {
  const double count = static_cast<double>(n);
  if (n >= kTwice) {
    const double shift = finite_or_0(as_stored<T>(lane_sum(load(x)) / kLanes<T>));
    const Moments m = moments(shifted_sums(x, n, shift), shift, count, kWorstNearShift);
    if (!m.cancelled) return m;
  }
  const double mean = as_stored<T>(total_of(x, n) / count);
  if (!std::isfinite(mean)) return {mean, std::nan(""), false};
  return moments(shifted_sums(x, n, mean), mean, count);
}

// The same chunks in the same order as where threads share a set.
template <class T>
Moments far_moments(const T* x, int64_t n) {
  const auto around = [&](double shift) {
    ChannelSums sums;
    for (int64_t i = 0; i < n; i += kSetChunk) {
      const ChannelSums part = shifted_sums(x + i, n - i < kSetChunk ? n - i : kSetChunk, shift);
      sums.sum += part.sum, sums.product += part.product;
    }
    return moments(sums, shift, static_cast<double>(n));
  };
  const Moments m = around(far_shift(x, n));
  return m.cancelled ? around(as_stored<T>(m.mean)) : m;
}

}  // namespace

template <class T>
Moments run_moments(const T* x, int64_t n, bool rms) {
  if (rms) {
    ChannelSums sums;
    for (int64_t i = 0; i < n; i += kSetChunk) {
      sums.product += shifted_sums(x + i, n - i < kSetChunk ? n - i : kSetChunk, 0).product;
    }
    return rms_moments(sums, static_cast<double>(n));
  }
  return n <= kSetChunk ? near_moments(x, n) : far_moments(x, n);
}

template Moments run_moments(const double*, int64_t, bool);
template Moments run_moments(const float*, int64_t, bool);
template Moments run_moments(const bfloat16*, int64_t, bool);
template Moments run_moments(const float16*, int64_t, bool);

void sets_shift(const RowNormFwd& args, double* shift, int64_t set0, int64_t set1) {
  const int64_t n = args.shape.set_size();
  with_dtype(args.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for (int64_t set = set0; set < set1; ++set) {
      shift[set] = args.rms ? 0 : far_shift(static_cast<const T*>(args.x) + set * n, n);
    }
  });
}

void sets_sum(const RowNormFwd& args, const double* shift, ChannelSums* partial, int64_t unit0, int64_t unit1) {
  const int64_t n = args.shape.set_size(), chunks = chunks_of_set(args.shape);
  with_dtype(args.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for (int64_t u = unit0; u < unit1; ++u) {
      const int64_t set = u / chunks, i = u % chunks * kSetChunk;
      partial[u] = shifted_sums(static_cast<const T*>(args.x) + set * n + i, n - i < kSetChunk ? n - i : kSetChunk,
                                shift[set]);
    }
  });
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
