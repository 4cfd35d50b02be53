#include "nodes/optim_tensors.h"

#include <Python.h>

#include <algorithm>

namespace fastnorm {
namespace {

bool read_dtype(const c10::TensorImpl& t, Dtype& dtype) {
  switch (c10::typeMetaToScalarType(t.dtype())) {
    case c10::ScalarType::Float: dtype = Dtype::f32; return true;
    case c10::ScalarType::Double: dtype = Dtype::f64; return true;
    case c10::ScalarType::BFloat16: dtype = Dtype::bf16; return true;
    case c10::ScalarType::Half: dtype = Dtype::f16; return true;
    default: return false;
  }
}

}  // namespace

OptimWritten::OptimWritten(const Tensor& t, bool versioned, std::vector<int64_t>& forms)
    : tensor_(t), data_(t.mutable_data_ptr()), keys_(t.key_set()), dtype_(t.dtype()),
      versioned_(versioned && !t.is_inference()), dims_(static_cast<uint32_t>(t.dim())) {
  forms.insert(forms.end(), t.sizes().begin(), t.sizes().end());
  forms.insert(forms.end(), t.strides().begin(), t.strides().end());
}

bool OptimWritten::unmoved(const int64_t*& form) const {
  c10::TensorImpl& t = *impl();
  const auto sizes = t.sizes(), strides = t.strides();
  const bool same = t.mutable_data() == data_ && t.key_set() == keys_ && t.dtype() == dtype_ && sizes.size() == dims_ &&
                    std::equal(sizes.begin(), sizes.end(), form) &&
                    std::equal(strides.begin(), strides.end(), form + dims_);
  form += 2 * dims_;
  return same;
}

OptimTensors::OptimTensors(const _object* grad_type)
    : grad_type_(grad_type), plain_(c10::DispatchKeySet({c10::DispatchKey::CPU, c10::DispatchKey::ADInplaceOrView,
                                                         c10::DispatchKey::AutogradCPU, c10::DispatchKey::AutocastCPU})) {}

void OptimTensors::add_row(const std::vector<Tensor>& written, bool counted) {
  params_.push_back({written.front(), static_cast<uint32_t>(written.size())});
  for (size_t i = 0; i < written.size(); ++i) {
    written_.emplace_back(written[i], !(counted && i + 1 == written.size()), forms_);
  }
}

OptimTensors::Found OptimTensors::take(std::vector<OptimRow>& rows) const {
  const OptimWritten* next = written_.data();
  const int64_t* form = forms_.data();
  OptimRow* row = rows.data();
  for (const Param& param : params_) {
    const Tensor& grad = param.tensor.unsafeGetTensorImpl()->grad();
    if (grad.defined() != (param.written != 0)) return Found::other;
    if (param.written == 0) continue;
    const int64_t* const own_form = form;
    const OptimWritten* const end = next + param.written;
    for (; next < end; ++next) {
      if (!next->unmoved(form)) return Found::other;
    }
    const auto dims = static_cast<size_t>(param.tensor.dim());
    if (!fits(*grad.unsafeGetTensorImpl(), own_form, dims, row->grad)) return Found::unfit;
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
  stream.in = grad.data(), stream.layout = nullptr;
  return true;
}

void OptimTensors::count_versions() const {
  for (const OptimWritten& written : written_) written.count_version();
}

}  // namespace fastnorm
