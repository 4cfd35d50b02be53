#include "bind/optim_plan.h"

#include <algorithm>
#include <cmath>

#include "math/adam.h"
#include "math/rmsprop.h"
#include "math/sgd.h"

namespace fastnorm {
namespace {

constexpr int64_t kUnitBytes = 64 << 10;  // the grain of the partition between threads

uint64_t mixed(uint64_t z) {  // splitmix64's finish
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

uint64_t random_key(int64_t seed, double step, int64_t parameter) {
  const uint64_t golden = 0x9e3779b97f4a7c15u;
  uint64_t key = mixed(static_cast<uint64_t>(seed) + golden);
  key = mixed(key ^ (static_cast<uint64_t>(step) + 2 * golden));
  return mixed(key ^ (static_cast<uint64_t>(parameter) + 3 * golden));
}

double advance(void* step, bool wide) {
  return wide ? *static_cast<double*>(step) += 1 : *static_cast<float*>(step) += 1;
}

}  // namespace

OptimPlan::OptimPlan(OptimKind kind, const std::vector<Tensor>& tensors, const std::vector<int64_t>& rows)
    : kind_(kind) {
  STD_TORCH_CHECK(rows.size() % 3 == 0, "rows must hold three numbers for each parameter");
  size_t at = 0;
  for (size_t i = 0; i + 3 <= rows.size(); i += 3) add_row(tensors, at, rows[i], rows[i + 1], rows[i + 2]);
  STD_TORCH_CHECK(at == tensors.size(), "tensors must be those that rows lists");
  cut();
}

void OptimPlan::add_row(const std::vector<Tensor>& tensors, size_t& at, int64_t group, int64_t parts,
                        int64_t parameter) {
  const auto next = [&]() -> const Tensor& {
    STD_TORCH_CHECK(at < tensors.size(), "tensors must be those that rows lists");
    STD_TORCH_CHECK(tensors[at].is_cpu(), "parameter ", parameter, " and its state must be CPU tensors");
    return tensors[at++];
  };
  const Tensor& param = next();
  entries_.emplace_back(param);
  OptimEntry& entry = entries_.back();
  entry.group = group, entry.parameter = parameter, entry.first = (parts & kFirst) != 0;
  STD_TORCH_CHECK(entry.form.order(entry.order, entry.dense), "parameter ", parameter,
                  " has elements that share memory (strides of an expanded tensor); it cannot be updated in place");
  const auto stream = [&](const Tensor& t) {
    STD_TORCH_CHECK(entry.form.has_sizes_of(t), "a state of parameter ", parameter, " has another shape");
    places_.emplace_back(t), ++entry.places;
    OptimStream s;
    s.in = s.out = t.data_ptr(), s.dtype = dtype_of(t, "a parameter or state");
    if (!entry.dense || !entry.form.lies_like(t)) {
      layouts_.push_back(entry.form.layout_of(t, entry.order));
      s.layout = &layouts_.back();
    }
    return s;
  };
  OptimRow row;
  row.states = static_cast<int>(parts >> kStateShift);
  row.centered = (parts & kCentered) != 0, row.stochastic = (parts & kStochastic) != 0;
  STD_TORCH_CHECK(row.states <= kMostStates, "a parameter has at most ", kMostStates, " states");
  row.param = stream(param);
  if (parts & kMaster) row.rounded = row.param, row.param = stream(next());
  for (int k = 0; k < row.states; ++k) row.state[k] = stream(next());
  row.wide = row.param.dtype == Dtype::f64;
  row.numel = param.numel();
  if (parts & kStep) {
    const Tensor& step = next();
    const ScalarType dtype = step.scalar_type();
    STD_TORCH_CHECK((dtype == ScalarType::Float || dtype == ScalarType::Double) && step.numel() == 1,
                    "the step of parameter ", parameter, " must be one fp32 or fp64 number");
    places_.emplace_back(step), entry.counts = true, entry.wide_step = dtype == ScalarType::Double;
  }
  rows_.push_back(row);
}

void OptimPlan::cut() {
  int64_t bytes = 0;
  for (size_t r = 0; r < rows_.size(); ++r) {
    const OptimRow& row = rows_[r];
    const int64_t each = size_of(row.param.dtype) * (row.states + 2);
    for (int64_t begin = 0; begin < row.numel; begin += kOptimChunk) {
      const int64_t end = std::min(begin + kOptimChunk, row.numel);
      chunks_.push_back({static_cast<int64_t>(r), begin, end});
      weights_.push_back(bytes);
      bytes += (end - begin) * each;
    }
    elements_ += row.numel;
  }
  weights_.push_back(bytes);
  in_turn_ = overlap();
}

// Whether two parameters share memory: then they are updated one after the other, as a loop over them would.
bool OptimPlan::overlap() const {
  std::vector<std::pair<uintptr_t, uintptr_t>> spans;
  size_t at = 0;
  for (const OptimEntry& entry : entries_) {
    const OptimPlace& param = places_[at];
    at += entry.places + entry.counts;
    if (param.tensor.numel() == 0) continue;
    int64_t last = 0;
    for (size_t d = 0; d < entry.form.dims(); ++d) last += (entry.form.sizes()[d] - 1) * entry.form.strides()[d];
    const auto begin = reinterpret_cast<uintptr_t>(param.data);
    spans.emplace_back(begin, begin + static_cast<uintptr_t>(last + 1) * param.tensor.element_size());
  }
  std::sort(spans.begin(), spans.end());
  for (size_t i = 1; i < spans.size(); ++i) {
    if (spans[i].first < spans[i - 1].second) return true;
  }
  return false;
}

bool OptimPlan::unmoved() const {
  const OptimPlace* place = places_.data();
  for (const OptimEntry& entry : entries_) {
    if (!entry.form.is_of(place->tensor)) return false;
    for (const OptimPlace* const end = place + entry.places + entry.counts; place < end; ++place) {
      if (!place->unmoved()) return false;
    }
  }
  return true;
}

bool OptimPlan::take_dense(size_t row, void* data, Dtype dtype, int64_t dims, const int64_t* sizes,
                           const int64_t* strides) {
  const OptimEntry& entry = entries_[row];
  if (!entry.dense || !entry.form.is_like(dims, sizes, strides)) return false;
  OptimStream& s = rows_[row].grad;
  s.in = data, s.dtype = dtype, s.layout = nullptr;
  return true;
}

bool OptimPlan::take(const std::vector<Tensor>& grads) {
  if (grads.size() != rows_.size() || !unmoved()) return false;
  for (size_t r = 0; r < rows_.size(); ++r) {
    OptimEntry& entry = entries_[r];
    const Tensor& grad = grads[r];
    int32_t layout = 0;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(grad.get(), &layout));
    if (layout != aoti_torch_layout_strided()) return false;
    STD_TORCH_CHECK(entry.form.has_sizes_of(grad) && grad.is_cpu(), "the gradient of parameter ", entry.parameter,
                    " must be a CPU tensor of the parameter's shape");
    OptimStream& s = rows_[r].grad;
    s.in = grad.data_ptr(), s.dtype = dtype_of(grad, "a gradient"), s.layout = nullptr;
    if (!entry.dense || !entry.form.is_of(grad)) {
      if (entry.dense && entry.form.lies_like(grad)) continue;
      entry.grad_layout = entry.form.layout_of(grad, entry.order);
      s.layout = &entry.grad_layout;
    }
  }
  return true;
}

template <class F>
void OptimPlan::over_chunks(const F& f) {
  const int64_t units = (weights_.back() + kUnitBytes - 1) / kUnitBytes;
  const auto chunk_at = [&](int64_t unit) {
    return std::lower_bound(weights_.begin(), weights_.end() - 1, unit * kUnitBytes) - weights_.begin();
  };
  parallel(units, in_turn_ ? 0 : elements_, [&](int64_t begin, int64_t end) {
    const int64_t chunk0 = chunk_at(begin), chunk1 = chunk_at(end);
    if (chunk0 < chunk1) f(chunk0, chunk1);
  });
}

// Gives every row its numbers; parameters of one group that have made equally many steps share them.
template <class Hyper, class Numbers, class Make>
void OptimPlan::number(const std::vector<double>& hyper, int64_t seed, Make make, std::vector<Numbers>& sets) {
  constexpr size_t width = sizeof(Hyper) / sizeof(double);
  int64_t group = -1;
  double step = -1;
  bool first = false;
  size_t at = 0;
  for (size_t r = 0; r < rows_.size(); ++r) {
    OptimEntry& entry = entries_[r];
    at += entry.places + entry.counts;
    const double now = entry.counts ? advance(places_[at - 1].data, entry.wide_step) : 0;
    if (entry.group != group || now != step || entry.first != first) {
      group = entry.group, step = now, first = entry.first;
      const size_t from = static_cast<size_t>(group) * width;
      STD_TORCH_CHECK(group >= 0 && from + width <= hyper.size(), "hyper must hold ", width, " numbers for each group");
      Hyper h;
      std::copy_n(hyper.begin() + static_cast<int64_t>(from), width, reinterpret_cast<double*>(&h));
      sets.push_back(make(h, step, first));
    }
    rows_[r].set = static_cast<int64_t>(sets.size()) - 1;
    if (rows_[r].stochastic) rows_[r].key = random_key(seed, now, entry.parameter);
    entry.first = false;
  }
}

void OptimPlan::step(const std::vector<double>& hyper, double multiplier, int64_t seed) {
  taken_ = false;
  const OptimKernels& kernels = optim_kernels();
  const auto run = [&](OptimKernel kernel, const void* numbers) {
    const OptimTable table{rows_.data(), chunks_.data(), numbers};
    over_chunks([&](int64_t begin, int64_t end) { kernel(table, begin, end); });
  };
  if (kind_ == OptimKind::sgd) {
    std::vector<SgdNumbers> sets;
    number<SgdHyper>(hyper, seed, [&](const SgdHyper& h, double, bool first) {
      return sgd_numbers(h, multiplier, first); }, sets);
    run(kernels.sgd, sets.data());
  } else if (kind_ == OptimKind::rmsprop) {
    std::vector<RmspropNumbers> sets;
    number<RmspropHyper>(hyper, seed, [&](const RmspropHyper& h, double step, bool) {
      return rmsprop_numbers(h, multiplier, step); }, sets);
    run(kernels.rmsprop, sets.data());
  } else {
    std::vector<AdamNumbers> sets;
    number<AdamHyper>(hyper, seed, [&](const AdamHyper& h, double step, bool) {
      return adam_numbers(h, multiplier, step); }, sets);
    run(kernels.adam, sets.data());
  }
}

double OptimPlan::grad_norm() {
  std::vector<double> squares(chunks_.size());
  const OptimTable table{rows_.data(), chunks_.data(), nullptr};
  over_chunks([&](int64_t begin, int64_t end) { optim_kernels().norm(table, squares.data(), begin, end); });
  double sum = 0;
  for (const double square : squares) sum += square;
  return std::sqrt(sum);
}

}  // namespace fastnorm
