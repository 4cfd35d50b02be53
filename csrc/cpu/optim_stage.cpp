// Elements of any dtype and stride to the arithmetic's type and back, a few hundred at a time; and the gradients' norm.
#include <type_traits>

#include "cpu/optim.h"

namespace fastnorm {
namespace FASTNORM_ISA {
namespace {

// Calls f(place, element) for n elements from `begin` on, in the order of the layout.
template <class F>
void walk(const OptimLayout& layout, int64_t begin, int64_t n, F f) {
  const size_t dims = layout.sizes.size();
  int64_t place = 0, rest = begin, at[64];
  for (size_t d = dims; d-- > 0;) {
    at[d] = rest % layout.sizes[d];
    rest /= layout.sizes[d];
    place += at[d] * layout.strides[d];
  }
  for (int64_t i = 0; i < n; ++i) {
    f(place, i);
    for (size_t d = dims; d-- > 0;) {
      place += layout.strides[d];
      if (++at[d] < layout.sizes[d]) break;
      place -= at[d] * layout.strides[d];
      at[d] = 0;
    }
  }
}

template <class F>
void with_type(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::f64: return f(static_cast<double*>(nullptr));
    case Dtype::f32: return f(static_cast<float*>(nullptr));
    case Dtype::bf16: return f(static_cast<bfloat16*>(nullptr));
    case Dtype::f16: return f(static_cast<float16*>(nullptr));
  }
}

template <class S, class T>
void widen(const S* from, int64_t n, T* to) {
  int64_t i = 0;
  if constexpr (sizeof(S) == 2 && sizeof(T) == 4) {
    for (; i + kLanes<S> <= n; i += kLanes<S>) store(to + i, load(from + i));
    if (i < n) store_first(to + i, load_first(from + i, static_cast<int>(n - i)), static_cast<int>(n - i));
  } else if constexpr (sizeof(S) == 2) {
    for (; i < n; ++i) to[i] = to_float(from[i]);
  } else {
    for (; i < n; ++i) to[i] = static_cast<T>(from[i]);
  }
}

FASTNORM_INLINE void assign(double& to, double from) { to = from; }
FASTNORM_INLINE void assign(float& to, double from) { to = static_cast<float>(from); }
FASTNORM_INLINE void assign(bfloat16& to, double from) { to = to_bfloat16(static_cast<float>(from)); }
FASTNORM_INLINE void assign(float16& to, double from) { to = to_float16(static_cast<float>(from)); }

template <class S, class T>
void narrow_to(const T* from, int64_t n, S* to) {
  int64_t i = 0;
  if constexpr (sizeof(S) == 2 && sizeof(T) == 4) {
    for (; i + kLanes<S> <= n; i += kLanes<S>) store(to + i, load(from + i));
    if (i < n) store_first(to + i, load_first(from + i, static_cast<int>(n - i)), static_cast<int>(n - i));
  } else {
    for (; i < n; ++i) assign(to[i], from[i]);
  }
}

template <class T>
void any_in(const OptimStream& s, int64_t begin, int64_t n, T* out) {
  with_type(s.dtype, [&](auto* type) {
    using S = std::remove_pointer_t<decltype(type)>;
    const S* from = static_cast<const S*>(s.in);
    if (s.layout == nullptr) return widen(from + begin, n, out);
    alignas(kCacheLine) S gathered[kStage];
    walk(*s.layout, begin, n, [&](int64_t place, int64_t i) { gathered[i] = from[place]; });
    widen(gathered, n, out);
  });
}

template <class S>
void scatter(const OptimStream& s, int64_t begin, int64_t n, const S* from) {
  S* to = static_cast<S*>(s.out);
  walk(*s.layout, begin, n, [&](int64_t place, int64_t i) { to[place] = from[i]; });
}

template <class T>
void any_out(const OptimStream& s, int64_t begin, int64_t n, const T* from) {
  with_type(s.dtype, [&](auto* type) {
    using S = std::remove_pointer_t<decltype(type)>;
    if (s.layout == nullptr) return narrow_to(from, n, static_cast<S*>(s.out) + begin);
    alignas(kCacheLine) S narrowed[kStage];
    narrow_to(from, n, narrowed);
    scatter(s, begin, n, narrowed);
  });
}

// A hash whose bits all depend on all bits of the input, good enough to round with (docs/math.md, O5).
FASTNORM_INLINE uint32_t random_bits(uint64_t element, uint64_t key) {
  uint32_t h = static_cast<uint32_t>(element) * 0x9e3779b9u + static_cast<uint32_t>(key);
  h ^= static_cast<uint32_t>(element >> 32) * 0x85ebca6bu ^ static_cast<uint32_t>(key >> 32);
  h = (h ^ (h >> 16)) * 0x7feb352du;
  h = (h ^ (h >> 15)) * 0x846ca68bu;
  return h ^ (h >> 16);
}

// The neighbour below or above in magnitude, the nearer one more often; what is exact stays.
FASTNORM_INLINE bfloat16 rounded_at_random(float f, uint32_t random, bfloat16) {
  const uint32_t u = float_bits(f);
  if ((u & 0x7f800000u) == 0x7f800000u) return to_bfloat16(f);
  return {static_cast<uint16_t>((u + (random & 0xffffu)) >> 16)};
}
FASTNORM_INLINE float16 rounded_at_random(float f, uint32_t random, float16) {
  const uint32_t u = float_bits(f), sign = u & 0x80000000u;
  if ((u & 0x7f800000u) == 0x7f800000u) return to_float16(f);
  if ((u & 0x7fffffffu) >= 0x38800000u) return to_float16(bits_float((u + (random & 0x1fffu)) & ~0x1fffu));
  const float quanta = bits_float(u & 0x7fffffffu) * 16777216.0f;  // of 2^-24: a subnormal half's own spacing
  const auto count = static_cast<uint32_t>(quanta + static_cast<float>(random & 0x1fffu) * (1.0f / 8192.0f));
  return {static_cast<uint16_t>(sign >> 16 | count)};
}

template <class S>
void out_at_random(const OptimStream& s, int64_t begin, int64_t n, const float* from, uint64_t key) {
  alignas(kCacheLine) S rounded[kStage];
  S* to = s.layout == nullptr ? static_cast<S*>(s.out) + begin : rounded;
  for (int64_t i = 0; i < n; ++i) {
    to[i] = rounded_at_random(from[i], random_bits(static_cast<uint64_t>(begin + i), key), S{});
  }
  if (s.layout != nullptr) scatter(s, begin, n, rounded);
}

typedef float half_vector __attribute__((vector_size(kRegister / 2)));
FASTNORM_INLINE vdouble wide(const float* p) {
  half_vector h;
  std::memcpy(&h, p, sizeof h);
  return __builtin_convertvector(h, vdouble);
}
FASTNORM_INLINE vdouble wide(const double* p) { return load(p); }

template <class T>
double sum_squares(const T* x, int64_t n) {
  constexpr int L = kLanes<double>;
  vdouble a{}, b{};
  int64_t i = 0;
  for (; i + 2 * L <= n; i += 2 * L) {
    const vdouble u = wide(x + i), v = wide(x + i + L);
    a += u * u, b += v * v;
  }
  double rest = 0;
  for (; i < n; ++i) rest += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return lane_sum(a + b) + rest;
}

template <class T>
double row_squares(const OptimStream& grad, int64_t begin, int64_t end) {
  if (in_place<T>(grad)) return sum_squares(static_cast<const T*>(grad.in) + begin, end - begin);
  double sum = 0;
  alignas(kCacheLine) T buffer[kStage];
  for (; begin < end; begin += kStage) {
    const int64_t n = end - begin < kStage ? end - begin : kStage;
    any_in(grad, begin, n, buffer);
    sum += sum_squares(buffer, n);
  }
  return sum;
}

}  // namespace

void stage_in(const OptimStream& s, int64_t begin, int64_t n, float* out) { any_in(s, begin, n, out); }
void stage_in(const OptimStream& s, int64_t begin, int64_t n, double* out) { any_in(s, begin, n, out); }
void stage_out(const OptimStream& s, int64_t begin, int64_t n, const float* from) { any_out(s, begin, n, from); }
void stage_out(const OptimStream& s, int64_t begin, int64_t n, const double* from) { any_out(s, begin, n, from); }

void stage_out_at_random(const OptimStream& s, int64_t begin, int64_t n, const float* from, uint64_t key) {
  if (s.dtype == Dtype::bf16) out_at_random<bfloat16>(s, begin, n, from, key);
  else if (s.dtype == Dtype::f16) out_at_random<float16>(s, begin, n, from, key);
  else any_out(s, begin, n, from);
}

void grad_squares(const OptimTable& table, double* squares, int64_t chunk0, int64_t chunk1) {
  for (int64_t c = chunk0; c < chunk1; ++c) {
    const OptimChunk& chunk = table.chunks[c];
    const OptimRow& row = table.rows[chunk.row];
    squares[c] = row.wide ? row_squares<double>(row.grad, chunk.begin, chunk.end)
                          : row_squares<float>(row.grad, chunk.begin, chunk.end);
  }
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
