// What the optimizers' loops share: a chunk of a parameter is updated in the arithmetic's own type. Tensors of that
// type are read and written where they lie; all others pass through a small buffer (optim_stage.cpp).
#pragma once

#include <cmath>

#include "cpu/vec.h"
#include "op/optim.h"
#include "op/scratch.h"

namespace fastnorm {
namespace FASTNORM_ISA {

constexpr int64_t kStage = 512;  // elements: six fp32 buffers of it lie in L1 beside the tensors

struct Root {
  FASTNORM_INLINE vdouble operator()(vdouble v) const { return square_root(v); }
  FASTNORM_INLINE vfloat operator()(vfloat v) const {
#if defined(__AVX512F__)
    return (vfloat)_mm512_sqrt_ps((__m512)v);
#elif defined(__AVX2__)
    return (vfloat)_mm256_sqrt_ps((__m256)v);
#elif defined(__SSE__)
    return (vfloat)_mm_sqrt_ps((__m128)v);
#else
    for (unsigned i = 0; i < sizeof v / sizeof v[0]; ++i) v[i] = __builtin_sqrtf(v[i]);
    return v;
#endif
  }
};

// Elements [begin, begin + n) of a stream, converted into out; and back, rounded to nearest or at random.
void stage_in(const OptimStream& from, int64_t begin, int64_t n, float* out);
void stage_in(const OptimStream& from, int64_t begin, int64_t n, double* out);
void stage_out(const OptimStream& to, int64_t begin, int64_t n, const float* from);
void stage_out(const OptimStream& to, int64_t begin, int64_t n, const double* from);
void stage_out_at_random(const OptimStream& to, int64_t begin, int64_t n, const float* from, uint64_t key);

template <class T>
constexpr Dtype kDtype = sizeof(T) == 8 ? Dtype::f64 : Dtype::f32;

template <class T>
FASTNORM_INLINE bool in_place(const OptimStream& s) {
  return s.dtype == kDtype<T> && s.layout == nullptr;
}

template <class T>
struct Elements {
  const T* in;
  T* out;
};

template <class Rule, class T>
FASTNORM_INLINE void update_vector(const Rule& rule, const Elements<T>& param, const T* grad, const Elements<T>* state,
                                   int64_t i, int n) {
  vec_t<T> p = load(param.in + i, n), s[Rule::kStates + 1];
  for (int k = 0; k < Rule::kStates; ++k) s[k] = load(state[k].in + i, n);
  rule.update(p, load(grad + i, n), s, Root{});
  store(param.out + i, p, n);
  for (int k = 0; k < Rule::kStates; ++k) store(state[k].out + i, s[k], n);
}

template <class Rule, class T>
void update_run(const Rule& given, const Elements<T> param, const T* grad, const Elements<T>* places, int64_t n) {
  constexpr int L = kLanes<T>;
  const Rule rule(given);  // copies that no store can change: they stay in registers
  Elements<T> state[Rule::kStates + 1];
  for (int k = 0; k < Rule::kStates; ++k) state[k] = places[k];
  int64_t i = 0;
  for (; i + L <= n; i += L) update_vector(rule, param, grad, state, i, L);
  if (i < n) update_vector(rule, param, grad, state, i, static_cast<int>(n - i));
}

template <class Rule, class T>
void update_staged(const Rule& rule, const OptimRow& row, int64_t begin, int64_t n) {
  alignas(kCacheLine) T buffer[kMostStates + 2][kStage];
  const auto staged = [&](const OptimStream& s, T* room, bool reads) {
    if (in_place<T>(s)) {
      return Elements<T>{static_cast<const T*>(s.in) + begin, s.out ? static_cast<T*>(s.out) + begin : nullptr};
    }
    if (reads) stage_in(s, begin, n, room);
    return Elements<T>{room, room};
  };
  const Elements<T> param = staged(row.param, buffer[0], true), grad = staged(row.grad, buffer[1], true);
  Elements<T> state[Rule::kStates + 1];
  for (int k = 0; k < Rule::kStates; ++k) state[k] = staged(row.state[k], buffer[2 + k], true);
  update_run(rule, param, grad.in, state, n);
  const auto put = [&](const OptimStream& s, const T* from) {
    if constexpr (sizeof(T) == 4) {
      if (row.stochastic) return stage_out_at_random(s, begin, n, from, row.key);
    }
    stage_out(s, begin, n, from);
  };
  if (!in_place<T>(row.param)) put(row.param, param.out);
  if (row.rounded.out != nullptr) put(row.rounded, param.out);
  for (int k = 0; k < Rule::kStates; ++k) {
    if (!in_place<T>(row.state[k])) stage_out(row.state[k], begin, n, state[k].out);
  }
}

template <class Rule, class T>
void update_chunk(const Rule& rule, const OptimRow& row, int64_t begin, int64_t end) {
  bool direct = in_place<T>(row.param) && in_place<T>(row.grad) && row.rounded.out == nullptr;
  for (int k = 0; k < Rule::kStates; ++k) direct = direct && in_place<T>(row.state[k]);
  if (!direct) {
    for (; begin < end; begin += kStage) {
      update_staged<Rule, T>(rule, row, begin, end - begin < kStage ? end - begin : kStage);
    }
    return;
  }
  const auto at = [&](const OptimStream& s) {
    return Elements<T>{static_cast<const T*>(s.in) + begin, static_cast<T*>(s.out) + begin};
  };
  Elements<T> state[Rule::kStates + 1];
  for (int k = 0; k < Rule::kStates; ++k) state[k] = at(row.state[k]);
  update_run(rule, at(row.param), static_cast<const T*>(row.grad.in) + begin, state, end - begin);
}

// A run of chunks that take the same rule: Rule<V> in the arithmetic of their rows. Numbers that stay the same from one
// small parameter to the next are spread over the lanes once.
template <template <class> class Rule, class T, class Same>
int64_t update_alike(const OptimTable& table, int64_t c, int64_t end, Same same) {
  using Numbers = typename Rule<vec_t<T>>::Numbers;
  const OptimRow& first = table.rows[table.chunks[c].row];
  const Rule<vec_t<T>> rule(static_cast<const Numbers*>(table.numbers)[first.set]);
  do {
    const OptimChunk& chunk = table.chunks[c];
    update_chunk<Rule<vec_t<T>>, T>(rule, table.rows[chunk.row], chunk.begin, chunk.end);
    ++c;
  } while (c < end && same(first, table.rows[table.chunks[c].row]));
  return c;
}

// The names of the rules given here must differ from file to file: the linker tells functions apart by them.
template <template <class> class Rule>
int64_t update(const OptimTable& table, int64_t c, int64_t end) {
  const auto same = [](const OptimRow& a, const OptimRow& b) {
    return a.set == b.set && a.wide == b.wide && a.states == b.states && a.centered == b.centered;
  };
  if (table.rows[table.chunks[c].row].wide) return update_alike<Rule, double>(table, c, end, same);
  return update_alike<Rule, float>(table, c, end, same);
}

void sgd(const OptimTable& table, int64_t chunk0, int64_t chunk1);
void rmsprop(const OptimTable& table, int64_t chunk0, int64_t chunk1);
void adam(const OptimTable& table, int64_t chunk0, int64_t chunk1);
void adam_bwd(const AdamBwdArgs& args, int64_t chunk0, int64_t chunk1);
void grad_squares(const OptimTable& table, double* squares, int64_t chunk0, int64_t chunk1);

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
