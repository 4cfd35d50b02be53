#include "bind/tensor.h"

#include <atomic>
#include <cstdio>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastnorm {
namespace {

constexpr int64_t kHugePage = 2 << 20;
constexpr int64_t kFreshBytes = 4 << 20;  // from here on malloc hands out pages that are not mapped yet, now and then

std::vector<int64_t> strides_of(const Tensor& x, MemoryFormat format) {
  const auto sizes = x.sizes();
  const int64_t dims = x.dim();
  std::vector<int64_t> strides(static_cast<size_t>(dims));
  int64_t step = 1;
  const auto take = [&](int64_t d) {
    strides[static_cast<size_t>(d)] = step;
    step *= sizes[static_cast<size_t>(d)] > 1 ? sizes[static_cast<size_t>(d)] : 1;
  };
  if (format == MemoryFormat::Contiguous) {
    for (int64_t d = dims - 1; d >= 0; --d) take(d);
  } else {
    take(1);
    for (int64_t d = dims - 1; d > 1; --d) take(d);
    take(0);
  }
  return strides;
}

bool is_dense(const Tensor& t, MemoryFormat format) {
  if (format == MemoryFormat::Contiguous) return t.is_contiguous();
  const auto sizes = t.sizes(), strides = t.strides();
  const auto wanted = strides_of(t, format);
  for (size_t d = 0; d < wanted.size(); ++d) {
    if (sizes[d] > 1 && strides[d] != wanted[d]) return false;
  }
  return true;
}

// Large outputs come as unmapped pages; asking for huge ones saves most of the page faults of the first write.
void advise(void* data, int64_t bytes) {
#if defined(__linux__)
  if (bytes < kFreshBytes) return;
  const auto begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
  const auto end = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) / kHugePage * kHugePage;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

// Of the cache that this core shares, not (as sysconf has it) of all of them in the machine; 32 MB where nobody says.
int64_t last_cache_bytes() {
  long kilobytes = 0;
  if (std::FILE* file = std::fopen("/sys/devices/system/cpu/cpu0/cache/index3/size", "r")) {
    if (std::fscanf(file, "%ldK", &kilobytes) != 1) kilobytes = 0;
    std::fclose(file);
  }
  return kilobytes > 0 ? int64_t{kilobytes} << 10 : int64_t{32} << 20;
}

// Three quarters of it: what one call touches is seldom alone there.
std::atomic<int64_t>& cached_bytes() {
  static std::atomic<int64_t> bytes{last_cache_bytes() / 4 * 3};
  return bytes;
}

struct Place {
  int32_t type = aoti_torch_device_type_cpu(), index = 0;
};

Place place_of(const Tensor& x) {
  if (x.is_cpu()) return {};
  Place place;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(x.get(), &place.type));
  place.index = x.get_device_index();
  return place;
}

Tensor allocate(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, ScalarType dtype,
                const Place& place) {
  AtenTensorHandle handle = nullptr;
  const auto code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                         strides.data(), code, place.type, place.index, &handle));
  return Tensor(handle);
}

}  // namespace

Dtype dtype_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Double: return Dtype::f64;
    case ScalarType::Float: return Dtype::f32;
    case ScalarType::BFloat16: return Dtype::bf16;
    case ScalarType::Half: return Dtype::f16;
    default: STD_TORCH_CHECK(false, name, " must be fp64, fp32, bf16 or fp16");
  }
}

MemoryFormat memory_format_of(const Tensor& x) {
  const int64_t dims = x.dim();
  if ((dims != 4 && dims != 5) || x.is_contiguous()) return MemoryFormat::Contiguous;
  const MemoryFormat channels_last = dims == 4 ? MemoryFormat::ChannelsLast : MemoryFormat::ChannelsLast3d;
  if (is_dense(x, channels_last)) return channels_last;
  const auto sizes = x.sizes(), strides = x.strides();
  if (strides[1] == 0) return MemoryFormat::Contiguous;
  const int64_t order[] = {1, dims - 1, dims - 2, dims == 5 ? int64_t{2} : int64_t{0}, 0};
  int64_t smallest = 0;
  for (int64_t i = 0; i < dims; ++i) {
    const auto d = static_cast<size_t>(order[i]);
    if (sizes[d] == 0 || strides[d] < smallest) return MemoryFormat::Contiguous;
    if (d == 0 && smallest == strides[1]) return MemoryFormat::Contiguous;  // N x 1 x 1: both fit
    smallest = strides[d] * (sizes[d] > 1 ? sizes[d] : 1);
  }
  return channels_last;
}

Tensor dense(const Tensor& t, MemoryFormat format) {
  return is_dense(t, format) ? t : torch::stable::contiguous(t, format);
}

Tensor dense_like(const Tensor& t, const Tensor& x, const char* name, MemoryFormat format) {
  check_device(t, x, name);
  STD_TORCH_CHECK(t.scalar_type() == x.scalar_type(), name, " must have x's dtype");
  const auto sizes = t.sizes(), wanted = x.sizes();
  bool same = sizes.size() == wanted.size();
  for (size_t d = 0; same && d < wanted.size(); ++d) same = sizes[d] == wanted[d];
  STD_TORCH_CHECK(same, name, " must have x's shape");
  return dense(t, format);
}

Tensor empty_like(const Tensor& x, MemoryFormat format) {
  const auto sizes = x.sizes();
  const Tensor out = allocate({sizes.begin(), sizes.end()}, strides_of(x, format), x.scalar_type(), place_of(x));
  if (x.is_cpu()) advise(out.data_ptr(), x.numel() * static_cast<int64_t>(x.element_size()));
  return out;
}

Tensor empty(std::vector<int64_t> sizes, ScalarType dtype) {
  const std::vector<int64_t> strides(sizes.size(), 1);
  return allocate(sizes, strides, dtype, Place{});
}

Tensor empty_beside(const Tensor& x, std::vector<int64_t> sizes, ScalarType dtype) {
  const std::vector<int64_t> strides(sizes.size(), 1);
  return allocate(sizes, strides, dtype, place_of(x));
}

void check_device(const Tensor& t, const Tensor& x, const char* name) {
  if (x.is_cpu()) {
    STD_TORCH_CHECK(t.is_cpu(), name, " must be a CPU tensor");
    return;
  }
  const Place a = place_of(t), b = place_of(x);
  STD_TORCH_CHECK(a.type == b.type && a.index == b.index, name, " must be on x's device");
}

ChannelVector channel_vector(const OptionalTensor& v, const char* name, int64_t channels) {
  if (!v.has_value()) return {};
  STD_TORCH_CHECK(v->is_cpu(), name, " must be a CPU tensor");
  STD_TORCH_CHECK(v->dim() == 1 && v->size(0) == channels, name, " must have shape [", channels, "]");
  return {v->data_ptr(), v->stride(0), dtype_of(*v, name)};
}

ChannelVector channel_vector(const OptionalTensor& v, const char* name, const Tensor& x) {
  if (!v.has_value()) return {};
  check_device(*v, x, name);
  STD_TORCH_CHECK(v->dim() == 1 && v->size(0) == x.size(1), name, " must have shape [", x.size(1), "]");
  return {v->data_ptr(), v->stride(0), dtype_of(*v, name)};
}

bool beyond_cache(int64_t bytes) { return bytes > cached_bytes().load(std::memory_order_relaxed); }

int64_t set_cached_bytes(int64_t bytes) { return cached_bytes().exchange(bytes); }

}  // namespace fastnorm
