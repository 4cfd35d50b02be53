// The activation of row_norm, on tiles: nothing else of it depends on which activation it is.
#include "cpu/row_norm_columns.h"
#include "cpu/row_norm_elements.h"
#include "cpu/row_norm_planes.h"
#include "cpu/row_norm_positions.h"

namespace fastnorm {
namespace FASTNORM_ISA {
namespace {

template <class T, class F>
FASTNORM_INLINE void with_activation_of(const ActivationSpec& spec, F f) {
  with_activation(spec, [&](auto tag) { f(typename decltype(tag)::template Of<vec_t<T>>(spec)); });
}

}  // namespace

template <class T>
void activate_tile(const ActivationSpec& spec, const acc_t<T>* z, const T* residual, T* y, int64_t n, bool stream_out) {
  with_activation_of<T>(spec, [=](const auto act) {
    if (residual == nullptr) {
      write_run(y, n, stream_out, [=](int64_t i, int m) FASTNORM_INLINED { return act.forward(load(z + i, m)); });
      return;
    }
    write_run(y, n, stream_out,
              [=](int64_t i, int m) FASTNORM_INLINED { return act.forward(load(z + i, m) + load(residual + i, m)); });
  });
}

template <class T, class Rows>
void dz_of_rows(const RowNormBwd& args, const Rows& rows, int64_t count, int64_t n, bool first_sweep, acc_t<T>* dz) {
  constexpr int L = kLanes<T>;
  with_activation_of<T>(args.act, [&](const auto act) {
    for (int64_t j = 0; j < count; ++j, dz += n) {
      const auto z = rows.row(j);
      const T *dy = offset<T>(args.dy, rows.at(j)), *residual = offset<T>(args.residual, rows.at(j));
      T* dresidual = first_sweep ? offset<T>(args.dresidual, rows.at(j)) : nullptr;
      const auto step = [&](int64_t i, int m) FASTNORM_INLINED {
        const auto full = residual == nullptr ? z(i, m) : z(i, m) + load(residual + i, m);
        const auto g = act.backward(full, load(dy + i, m));
        store(dz + i, g, m);
        if (dresidual != nullptr) store(dresidual + i, g, m);
      };
      int64_t i = 0;
      for (; i + L <= n; i += L) step(i, L);
      if (i < n) step(i, static_cast<int>(n - i));
    }
  });
}

#define FASTNORM_ROWS(T, Rows) \
  template void dz_of_rows<T>(const RowNormBwd&, const Rows<T>&, int64_t, int64_t, bool, acc_t<T>*);
#define FASTNORM_ACTIVATIONS(T)                                                                      \
  template void activate_tile(const ActivationSpec&, const acc_t<T>*, const T*, T*, int64_t, bool);  \
  FASTNORM_ROWS(T, ElementRows) FASTNORM_ROWS(T, PlaneRows) FASTNORM_ROWS(T, ColumnRows) FASTNORM_ROWS(T, PositionRows)
FASTNORM_ACTIVATIONS(double)
FASTNORM_ACTIVATIONS(float)
FASTNORM_ACTIVATIONS(bfloat16)
FASTNORM_ACTIVATIONS(float16)

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
