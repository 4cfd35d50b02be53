#include "nodes/optim_tensors.h"

#include <Python.h>

#include <algorithm>
#include <cstring>

namespace fastnorm {
namespace {

constexpr size_t kAhead = 8;  // tensors

// From its storage to its keys, a tensor takes up to four lines of the cache; a storage, from its address to its flags,
// two.
void fetch_tensor(const c10::TensorImpl* tensor) {
  const auto* t = reinterpret_cast<const char*>(tensor);
  __builtin_prefetch(t + 16), __builtin_prefetch(t + 80), __builtin_prefetch(t + 128);
  __builtin_prefetch(t + sizeof(c10::TensorImpl) - 16);
}
void fetch_storage(const c10::StorageImpl* storage) {
  const auto* s = reinterpret_cast<const char*>(storage);
  __builtin_prefetch(s + 16), __builtin_prefetch(s + 56);
}

bool read_dtype(const c10::TensorImpl& t, Dtype& dtype) {
  switch (c10::typeMetaToScalarType(t.dtype())) {
    case c10::ScalarType::Float: dtype = Dtype::f32; return true;
    case c10::ScalarType::Double: dtype = Dtype::f64; return true;
    case c10::ScalarType::BFloat16: dtype = Dtype::bf16; return true;
    case c10::ScalarType::Half: dtype = Dtype::f16; return true;
    default: return false;
  }
}

// Whether the parameter's elements fill one piece of memory: then so do a gradient's that has its strides.
bool is_dense(const OptimRow& row) { return row.param.layout == nullptr && row.rounded.layout == nullptr; }

c10::StorageImpl* storage_of(const c10::TensorImpl& t) { return t.unsafe_storage().unsafeGetStorageImpl(); }

const void* counter_of(const c10::TensorImpl& t) {
  const void* counter;
  static_assert(sizeof counter == sizeof(c10::VariableVersion), "a version is a pointer to its counter");
  std::memcpy(&counter, &t.version_counter(), sizeof counter);
  return counter;
}

}  // namespace

OptimWritten::OptimWritten(const Tensor& t, bool versioned, std::vector<int64_t>& forms)
    : tensor_(t), storage_(storage_of(*impl())), begin_(storage_->mutable_data()), offset_(t.storage_offset()),
      keys_(t.key_set()), counter_(counter_of(*impl())), dtype_(t.dtype()), versioned_(versioned && !t.is_inference()),
      dims_(static_cast<uint32_t>(t.dim())) {
  forms.insert(forms.end(), t.sizes().begin(), t.sizes().end());
  forms.insert(forms.end(), t.strides().begin(), t.strides().end());
}

bool OptimWritten::unmoved(const int64_t*& form) const {
  const c10::TensorImpl& t = *impl();
  if (storage_of(t) != storage_ || t.storage_offset() != offset_ || t.key_set() != keys_ || t.dtype() != dtype_) {
    return false;
  }
  const auto sizes = t.sizes(), strides = t.strides();
  // What other tensors share until it is written (a lazy clone) moves here.
  if (storage_->mutable_data() != begin_ || sizes.size() != dims_) return false;
  bool same = true;
  for (size_t d = 0; d < dims_; ++d) same = same && sizes[d] == form[d] && strides[d] == form[dims_ + d];
  form += 2 * dims_;
  return same;
}

void OptimWritten::fetch() const {
  fetch_tensor(impl());
  fetch_storage(storage_);
}

OptimTensors::OptimTensors(const _object* grad_type)
    : grad_type_(grad_type),
      plain_(c10::DispatchKeySet({c10::DispatchKey::CPU, c10::DispatchKey::ADInplaceOrView,
                                  c10::DispatchKey::AutogradCPU, c10::DispatchKey::AutocastCPU})) {}

void OptimTensors::add_row(const std::vector<Tensor>& written, bool counted) {
  const Tensor& param = written.front();
  elements_ += param.numel();
  params_.push_back({param, param.unsafeGetTensorImpl()->autograd_meta(), static_cast<uint32_t>(written.size())});
  for (size_t i = 0; i < written.size(); ++i) {
    written_.emplace_back(written[i], !(counted && i + 1 == written.size()), forms_);
  }
}

// One parameter after the other, so that the gradients are fetched while the parameters' states are looked at.
bool OptimTensors::find_grads() {
  grads_.clear();
  for (size_t i = 0; i < params_.size(); ++i) {
    if (i + kAhead < params_.size()) {
      __builtin_prefetch(params_[i + kAhead].tensor.unsafeGetTensorImpl());
      __builtin_prefetch(params_[i + kAhead].meta);
    }
    const Tensor& grad = params_[i].tensor.unsafeGetTensorImpl()->grad();
    if (grad.defined() != (params_[i].written != 0)) return false;
    if (!grad.defined()) continue;
    grads_.push_back(grad.unsafeGetTensorImpl());
    fetch_tensor(grads_.back());
  }
  return true;
}

OptimTensors::Found OptimTensors::take(std::vector<OptimRow>& rows) {
  if (!find_grads()) return Found::moved;
  size_t at = 0, row = 0;
  const int64_t* form = forms_.data();
  for (const Param& param : params_) {
    if (param.written == 0) continue;
    const int64_t* const own = form;
    const auto dims = static_cast<size_t>(param.tensor.dim());
    for (const size_t end = at + param.written; at < end; ++at) {
      if (at + kAhead < written_.size()) written_[at + kAhead].fetch();
      if (!written_[at].unmoved(form)) return Found::moved;
    }
    if (row + kAhead / 2 < grads_.size()) {
      fetch_storage(storage_of(*grads_[row + kAhead / 2]));
      __builtin_prefetch(grads_[row + kAhead / 2]->pyobj_slot()->load_pyobj());
    }
    if (!is_dense(rows[row]) || !fits(*grads_[row], own, dims, rows[row].grad)) return Found::unfit;
    ++row;
  }
  return Found::all;
}

bool OptimTensors::fits(const c10::TensorImpl& grad, const int64_t* form, size_t dims, OptimStream& stream) const {
  const PyObject* object = grad.pyobj_slot()->load_pyobj();  // none where Python has not seen it
  if (object != nullptr && reinterpret_cast<const PyObject*>(object->ob_type) != grad_type_) return false;
  if ((grad.key_set().raw_repr() & ~plain_.raw_repr()) != 0 || !read_dtype(grad, stream.dtype)) return false;
  const auto sizes = grad.sizes(), strides = grad.strides();
  if (sizes.size() != dims) return false;
  for (size_t d = 0; d < dims; ++d) {
    if (sizes[d] != form[d] || (form[d] > 1 && strides[d] != form[dims + d])) return false;
  }
  const auto* begin = static_cast<const char*>(storage_of(grad)->data());
  stream.in = begin + grad.storage_offset() * static_cast<int64_t>(grad.itemsize());
  stream.layout = nullptr;
  return true;
}

std::vector<Tensor> OptimTensors::hold_grads() const {
  std::vector<Tensor> held;
  held.reserve(grads_.size());
  for (c10::TensorImpl* grad : grads_) held.emplace_back(c10::intrusive_ptr<c10::TensorImpl>::reclaim_copy(grad));
  return held;
}

void OptimTensors::count_versions() const {
  for (size_t i = 0; i < written_.size(); ++i) {
    if (i + kAhead < written_.size()) written_[i + kAhead].fetch_version();
    written_[i].count_version();
  }
}

}  // namespace fastnorm
