// The 16-bit storage types and their scalar conversions, rounding to nearest even; no hardware support assumed but on a
// GPU, where one instruction each does what takes a dozen here.
#pragma once

#include <cstdint>
#include <cstring>

#include "math/macros.h"

namespace fastnorm {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

FASTNORM_INLINE uint32_t float_bits(float f) {
  uint32_t u;
  std::memcpy(&u, &f, sizeof u);
  return u;
}
FASTNORM_INLINE float bits_float(uint32_t u) {
  float f;
  std::memcpy(&f, &u, sizeof f);
  return f;
}

FASTNORM_INLINE float to_float(bfloat16 h) { return bits_float(static_cast<uint32_t>(h.bits) << 16); }
FASTNORM_INLINE bfloat16 to_bfloat16(float f) {
#if defined(__CUDA_ARCH__)
  bfloat16 h;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h.bits) : "f"(f));
  return h;
#else
  const uint32_t u = float_bits(f);
  if (f != f) return {0x7fc0};
  return {static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16)};
#endif
}

FASTNORM_INLINE float to_float(float16 h) {
#if defined(__CUDA_ARCH__)
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h.bits));
  return f;
#else
  const uint32_t sign = static_cast<uint32_t>(h.bits & 0x8000) << 16, magnitude = h.bits & 0x7fff;
  if (magnitude >= 0x7c00) return bits_float(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);  // inf, NaN
  if (magnitude >= 0x400) return bits_float(sign | ((magnitude << 13) + (112u << 23)));
  const float subnormal = static_cast<float>(magnitude) * 5.9604644775390625e-8f;  // 2^-24
  return bits_float(sign | float_bits(subnormal));
#endif
}
FASTNORM_INLINE float16 to_float16(float f) {
#if defined(__CUDA_ARCH__)
  float16 h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(f));
  return h;
#else
  const uint32_t u = float_bits(f), sign = (u >> 16) & 0x8000, magnitude = u & 0x7fffffff;
  if (magnitude > 0x7f800000) return {static_cast<uint16_t>(sign | 0x7e00)};
  if (magnitude >= 0x477ff000) return {static_cast<uint16_t>(sign | 0x7c00)};  // rounds to infinity
  if (magnitude < 0x38800000) {  // subnormal: adding 0.5 leaves the rounded count of 2^-24 in the low bits
    return {static_cast<uint16_t>(sign | (float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000))};
  }
  return {static_cast<uint16_t>(sign | ((magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13))};
#endif
}

FASTNORM_INLINE float to_float(float f) { return f; }

// v as the storage type T holds it. A shift rounded so keeps x - shift exact for 16-bit x, and their sums nearly so.
template <class T>
FASTNORM_INLINE double as_stored(double v);
template <>
FASTNORM_INLINE double as_stored<double>(double v) { return v; }
template <>
FASTNORM_INLINE double as_stored<float>(double v) { return static_cast<float>(v); }
template <>
FASTNORM_INLINE double as_stored<bfloat16>(double v) { return to_float(to_bfloat16(static_cast<float>(v))); }
template <>
FASTNORM_INLINE double as_stored<float16>(double v) { return to_float(to_float16(static_cast<float>(v))); }

}  // namespace fastnorm
