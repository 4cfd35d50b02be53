// SIMD vectors of the instruction set this file is compiled for, and loads and stores of every storage type.
//
// Each kernel file is compiled once per instruction set, with FASTNORM_ISA naming its namespace; arithmetic is the
// compiler's own on vector types, so that csrc/math serves scalars and vectors alike.
#pragma once

#include <cstdint>
#include <cstring>

#include "math/half.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastnorm {
namespace FASTNORM_ISA {

#if defined(__AVX512F__)
constexpr int kRegister = 64;
#elif defined(__AVX2__)
constexpr int kRegister = 32;
#else
constexpr int kRegister = 16;
#endif

typedef float vfloat __attribute__((vector_size(kRegister)));
typedef double vdouble __attribute__((vector_size(kRegister)));
typedef uint32_t vuint __attribute__((vector_size(kRegister)));

// Storage type -> the type its arithmetic runs in.
template <class T> struct Arithmetic { using scalar = float; using vec = vfloat; };
template <> struct Arithmetic<double> { using scalar = double; using vec = vdouble; };
template <class T> using acc_t = typename Arithmetic<T>::scalar;
template <class T> using vec_t = typename Arithmetic<T>::vec;
template <class T> constexpr int kLanes = kRegister / static_cast<int>(sizeof(acc_t<T>));

template <class V, class A>
FASTNORM_INLINE V splat(A a) { return a - V{}; }

// The sum of all lanes, halves added to halves.
FASTNORM_INLINE double lane_sum(vdouble v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_pd((__m512d)v);
#else
  double lanes[kRegister / sizeof(double)];
  std::memcpy(lanes, &v, sizeof v);
  for (int half = kRegister / static_cast<int>(2 * sizeof(double)); half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
#endif
}
FASTNORM_INLINE double lane_sum(vfloat v) {
#if defined(__AVX512F__)
  return lane_sum((vdouble)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)v)) +
                  (vdouble)_mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)v, 1)));
#else
  constexpr int kHalf = kRegister / static_cast<int>(sizeof(double));
  vdouble sum;
  for (int i = 0; i < kHalf; ++i) sum[i] = static_cast<double>(v[i]) + static_cast<double>(v[i + kHalf]);
  return lane_sum(sum);
#endif
}

FASTNORM_INLINE vdouble square_root(vdouble v) {
#if defined(__AVX512F__)
  return (vdouble)_mm512_sqrt_pd((__m512d)v);
#elif defined(__AVX2__)
  return (vdouble)_mm256_sqrt_pd((__m256d)v);
#else
  for (unsigned i = 0; i < sizeof v / sizeof v[0]; ++i) v[i] = __builtin_sqrt(v[i]);
  return v;
#endif
}

// p, after the sanitizer build has read the first and the last of its n elements: gcc's address sanitizer does not see
// what masked and streaming intrinsics touch.
template <class T>
FASTNORM_INLINE T* shown(T* p, [[maybe_unused]] int n) {
#if defined(__SANITIZE_ADDRESS__)
  const volatile char* bytes = reinterpret_cast<const volatile char*>(p);
  (void)bytes[0], (void)bytes[n * static_cast<int>(sizeof(T)) - 1];
#endif
  return p;
}

// ---- full registers

template <class V, class T>
FASTNORM_INLINE V load_bits(const T* p) { V v; std::memcpy(&v, p, sizeof v); return v; }

FASTNORM_INLINE vfloat load(const float* p) { return load_bits<vfloat>(p); }
FASTNORM_INLINE vdouble load(const double* p) { return load_bits<vdouble>(p); }
FASTNORM_INLINE void store(float* p, vfloat v) { std::memcpy(p, &v, sizeof v); }
FASTNORM_INLINE void store(double* p, vdouble v) { std::memcpy(p, &v, sizeof v); }

// Rounded to the nearest even bfloat16, NaN kept NaN: in the low half of each lane.
FASTNORM_INLINE vuint bfloat16_lanes(vfloat v) {
  const vuint u = reinterpret_cast<vuint>(v);
  return (v == v ? u + 0x7fffu + ((u >> 16) & 1u) : vuint{} + 0x7fc00000u) >> 16;
}

#if defined(__AVX512F__)

