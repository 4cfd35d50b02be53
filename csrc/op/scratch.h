// Memory of whole cache lines for the numbers that kernels keep to themselves: a vector that lies across two lines
// costs two loads, or two stores (channels_last backward, bf16: up to 1.6 times the time).
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

#include "math/macros.h"

namespace fastnorm {

constexpr int64_t kCacheLine = 64;

struct FreeLines {
  FASTNORM_INLINE void operator()(void* p) const { ::operator delete(p, std::align_val_t{kCacheLine}); }
};
template <class A>
using Scratch = std::unique_ptr<A[], FreeLines>;

// Room for n numbers, of no value yet; null for none.
template <class A>
FASTNORM_INLINE Scratch<A> scratch(int64_t n) {
  const size_t bytes = static_cast<size_t>(n) * sizeof(A);
  return Scratch<A>(n == 0 ? nullptr : static_cast<A*>(::operator new(bytes, std::align_val_t{kCacheLine})));
}

template <class A>
FASTNORM_INLINE Scratch<A> zeros(int64_t n) {
  Scratch<A> made = scratch<A>(n);
  if (n > 0) std::memset(made.get(), 0, static_cast<size_t>(n) * sizeof(A));
  return made;
}

}  // namespace fastnorm
