// The optimizers' steps on CUDA tensors, over tables that fastnorm/ops/optim_table.py keeps on the device.
#include "bind/cuda/device.h"
#include "op/optim_cuda.h"

namespace fastnorm {
namespace {

constexpr int64_t kRowWords = sizeof(OptimCudaRow) / sizeof(int64_t);
constexpr int64_t kChunkWords = sizeof(OptimCudaChunk) / sizeof(int64_t);

enum FormPlace { kKind, kStates, kCentered, kParam, kGrad, kState, kRounded, kAligned, kChunk, kFormNumbers };

Dtype dtype_at(const std::vector<int64_t>& form, FormPlace place) {
  const int64_t number = form[place];
  STD_TORCH_CHECK(number >= 0 && number <= static_cast<int64_t>(Dtype::f16), "form holds an unknown dtype, ", number);
  return static_cast<Dtype>(number);
}

OptimCudaForm form_of(const std::vector<int64_t>& form) {
  STD_TORCH_CHECK(form.size() == kFormNumbers, "form must hold ", static_cast<int>(kFormNumbers), " numbers, got ",
                  form.size());
  STD_TORCH_CHECK(form[kKind] >= 0 && form[kKind] <= 2, "kind must be 0 (SGD), 1 (RMSprop) or 2 (Adam)");
  STD_TORCH_CHECK(form[kChunk] > 0, "a chunk must have elements");
  OptimCudaForm f;
  f.kind = static_cast<OptimCudaKind>(form[kKind]), f.states = static_cast<int>(form[kStates]);
  f.centered = form[kCentered] != 0, f.aligned = form[kAligned] != 0, f.chunk = form[kChunk];
  f.param = dtype_at(form, kParam), f.grad = dtype_at(form, kGrad);
  f.state = dtype_at(form, kState), f.rounded = dtype_at(form, kRounded);
  const bool wide = f.param == Dtype::f64;
  const auto as_wide = [&](Dtype other) { return (other == Dtype::f64) == wide; };
  STD_TORCH_CHECK(as_wide(f.grad) && as_wide(f.state) && as_wide(f.rounded),
                  "fp64 parameters need fp64 gradients and states, and no others may have them");
  return f;
}

const void* words_of(const Tensor& t, const char* name, int64_t width) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Long && t.dim() == 2 && t.size(1) == width && t.is_contiguous(), name,
                  " must be contiguous int64 of shape [n, ", width, "]");
  return t.data_ptr();
}

ChannelVector number_of(const OptionalTensor& t, const char* name, const Tensor& table) {
  if (!t.has_value()) return {};
  check_device(*t, table, name);
  STD_TORCH_CHECK(t->numel() == 1, name, " must have one element");
  return {t->data_ptr(), 0, dtype_of(*t, name)};
}

OptimCudaArgs args_of(const Tensor& table, const Tensor& chunks, const std::vector<int64_t>& form) {
  check_device(chunks, table, "chunks");
  OptimCudaArgs args = {};
  args.rows = static_cast<const OptimCudaRow*>(words_of(table, "table", kRowWords));
  args.chunks = static_cast<const OptimCudaChunk*>(words_of(chunks, "chunks", kChunkWords));
  args.chunk_count = chunks.size(0);
  STD_TORCH_CHECK(args.chunk_count <= INT32_MAX, "more chunks than a launch has blocks");
  args.form = form_of(form);
  return args;
}

// factor multiplies every gradient, on top of which squares and max_norm clip them together.
void step(Tensor table, Tensor chunks, Tensor numbers, OptionalTensor factor, OptionalTensor found_inf,
          OptionalTensor squares, double max_norm, std::vector<int64_t> form) {
  OptimCudaArgs args = args_of(table, chunks, form);
  if (args.chunk_count == 0) return;
  const int width = optim_cuda_numbers(args.form.kind);
  check_device(numbers, table, "numbers");
  STD_TORCH_CHECK(numbers.scalar_type() == ScalarType::Double && numbers.dim() == 2 && numbers.size(1) == width &&
                      numbers.is_contiguous(),
                  "numbers must be contiguous fp64 of shape [sets, ", width, "]");
  args.numbers = static_cast<const double*>(numbers.data_ptr());
  args.factor = number_of(factor, "factor", table);
  args.found_inf = number_of(found_inf, "found_inf", table);
  if (squares.has_value()) {
    check_device(*squares, table, "squares");
    STD_TORCH_CHECK(squares->scalar_type() == ScalarType::Double && squares->is_contiguous() &&
                        squares->numel() <= INT32_MAX,
                    "squares must be contiguous fp64");
    args.squares = static_cast<const double*>(squares->data_ptr());
    args.square_count = static_cast<int>(squares->numel());
    args.max_norm = max_norm;
  }
  const OnDeviceOf here(table);
  optim_step_cuda(args, here.stream());
}

// Partial sums of the squares of all gradients.
Tensor squares(Tensor table, Tensor chunks, std::vector<int64_t> form) {
  const OptimCudaArgs args = args_of(table, chunks, form);
  const OnDeviceOf here(table);
  const int count = optim_square_count(args.chunk_count, here.limits());
  const Tensor sums = empty_beside(table, {count}, ScalarType::Double);
  if (count > 0) optim_squares_cuda(args, static_cast<double*>(sums.data_ptr()), count, here.stream());
  return sums;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(FASTNORM_CUDA_LIBRARY, m) {
  m.def(
      "optim_update(Tensor table, Tensor chunks, Tensor numbers, Tensor? factor, Tensor? found_inf, Tensor? squares, "
      "float max_norm, int[] form) -> ()");
  m.def("optim_squares(Tensor table, Tensor chunks, int[] form) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(FASTNORM_CUDA_LIBRARY, FASTNORM_CUDA_KEY, m) {
  m.impl("optim_update", TORCH_BOX(&step));
  m.impl("optim_squares", TORCH_BOX(&squares));
}

}  // namespace fastnorm
