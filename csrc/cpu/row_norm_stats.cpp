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

// What a few sets were summed around, and their sums: arrays, so that what follows runs in vectors.
struct NearSums {
  double shift[kMostTogether] = {}, sum[kMostTogether] = {}, square[kMostTogether] = {};
};

template <class T>
void near_sums(const T* x, int64_t n, int64_t count, bool rms, NearSums& near) {
  const double inverse = 1.0 / static_cast<double>(n);
  for (int64_t j = 0; j < count && !rms; ++j) {
    near.shift[j] = n < kTwice ? total_of(x + j * n, n) * inverse : lane_sum(load(x + j * n)) * (1.0 / kLanes<T>);
  }
  for (int64_t j = 0; j < count && !rms; ++j) near.shift[j] = as_stored<T>(near.shift[j]);
  for (int64_t j = 0; j < count; ++j) {
    const ChannelSums sums = shifted_sums(x + j * n, n, near.shift[j]);
    near.sum[j] = rms ? 0 : sums.sum, near.square[j] = sums.product;
  }
}

template <class T>
void near_statistics(const RowNormFwd& args, const T* x, int64_t set, int64_t count) {
  using A = acc_t<T>;
  constexpr int64_t L = kLanes<double>;
  const int64_t n = args.shape.set_size();
  const double size = static_cast<double>(n), inverse = 1 / size;
  const double bessel = args.unbiased ? size / (size - 1) : 1;
  const bool once = n >= kTwice && !args.rms;
  NearSums near;
  near_sums(x, n, count, args.rms, near);
  double mean[kMostTogether], rstd[kMostTogether], excess[kMostTogether];
  for (int64_t j = 0; j < count; j += L) {
    const vdouble distance = load(near.sum + j) * inverse, square = distance * distance;
    vdouble var = load(near.square + j) * inverse - square;
    store(excess + j, once ? square - kWorstNearShift * var : square * 0);  // NaN where a mean is not finite
    var = var < 0 ? vdouble{} : var;
    store(mean + j, load(near.shift + j) + distance);
    store(rstd + j, 1 / square_root(var * bessel + args.eps));
  }
  for (int64_t j = 0; j < count; ++j) {
    if (args.mean != nullptr) static_cast<A*>(args.mean)[set + j] = static_cast<A>(mean[j]);
    static_cast<A*>(args.rstd)[set + j] = static_cast<A>(rstd[j]);
    if (!(excess[j] <= 0) && !args.rms) finish_set<A>(args, set + j, twice_moments(x + j * n, n));
  }
}

}  // namespace

template <class T>
void set_statistics(const RowNormFwd& args, int64_t set, int64_t count) {
  const int64_t n = args.shape.set_size();
  const T* x = static_cast<const T*>(args.x) + set * n;
  if (n <= kSetChunk) return near_statistics(args, x, set, count);
  for (int64_t j = 0; j < count; ++j) finish_set<acc_t<T>>(args, set + j, far_moments(x + j * n, n, args.rms));
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