FASTNORM_INLINE vfloat load(const bfloat16* p) {
  return (vfloat)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
}
FASTNORM_INLINE vfloat load(const float16* p) {
  return (vfloat)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
}
// The hardware's conversion takes denormals for zeros: vectors that have one are rounded by integers.
constexpr int kDenormal = 0x20;
__attribute__((noinline)) inline __m256i pack_exactly(vfloat v) {
  return _mm512_cvtepi32_epi16((__m512i)bfloat16_lanes(v));
}
FASTNORM_INLINE __m256i pack(vfloat v, bfloat16) {
  if (__builtin_expect(_mm512_fpclass_ps_mask((__m512)v, kDenormal) != 0, 0)) return pack_exactly(v);
  return (__m256i)_mm512_cvtneps_pbh((__m512)v);
}
FASTNORM_INLINE __m256i pack(vfloat v, float16) {
  return _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
template <class H>
FASTNORM_INLINE void store(H* p, vfloat v) { _mm256_storeu_si256((__m256i*)p, pack(v, H{})); }
template <class H>
FASTNORM_INLINE void stream(H* p, vfloat v) { _mm256_stream_si256((__m256i*)shown(p, kLanes<H>), pack(v, H{})); }
FASTNORM_INLINE void stream(float* p, vfloat v) { _mm512_stream_ps(shown(p, kLanes<float>), (__m512)v); }
FASTNORM_INLINE void stream(double* p, vdouble v) { _mm512_stream_pd(shown(p, kLanes<double>), (__m512d)v); }

// Two neighbouring vectors at once: 16-bit types then fill a whole register and cache line.
FASTNORM_INLINE __m512i pack_pair(vfloat a, vfloat b, bfloat16) {
  const int denormal = _mm512_fpclass_ps_mask((__m512)a, kDenormal) | _mm512_fpclass_ps_mask((__m512)b, kDenormal);
  if (__builtin_expect(denormal == 0, 1)) return (__m512i)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a);
  return _mm512_inserti64x4(_mm512_castsi256_si512(pack_exactly(a)), pack_exactly(b), 1);
}
FASTNORM_INLINE __m512i pack_pair(vfloat a, vfloat b, float16) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(pack(a, float16{})), pack(b, float16{}), 1);
}
template <class H>
FASTNORM_INLINE void store_pair(H* p, vfloat a, vfloat b) { _mm512_storeu_si512(p, pack_pair(a, b, H{})); }
template <class H>
FASTNORM_INLINE void stream_pair(H* p, vfloat a, vfloat b) {
  _mm512_stream_si512((__m512i*)shown(p, 2 * kLanes<H>), pack_pair(a, b, H{}));
}

// ---- the first n lanes (0 < n < lanes), the rest read as 0 and left unwritten

FASTNORM_INLINE __mmask16 first(int n) { return (__mmask16)((1u << n) - 1); }
FASTNORM_INLINE vfloat load_first(const float* p, int n) {
  return (vfloat)_mm512_maskz_loadu_ps(first(n), shown(p, n));
}
FASTNORM_INLINE vdouble load_first(const double* p, int n) {
  return (vdouble)_mm512_maskz_loadu_pd((__mmask8)first(n), shown(p, n));
}
FASTNORM_INLINE vfloat load_first(const bfloat16* p, int n) {
  return (vfloat)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(n), shown(p, n))), 16);
}
FASTNORM_INLINE vfloat load_first(const float16* p, int n) {
  return (vfloat)_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), shown(p, n)));
}
FASTNORM_INLINE void store_first(float* p, vfloat v, int n) {
  _mm512_mask_storeu_ps(shown(p, n), first(n), (__m512)v);
}
FASTNORM_INLINE void store_first(double* p, vdouble v, int n) {
  _mm512_mask_storeu_pd(shown(p, n), (__mmask8)first(n), (__m512d)v);
}
template <class H>
FASTNORM_INLINE void store_first(H* p, vfloat v, int n) {
  _mm256_mask_storeu_epi16(shown(p, n), first(n), pack(v, H{}));
}

#else  // narrower: the same names over AVX2, or over whatever the compiler's vectors become

