// What kernels know of tensors: a pointer, a dtype, a stride.
#pragma once

#include <cstdint>

#include "math/half.h"

namespace fastnorm {

enum class Dtype : uint8_t { f64, f32, bf16, f16 };

FASTNORM_INLINE int64_t size_of(Dtype d) { return d == Dtype::f64 ? 8 : d == Dtype::f32 ? 4 : 2; }

// v as the dtype holds it.
FASTNORM_INLINE double as_stored(double v, Dtype dtype) {
  switch (dtype) {
    case Dtype::f64: return as_stored<double>(v);
    case Dtype::f32: return as_stored<float>(v);
    case Dtype::bf16: return as_stored<bfloat16>(v);
    case Dtype::f16: return as_stored<float16>(v);
  }
  return v;
}

// One number per channel, of any floating dtype and stride; data is null where the argument is absent.
struct ChannelVector {
  void* data = nullptr;
  int64_t stride = 0;
  Dtype dtype = Dtype::f32;
};

FASTNORM_INLINE double read(const ChannelVector& v, int64_t c, double absent) {
  if (v.data == nullptr) return absent;
  const int64_t i = c * v.stride;
  switch (v.dtype) {
    case Dtype::f64: return static_cast<const double*>(v.data)[i];
    case Dtype::f32: return static_cast<const float*>(v.data)[i];
    case Dtype::bf16: return to_float(static_cast<const bfloat16*>(v.data)[i]);
    case Dtype::f16: return to_float(static_cast<const float16*>(v.data)[i]);
  }
  return absent;
}

FASTNORM_INLINE void write(const ChannelVector& v, int64_t c, double value) {
  if (v.data == nullptr) return;
  const int64_t i = c * v.stride;
  switch (v.dtype) {
    case Dtype::f64: static_cast<double*>(v.data)[i] = value; break;
    case Dtype::f32: static_cast<float*>(v.data)[i] = static_cast<float>(value); break;
    case Dtype::bf16: static_cast<bfloat16*>(v.data)[i] = to_bfloat16(static_cast<float>(value)); break;
    case Dtype::f16: static_cast<float16*>(v.data)[i] = to_float16(static_cast<float>(value)); break;
  }
}

}  // namespace fastnorm
