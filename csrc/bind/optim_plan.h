// What is known of an optimizer's parameters between two steps: the table that the kernels take.
#pragma once

#include <deque>
#include <memory>

#include "bind/optim_form.h"
#include "bind/tensor.h"
#include "op/optim_steps.h"

namespace fastnorm {

enum class OptimKind : int64_t { sgd, rmsprop, adam };

// What a row of the plan consists of, as fastnorm/optim/plan.py lists it.
enum OptimPart : int64_t {
  kMaster = 1,
  kStep = 2,
  kFirst = 4,       // SGD: the momentum buffer holds nothing yet
  kStochastic = 8,
  kCentered = 16,
  kStateShift = 8,  // how many states, from this bit on
};

// A tensor that is written, and where it lay when the plan was made.
struct OptimPlace {
  Tensor tensor;
  void* data;

  explicit OptimPlace(const Tensor& t) : tensor(t), data(t.data_ptr()) {}
  bool unmoved() const { return tensor.data_ptr() == data; }
};

struct OptimEntry {
  OptimForm form;  // the parameter's
  bool dense = false, first = false;
  size_t places = 0;        // how many of the plan's: parameter, master and states
  bool counts = false;      // and one more, the step
  bool wide_step = false;   // which is fp64
  int64_t group = 0, parameter = 0;
  std::vector<size_t> order;  // the parameter's dims, slowest first
  OptimLayout grad_layout;

  explicit OptimEntry(const Tensor& param) : form(param) {}
};

class OptimPlan final : public OptimSteps {
 public:
  // tensors: of each row its parameter, master, states and step, those that it has. rows: group, parts, parameter.
  OptimPlan(OptimKind kind, const std::vector<Tensor>& tensors, const std::vector<int64_t>& rows);

  // Takes this step's gradients; false if a tensor has moved since the plan was made.
  bool take(const std::vector<Tensor>& grads);
  // The same, one gradient at a time: first unmoved(), then each row with a dense gradient of the parameter's strides
  // (any other is refused), then grads_taken().
  bool unmoved() const override;
  size_t rows() const { return rows_.size(); }
  bool take_dense(size_t row, void* data, Dtype dtype, int64_t dims, const int64_t* sizes, const int64_t* strides);
  void grads_taken() { taken_ = true; }
  // Whether gradients were taken that no step has used yet.
  bool has_grads() const { return taken_; }
  // Emptied: the next step's hyper-parameters, where the step is given none.
  std::vector<double>& room_for_hyper() { return hyper_.clear(), hyper_; }
  const std::vector<double>& hyper() const { return hyper_; }
  std::vector<OptimRow>& table() override { return rows_; }
  void step(const std::vector<double>& hyper, double multiplier, int64_t seed) override;
  double grad_norm() override;

 private:
  void add_row(const std::vector<Tensor>& tensors, size_t& at, int64_t group, int64_t parts, int64_t parameter);
  void cut();
  bool overlap() const;
  template <class F>
  void over_chunks(const F& f);
  template <class Hyper, class Numbers, class Make>
  void number(const std::vector<double>& hyper, int64_t seed, Make make, std::vector<Numbers>& sets);

  OptimKind kind_;
  std::vector<OptimRow> rows_;
  std::vector<OptimEntry> entries_;
  std::vector<OptimPlace> places_;  // of all entries, one after the other
  std::deque<OptimLayout> layouts_;
  std::vector<OptimChunk> chunks_;
  std::vector<int64_t> weights_;  // bytes before each chunk, and of all
  std::vector<double> hyper_;
  int64_t elements_ = 0;
  bool in_turn_ = false, taken_ = false;
};

// A plan that fastnorm_optim::prepare has made; null if it was released.
std::shared_ptr<OptimPlan> find_plan(int64_t handle);

}  // namespace fastnorm
