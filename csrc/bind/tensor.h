// Tensors at the border to torch: what comes in is checked and brought into a dense order, what goes out is allocated.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "op/tensor.h"

namespace fastnorm {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using OptionalNumber = std::optional<double>;

// The dtype, or an error that names the argument.
Dtype dtype_of(const Tensor& t, const char* name);

// A norm keeps channels_last; every other input gives a contiguous output (fastnorm/eager/layout.py has the same rule).
MemoryFormat memory_format_of(const Tensor& x);

// t itself where it already lies dense in this format, else a copy: the one route for every other stride.
Tensor dense(const Tensor& t, MemoryFormat format);

// As dense, after checking that t has x's shape, dtype and device.
Tensor dense_like(const Tensor& t, const Tensor& x, const char* name, MemoryFormat format);

// A new tensor of x's shape and dtype on its device, dense in this format.
Tensor empty_like(const Tensor& x, MemoryFormat format);
// A new tensor on the CPU, or on x's device.
Tensor empty(std::vector<int64_t> sizes, ScalarType dtype);
Tensor empty_beside(const Tensor& x, std::vector<int64_t> sizes, ScalarType dtype);

// Raises where t is not on x's device.
void check_device(const Tensor& t, const Tensor& x, const char* name);

// [C] of any floating dtype and stride, or absent; on the CPU, or on x's device.
ChannelVector channel_vector(const OptionalTensor& v, const char* name, int64_t channels);
ChannelVector channel_vector(const OptionalTensor& v, const char* name, const Tensor& x);

// Whether outputs should be written past the caches: what one call touches does not fit the last of them.
bool beyond_cache(int64_t bytes);
// Moves that boundary and returns where it was: for tests, which reach the kernels' other stores on small tensors so.
int64_t set_cached_bytes(int64_t bytes);

// f(begin, end) over [0, units), on torch's threads if there are elements enough to pay for waking them.
constexpr int64_t kSerialElements = 32768;
template <class F>
void parallel(int64_t units, int64_t elements, const F& f) {
  if (units <= 1 || elements < kSerialElements) f(int64_t{0}, units);
  else torch::stable::parallel_for(0, units, 1, f);
}

}  // namespace fastnorm
