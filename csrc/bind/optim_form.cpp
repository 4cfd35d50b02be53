#include "bind/optim_form.h"

#include <algorithm>

namespace fastnorm {

OptimForm::OptimForm(const Tensor& t) : dims_(static_cast<size_t>(t.dim())) {
  int64_t* room = few_;
  if (dims_ > kFew) more_.reset(room = new int64_t[2 * dims_]);
  std::copy(t.sizes().begin(), t.sizes().end(), room);
  std::copy(t.strides().begin(), t.strides().end(), room + dims_);
}

bool OptimForm::is_like(int64_t dims, const int64_t* sizes, const int64_t* strides) const {
  if (dims != static_cast<int64_t>(dims_)) return false;
  for (size_t d = 0; d < dims_; ++d) {
    const int64_t size = this->sizes()[d];
    if (sizes[d] != size || (size > 1 && strides[d] != this->strides()[d])) return false;
  }
  return true;
}

bool OptimForm::fits(const Tensor& t, bool strides) const {
  if (static_cast<size_t>(t.dim()) != dims_) return false;
  int64_t *other = nullptr, *step = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(t.get(), &other));
  if (strides) STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(t.get(), &step));
  for (size_t d = 0; d < dims_; ++d) {
    if (other[d] != sizes()[d] || (strides && step[d] != this->strides()[d])) return false;
  }
  return true;
}

bool OptimForm::lies_like(const Tensor& t) const {
  return is_like(t.dim(), t.sizes().data(), t.strides().data());
}

bool OptimForm::order(std::vector<size_t>& order, bool& dense) const {
  const int64_t *sizes = this->sizes(), *strides = this->strides();
  for (size_t d = 0; d < dims_; ++d) {
    if (sizes[d] != 1) order.push_back(d);
  }
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return strides[a] > strides[b]; });
  dense = true;
  int64_t reach = 1;
  for (size_t i = order.size(); i-- > 0;) {
    const size_t d = order[i];
    if (sizes[d] == 0) return true;
    if (strides[d] < reach) return false;
    dense = dense && strides[d] == reach;
    reach = strides[d] * (sizes[d] - 1) + reach;
  }
  return true;
}

OptimLayout OptimForm::layout_of(const Tensor& t, const std::vector<size_t>& order) const {
  const auto strides = t.strides();
  OptimLayout layout;
  for (const size_t d : order) layout.sizes.push_back(sizes()[d]), layout.strides.push_back(strides[d]);
  return layout;
}

}  // namespace fastnorm
