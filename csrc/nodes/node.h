// Autograd nodes in C++: what a call of an op records where gradients are wanted, so that a backward pass need not
// enter Python for every layer. The same saved tensors and the same rules as the Functions of fastnorm/autograd, which
// serve where this module is not built, and under a compiler's trace.
//
// torch::autograd::Function would make such nodes of less; but a tiny layer's time is then its dictionaries and lists.
#pragma once

#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include "nodes/op.h"

namespace fastnorm {

using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

// Options on their way through a compiler's graph, read in the order in which they were written.
class Options {
 public:
  explicit Options(const c10::IValue& packed)
      : owner_(packed.toTuple()), values_(owner_->elements().asArrayRef()) {}
  bool flag() { return next().toBool(); }
  int64_t integer() { return next().toInt(); }
  double number() { return next().toDouble(); }
  Activation activation() {
    Activation act{flag(), {}, {}, {}, {}};
    act.leak = maybe(), act.sub = maybe(), act.maxv = maybe(), act.max_leak = maybe();
    return act;
  }

 private:
  const c10::IValue& next() { return values_[at_++]; }
  OptionalNumber maybe() { return next().toOptional<double>(); }

  c10::intrusive_ptr<c10::ivalue::Tuple> owner_;
  at::ArrayRef<c10::IValue> values_;
  size_t at_ = 0;
};

// The node of one op, whose Rule says
//   kName              what the node is called, as `grad_fn.name()`
//   kInputs, kSaved    how many tensors the op is given, absent ones too, and how many are saved
//   packed, unpacked   the rule's own numbers as IValues, and the rule made of them again
//   backward           the gradients of those inputs that are needed, from dy and what was saved
// The first of the op's results has the gradient.
template <class Rule>
class RecordedNode final : public torch::autograd::Node {
 public:
  using Saved = std::array<Tensor, Rule::kSaved>;
  using Needed = std::array<bool, Rule::kInputs>;

  // inputs: the op's tensors, at::Tensor or std::optional of it.
  template <class... Inputs>
  explicit RecordedNode(Rule rule, const Inputs&... inputs)
      : Node(torch::autograd::collect_next_edges(inputs...)), rule_(std::move(rule)) {
    static_assert(sizeof...(Inputs) == Rule::kInputs);
  }

  // Tensors for backward, none of them a result with a gradient; absent ones are undefined.
  template <class... Tensors>
  void save(const Tensors&... tensors) {
    static_assert(sizeof...(Tensors) == Rule::kSaved);
    size_t place = 0;
    ((saved_[place++] = SavedVariable(tensors, false)), ...);
  }

  std::string name() const override { return Rule::kName; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable& saved : saved_) saved.reset_data();
  }

  void compiled_args(torch::autograd::CompiledNodeArgs& args) const override {
    args.collect(rule_as_ivalue());
    for (const SavedVariable& saved : saved_) args.collect(saved, false);
  }

  // A compiler that traces the backward pass: backward enters its graph as one function of what it reads.
  variable_list apply_with_saved(const variable_list& dys, torch::dynamo::autograd::SwapSavedVariables& swap) override {
    for (SavedVariable& saved : saved_) swap.before(saved);
    variable_list tensors;
    std::vector<bool> given, needed;
    for (const SavedVariable& saved : saved_) {
      Tensor tensor = saved.unpack();
      given.push_back(tensor.defined());
      if (tensor.defined()) tensors.push_back(std::move(tensor));
    }
    for (size_t edge = 0; edge < Rule::kInputs; ++edge) needed.push_back(task_should_compute_output(edge));
    torch::dynamo::autograd::PackedArgs packed;
    packed.pack(rule_as_ivalue()), packed.pack(tensors), packed.pack(given), packed.pack(needed);
    variable_list grads = call_in_graph(dys, packed.vec(), swap);
    for (SavedVariable& saved : saved_) swap.after(saved);
    return grads;
  }

 protected:
  variable_list apply(variable_list&& dys) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!dys[0].defined()) return variable_list(Rule::kInputs);
    Saved saved;
    for (size_t place = 0; place < Rule::kSaved; ++place) saved[place] = saved_[place].unpack();
    Needed needed;
    for (size_t edge = 0; edge < Rule::kInputs; ++edge) needed[edge] = task_should_compute_output(edge);
    return rule_.backward(dys[0], saved, needed);
  }

 private:
  c10::IValue rule_as_ivalue() const { return c10::ivalue::Tuple::create(rule_.packed()); }

  static variable_list apply_packed(const variable_list& dys, const std::vector<c10::IValue>& args) {
    torch::dynamo::autograd::PackedArgs packed(args);
    const Rule rule = Rule::unpacked(Options(packed.unpack<c10::IValue>()));
    auto tensors = packed.unpack<variable_list>();
    const auto given = packed.unpack<std::vector<bool>>(), wanted = packed.unpack<std::vector<bool>>();
    if (!dys[0].defined()) return variable_list(Rule::kInputs);
    Saved saved;
    for (size_t place = 0, taken = 0; place < Rule::kSaved; ++place) {
      if (given[place]) saved[place] = std::move(tensors[taken++]);
    }
    Needed needed;
    std::copy(wanted.begin(), wanted.end(), needed.begin());
    return rule.backward(dys[0], saved, needed);
  }

  variable_list call_in_graph(const variable_list& dys, const std::vector<c10::IValue>& args,
                              torch::dynamo::autograd::SwapSavedVariables& swap) const {
    using namespace torch::dynamo::autograd;
    const auto edges = IValuePacker<std::vector<std::optional<torch::autograd::InputMetadata>>>::pack(
        get_input_metadata(next_edges()));
    std::vector<at::TypePtr> types;
    for (const c10::IValue& arg : args) types.push_back(arg.type());
    const auto& compiler = getPyCompilerInterface();
    const std::string bound = compiler->bind_function(swap.get_py_compiler(), name(), apply_packed, std::move(types),
                                                      /*is_custom_function=*/true, /*is_traceable=*/true);
    return compiler->call_function(swap.get_py_compiler(), "apply_functional", bound, dys, args, edges);
  }

  Rule rule_;
  std::array<SavedVariable, Rule::kSaved> saved_;
};

template <class... Tensors>
bool wants_grad(const Tensor& x, const Tensors&... others) {
  return at::GradMode::is_enabled() &&
         (x.requires_grad() || (... || (others.has_value() && others->requires_grad())));
}

// What these nodes have no rules for, as torch::autograd::Function says it of its own.
template <class... Tensors>
void check_recordable(const Tensors&... inputs) {
  if (const auto& functorch = at::functorch::functorchTLSAccessor()) functorch->checkSupportsCppAutogradFunction();
  TORCH_CHECK_NOT_IMPLEMENTED(!(torch::autograd::isFwGradDefined(inputs) || ...),
                              "fastnorm's ops have no forward-mode derivative; fastnorm.functional's functions have");
}

}  // namespace fastnorm
