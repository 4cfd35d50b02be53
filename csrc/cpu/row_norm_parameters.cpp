// Weights and biases brought into the order of memory, in the arithmetic's type; their gradients summed and brought
// back.
#include "cpu/kernels.h"
#include "cpu/row_norm.h"

namespace fastnorm {
namespace FASTNORM_ISA {
namespace {

FASTNORM_INLINE double wide(double v) { return v; }
template <class T>
FASTNORM_INLINE float wide(T v) { return to_float(v); }

FASTNORM_INLINE void narrow_to(double* out, double v) { *out = v; }
FASTNORM_INLINE void narrow_to(float* out, double v) { *out = static_cast<float>(v); }
FASTNORM_INLINE void narrow_to(bfloat16* out, double v) { *out = to_bfloat16(static_cast<float>(v)); }
FASTNORM_INLINE void narrow_to(float16* out, double v) { *out = to_float16(static_cast<float>(v)); }

template <class T, class A>
void load_rows(const Parameter& p, A* out) {
  for (int64_t row = 0; row < p.outer * p.rows; ++row, out += p.columns) {
    const T* in = static_cast<const T*>(p.data) + row / p.rows * p.outer_stride + row % p.rows * p.row_stride;
    if constexpr (std::is_same_v<acc_t<T>, A>) {
      if (p.column_stride == 1) {
        write_run(out, p.columns, false, [=](int64_t i, int m) FASTNORM_INLINED { return load(in + i, m); });
        continue;
      }
    }
    for (int64_t i = 0; i < p.columns; ++i) out[i] = static_cast<A>(wide(in[i * p.column_stride]));
  }
}

// Sums of numbers [i0, i0 + n), added in the order of units.
template <class A>
void total(const A* partial, int64_t units, int64_t stride, int64_t n, double* sums) {
  for (int64_t i = 0; i < n; ++i) sums[i] = partial[i];
  for (int64_t u = 1; u < units; ++u) {
    const A* part = partial + u * stride;
    for (int64_t i = 0; i < n; ++i) sums[i] += static_cast<double>(part[i]);
  }
}

template <class T, class A>
void store_rows(const Parameter& p, const A* partial, int64_t units, int64_t stride, int64_t row0, int64_t row1) {
  constexpr int64_t kColumns = 256;
  double sums[kParameterRows][kColumns];
  for (int64_t c0 = 0; c0 < p.columns; c0 += kColumns) {
    const int64_t n = p.columns - c0 < kColumns ? p.columns - c0 : kColumns;
    for (int64_t r = row0; r < row1; ++r) total(partial + r * p.columns + c0, units, stride, n, sums[r - row0]);
    const auto out = [&](int64_t r) {
      return static_cast<T*>(p.data) + r / p.rows * p.outer_stride + r % p.rows * p.row_stride + c0 * p.column_stride;
    };
    if (p.column_stride == 1) {
      for (int64_t r = row0; r < row1; ++r) {
        T* row = out(r);
        for (int64_t i = 0; i < n; ++i) narrow_to(row + i, sums[r - row0][i]);
      }
    } else {  // rows lie side by side: whole cache lines are written
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t r = row0; r < row1; ++r) narrow_to(out(r) + i * p.column_stride, sums[r - row0][i]);
      }
    }
  }
}

// The columns of a row share one number.
template <class T, class A>
void store_folded(const Parameter& p, const A* partial, int64_t units, int64_t stride, int64_t row0, int64_t row1) {
  for (int64_t r = row0; r < row1; ++r) {
    double sum = 0;
    for (int64_t u = 0; u < units; ++u) {
      for (int64_t i = 0; i < p.columns; ++i) sum += static_cast<double>(partial[u * stride + r * p.columns + i]);
    }
    narrow_to(static_cast<T*>(p.data) + r * p.row_stride, sum);
  }
}

}  // namespace

void load_parameter(const Parameter& p, Dtype arithmetic, void* out) {
  with_dtype(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (arithmetic == Dtype::f64) load_rows<T>(p, static_cast<double*>(out));
    else load_rows<T>(p, static_cast<float*>(out));
  });
}

void store_parameter(const Parameter& p, Dtype arithmetic, const void* partial, int64_t units, int64_t stride,
                     int64_t row0, int64_t row1) {
  with_dtype(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const auto store = [&](auto* sums) {
      for (int64_t r = row0; r < row1; r += kParameterRows) {
        const int64_t end = r + kParameterRows < row1 ? r + kParameterRows : row1;
        if (p.column_stride == 0) store_folded<T>(p, sums, units, stride, r, end);
        else store_rows<T>(p, sums, units, stride, r, end);
      }
    };
    if (arithmetic == Dtype::f64) store(static_cast<const double*>(partial));
    else store(static_cast<const float*>(partial));
  });
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