#if defined(__AVX2__)
FASTNORM_INLINE vfloat load(const bfloat16* p) {
  return (vfloat)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
}
FASTNORM_INLINE vfloat load(const float16* p) { return (vfloat)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
FASTNORM_INLINE __m128i pack(vfloat v, bfloat16) {
  const __m256i u = (__m256i)bfloat16_lanes(v);
  return _mm_packus_epi32(_mm256_castsi256_si128(u), _mm256_extracti128_si256(u, 1));
}
FASTNORM_INLINE __m128i pack(vfloat v, float16) { return _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT); }
template <class H>
FASTNORM_INLINE void store(H* p, vfloat v) { _mm_storeu_si128((__m128i*)p, pack(v, H{})); }
template <class H>
FASTNORM_INLINE void stream(H* p, vfloat v) { _mm_stream_si128((__m128i*)shown(p, kLanes<H>), pack(v, H{})); }
FASTNORM_INLINE void stream(float* p, vfloat v) { _mm256_stream_ps(shown(p, kLanes<float>), (__m256)v); }
FASTNORM_INLINE void stream(double* p, vdouble v) { _mm256_stream_pd(shown(p, kLanes<double>), (__m256d)v); }
#else
// No hardware conversions: kept out of line, for inlining these into every loop makes megabytes of code.
template <class H>
__attribute__((noinline)) vfloat load(const H* p) {
  vfloat v;
  for (int i = 0; i < kLanes<H>; ++i) v[i] = to_float(p[i]);
  return v;
}
FASTNORM_INLINE bfloat16 narrow(float f, bfloat16) { return to_bfloat16(f); }
FASTNORM_INLINE float16 narrow(float f, float16) { return to_float16(f); }
template <class H>
__attribute__((noinline)) void store(H* p, vfloat v) {
  for (int i = 0; i < kLanes<H>; ++i) p[i] = narrow(v[i], H{});
}
template <class T, class V>
FASTNORM_INLINE void stream(T* p, V v) { store(p, v); }
#endif

template <class T>
FASTNORM_INLINE vec_t<T> load_first(const T* p, int n) {
  T lanes[kLanes<T>] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}
template <class T>
FASTNORM_INLINE void store_first(T* p, vec_t<T> v, int n) {
  T lanes[kLanes<T>];
  store(lanes, v);
  for (int i = 0; i < n; ++i) p[i] = lanes[i];
}

#endif

#if !defined(__AVX512F__)
template <class T>
FASTNORM_INLINE void store_pair(T* p, vec_t<T> a, vec_t<T> b) { store(p, a), store(p + kLanes<T>, b); }
template <class T>
FASTNORM_INLINE void stream_pair(T* p, vec_t<T> a, vec_t<T> b) { stream(p, a), stream(p + kLanes<T>, b); }
#else
FASTNORM_INLINE void store_pair(float* p, vfloat a, vfloat b) { store(p, a), store(p + kLanes<float>, b); }
FASTNORM_INLINE void store_pair(double* p, vdouble a, vdouble b) { store(p, a), store(p + kLanes<double>, b); }
FASTNORM_INLINE void stream_pair(float* p, vfloat a, vfloat b) { stream(p, a), stream(p + kLanes<float>, b); }
FASTNORM_INLINE void stream_pair(double* p, vdouble a, vdouble b) { stream(p, a), stream(p + kLanes<double>, b); }
#endif

// The elements of two neighbouring vectors, in any order: for sums. bfloat16 then costs one instruction a vector.
template <class T>
FASTNORM_INLINE void load_two(const T* p, vec_t<T>& a, vec_t<T>& b) { a = load(p), b = load(p + kLanes<T>); }
#if defined(__AVX2__)
FASTNORM_INLINE void load_two(const bfloat16* p, vfloat& a, vfloat& b) {
  const vuint both = load_bits<vuint>(p);
  a = reinterpret_cast<vfloat>(both << 16), b = reinterpret_cast<vfloat>(both & 0xffff0000u);
}
#endif

// Fetches the cache line of p into L2; p may lie outside of any tensor.
FASTNORM_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }
FASTNORM_INLINE void prefetch_to_write(const void* p) { __builtin_prefetch(p, 1, 2); }
template <class T>
FASTNORM_INLINE void prefetch_run(const T* p, int64_t n) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < n; i += kLine) prefetch(p + i);
}

// n is the constant kLanes<T> in every main loop, where these are the full-register forms.
template <class T>
FASTNORM_INLINE vec_t<T> load(const T* p, int n) { return n == kLanes<T> ? load(p) : load_first(p, n); }
template <class T>
FASTNORM_INLINE void store(T* p, vec_t<T> v, int n) { n == kLanes<T> ? store(p, v) : store_first(p, v, n); }

// Lanes from n on become 0.
template <class T>
FASTNORM_INLINE vec_t<T> keep_first(vec_t<T> v, int n) {
  if (n == kLanes<T>) return v;
#if defined(__AVX512F__)
  if constexpr (sizeof(acc_t<T>) == 4) return (vec_t<T>)_mm512_maskz_mov_ps(first(n), (__m512)v);
  else return (vec_t<T>)_mm512_maskz_mov_pd((__mmask8)first(n), (__m512d)v);
#else
  acc_t<T> lanes[kLanes<T>];
  store(lanes, v);
  return load_first(lanes, n);
#endif
}

FASTNORM_INLINE void stream_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
