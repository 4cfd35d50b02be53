// Statistics of row_norm where a set is a run in memory (runs, planes).
#include "cpu/kernels.h"
#include "cpu/row_norm.h"

namespace fastnorm {
namespace FASTNORM_ISA {
namespace {

// Sets below this many elements are read twice, from L1: their variance has too few terms to bear a bad shift.
constexpr int64_t kTwice = 512;
template <class T>
FASTNORM_INLINE double total_of(const T* x, int64_t n) {
  vec_t<T> s{};
  WideSum<vec_t<T>> wide;
  each_chain<T>(n, [&](int64_t i, int64_t length) {
    add_run(x + i, length, s);
    wide.take(s);
  });
  return wide.total();
}

template <class T>
FASTNORM_INLINE ChannelSums shifted_sums(const T* x, int64_t n, double shift) {
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

template <class T>
ChannelSums chunk_sums(const T* x, int64_t n, int64_t chunk, double shift) {
  const int64_t i = chunk * kSetChunk;
  return shifted_sums(x + i, n - i < kSetChunk ? n - i : kSetChunk, shift);
}

double finite_or_0(double v) { return std::isfinite(v) ? v : 0; }

// A long set's shift: the average of vectors from all over it.
template <class T>
double far_shift(const T* x, int64_t n) {
  constexpr int64_t kPlaces = 8;
  double sum = 0;
  for (int64_t k = 0; k < kPlaces; ++k) sum += lane_sum(load(x + n / kPlaces * k));
  return finite_or_0(as_stored<T>(sum / static_cast<double>(kPlaces * kLanes<T>)));
}

// The moments of a long set, from the same chunks in the same order as where threads share it.
template <class T>
Moments far_moments(const T* x, int64_t n, bool rms) {
  const int64_t chunks = (n + kSetChunk - 1) / kSetChunk;
  const auto around = [&](double shift) {
    ChannelSums sums;
    for (int64_t k = 0; k < chunks; ++k) {
      const ChannelSums part = chunk_sums(x, n, k, shift);
      sums.sum += part.sum, sums.product += part.product;
    }
    return rms ? rms_moments(sums, static_cast<double>(n)) : moments(sums, shift, static_cast<double>(n));
  };
  const Moments m = around(rms ? 0 : far_shift(x, n));
  return m.cancelled ? around(as_stored<T>(m.mean)) : m;
}

// Of a set that lies in L1 or L2: its mean, then the sums around it, which mend the mean.
template <class T>
Moments twice_moments(const T* x, int64_t n) {
  const double count = static_cast<double>(n), mean = as_stored<T>(total_of(x, n) / count);
  if (!std::isfinite(mean)) return {mean, std::nan(""), false};
  return moments(shifted_sums(x, n, mean), mean, count);
}

// Of a set that is long enough to be summed once, around the mean of its first vector.
template <class T>
Moments once_moments(const T* x, int64_t n) {
  const double shift = as_stored<T>(lane_sum(load(x)) * (1.0 / kLanes<T>));
  const Moments m = moments(shifted_sums(x, n, shift), shift, static_cast<double>(n));
  return m.cancelled || !std::isfinite(m.mean) ? twice_moments(x, n) : m;
}

// As twice_moments, for a few short sets at once: what follows their sums runs in vectors.
template <class T>
void short_statistics(const RowNormFwd& args, const T* x, int64_t set, int64_t count) {
  using A = acc_t<T>;
  constexpr int64_t L = kLanes<double>;
  const int64_t n = args.shape.set_size();
  const double size = static_cast<double>(n), inverse = 1 / size, bessel = args.unbiased ? size / (size - 1) : 1;
  double shift[kMostTogether] = {}, sum[kMostTogether] = {}, square[kMostTogether] = {};
  for (int64_t j = 0; j < count && !args.rms; ++j) shift[j] = as_stored<T>(total_of(x + j * n, n) * inverse);
  for (int64_t j = 0; j < count; ++j) {
    const ChannelSums sums = shifted_sums(x + j * n, n, shift[j]);
    sum[j] = args.rms ? 0 : sums.sum, square[j] = sums.product;
  }
  double mean[kMostTogether], rstd[kMostTogether];
  for (int64_t j = 0; j < count; j += L) {
    const vdouble distance = load(sum + j) * inverse;
    vdouble var = load(square + j) * inverse - distance * distance;
    var = var < 0 ? vdouble{} : var;
    store(mean + j, load(shift + j) + distance);
    store(rstd + j, 1 / square_root(var * bessel + args.eps));
  }
  for (int64_t j = 0; j < count; ++j) {
    const bool finite = std::isfinite(shift[j]);  // else the mean is shift itself, as in twice_moments
    if (args.mean != nullptr) static_cast<A*>(args.mean)[set + j] = static_cast<A>(finite ? mean[j] : shift[j]);
    static_cast<A*>(args.rstd)[set + j] = static_cast<A>(rstd[j]);
  }
}

}  // namespace

template <class T>
void set_statistics(const RowNormFwd& args, int64_t set, int64_t count) {
  const int64_t n = args.shape.set_size();
  const T* x = static_cast<const T*>(args.x) + set * n;
  if (n < kTwice) return short_statistics(args, x, set, count);
  for (int64_t j = 0; j < count; ++j, x += n) {
    const Moments m = n > kSetChunk ? far_moments(x, n, args.rms)
                      : args.rms    ? rms_moments(shifted_sums(x, n, 0), static_cast<double>(n))
                                    : once_moments(x, n);
    finish_set<acc_t<T>>(args, set + j, m);
  }
}

template void set_statistics<double>(const RowNormFwd&, int64_t, int64_t);
template void set_statistics<float>(const RowNormFwd&, int64_t, int64_t);
template void set_statistics<bfloat16>(const RowNormFwd&, int64_t, int64_t);
template void set_statistics<float16>(const RowNormFwd&, int64_t, int64_t);

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
      const int64_t set = u / chunks;
      partial[u] = chunk_sums(static_cast<const T*>(args.x) + set * n, n, u % chunks, shift[set]);
    }
  });
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
