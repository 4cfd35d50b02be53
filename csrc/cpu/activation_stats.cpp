// Mean, standard deviation and histogram of |x| over all of a tensor: one read.
#include "math/activation_stats.h"

#include <cmath>
#include <cstring>
#include <type_traits>

#include "cpu/kernels.h"
#include "cpu/loops.h"
#include "op/activation_stats.h"

namespace fastnorm {
namespace FASTNORM_ISA {
namespace {

// Chunks between two emptyings of the tables: no number of 32 bits can overflow.
constexpr int64_t kEmptied = (int64_t{1} << 31) / kStatsChunk;

// Counts into one table a lane, table[bin * lanes + lane]: two neighbours never wait for one number. The slots of a run
// go through memory, for taking numbers out of a vector one by one costs more than counting them.
template <class T>
class Histogram {
 public:
  FASTNORM_INLINE Histogram(const ActivationStatsArgs& args, uint32_t* table)
      : bins_(args.bins, args.low, args.high), table_(table) {
    for (int k = 0; k < L; ++k) lane_[k] = k;
  }

  // Of the vector at place `at` of the run.
  FASTNORM_INLINE void find(vec_t<T> x, int64_t at) {
    const Slots slots = __builtin_convertvector(bins_.position(x), Slots) * L + lane_;
    std::memcpy(slots_ + at, &slots, sizeof slots);
  }
  FASTNORM_INLINE void count(int64_t n) {
#pragma GCC unroll 8
    for (int64_t i = 0; i < n; ++i) ++table_[static_cast<uint32_t>(slots_[i])];
  }

 private:
  static constexpr int L = kLanes<T>;
  using Slots = decltype(vec_t<T>{} < vec_t<T>{});  // integers of the arithmetic's width

  const Bins<vec_t<T>> bins_;
  uint32_t* const table_;
  Slots lane_{};
  std::conditional_t<sizeof(acc_t<T>) == 8, int64_t, int32_t> slots_[kChain * L];
};

template <bool kCount, class T>
ChannelSums chunk(const ActivationStatsArgs& args, const Around& around, uint32_t* table, int64_t begin, int64_t end) {
  using V = vec_t<T>;
  constexpr int L = kLanes<T>;
  const T* x = static_cast<const T*>(args.x) + begin;
  const V near = splat<V>(static_cast<acc_t<T>>(around.shift)), unit = splat<V>(static_cast<acc_t<T>>(around.unit));
  Histogram<T> histogram(args, table);
  V s{}, q{};
  WideSum<V> wide_s, wide_q;
  each_chain<T>(end - begin, [&](int64_t first, int64_t n) {
    const T* run = x + first;
    int64_t i = 0;
    for (; i + L <= n; i += L) {
      const V v = load(run + i), d = (v - near) * unit;
      s += d, q += d * d;
      if constexpr (kCount) histogram.find(v, i);
    }
    if (i < n) {
      const int left = static_cast<int>(n - i);
      const V v = load_first(run + i, left), d = keep_first<T>((v - near) * unit, left);
      s += d, q += d * d;
      if constexpr (kCount) histogram.find(v, i);
    }
    if constexpr (kCount) histogram.count(n);
    wide_s.take(s), wide_q.take(q);
  });
  return {wide_s.total(), wide_q.total()};
}

}  // namespace

double activation_shift(const ActivationStatsArgs& args) {
  double mean = 0;
  with_dtype(args.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr int L = kLanes<T>;
    constexpr int64_t kPlaces = 8;
    const T* x = static_cast<const T*>(args.x);
    const int64_t places = args.n < kPlaces * L ? 1 : kPlaces;
    const int count = args.n < L ? static_cast<int>(args.n) : L;
    double sum = 0;
    for (int64_t k = 0; k < places; ++k) sum += lane_sum(load(x + args.n / places * k, count));
    mean = as_stored<T>(sum / static_cast<double>(places * count));
  });
  return std::isfinite(mean) ? mean : 0;
}

void activation_sums(const ActivationStatsArgs& args, const Around& around, ChannelSums* partial, int64_t* counts,
                     uint32_t* scratch, int64_t begin, int64_t end) {
  with_dtype(args.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr int64_t L = kLanes<T>;
    static_assert(L <= kStatsTables, "the caller's scratch has kStatsTables tables");
    const auto part = [&](auto counting, int64_t c) {
      const int64_t first = c * kStatsChunk, last = first + kStatsChunk;
      partial[c] = chunk<decltype(counting)::value, T>(args, around, scratch, first, last < args.n ? last : args.n);
    };
    if (counts == nullptr) {
      for (int64_t c = begin; c < end; ++c) part(std::false_type{}, c);
      return;
    }
    for (int64_t c = begin; c < end;) {
      const int64_t stop = c + kEmptied < end ? c + kEmptied : end;
      for (int64_t i = 0; i < (args.bins + 1) * L; ++i) scratch[i] = 0;
      for (; c < stop; ++c) part(std::true_type{}, c);
      for (int64_t i = 0; i < args.bins * L; ++i) counts[i / L] += scratch[i];
    }
  });
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
