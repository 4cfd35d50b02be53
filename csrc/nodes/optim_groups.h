// An optimizer's parameter groups and states, dicts of Python: whether they still hold the objects that they held.
#pragma once

#include "nodes/objects.h"

namespace fastnorm {

// The groups and the numbers in them, which are read again only where another object stands: a number never changes.
class OptimGroups {
 public:
  // params: of all groups, one after the other. hyper_keys: where the numbers stand; a tuple is all of its members, a
  // word the number that `words` has for it. form_keys: what the plan depends on.
  OptimGroups(PyObject* groups, PyObject* params, PyObject* hyper_keys, PyObject* form_keys, PyObject* words);

  // Whether these are the same groups, of the same parameters. Other values in them are taken over; reformed: one of
  // those stands under a key of the form.
  bool are(PyObject* groups, bool& reformed);
  // The numbers of all groups; null where one of them is no number, but a tensor say.
  const std::vector<double>* numbers() const { return readable_ ? &numbers_ : nullptr; }

 private:
  struct Item {
    Held key, value;
    bool is_params, is_form;
  };
  struct Group {
    Held dict;
    std::vector<Item> items;
    std::vector<double> numbers;  // none: they cannot be read
  };

  bool is(Group& group, PyObject* dict, size_t& params, bool& other, bool& reformed);
  bool has_params(PyObject* list, size_t& at) const;
  void read(Group& group);
  void gather();

  Held hyper_keys_, words_;
  std::vector<Held> params_;
  std::vector<Group> groups_;
  std::vector<double> numbers_;
  bool readable_ = false;
};

// The dicts of the parameters' states.
class OptimStates {
 public:
  // all: the values of the optimizer's `state`. dicts: of the plan's parameters, those that hold anything.
  OptimStates(PyObject* all, PyObject* dicts);
  bool are(PyObject* states) const;

 private:
  std::vector<Held> all_, dicts_, values_;  // values: of all dicts, one after the other
};

}  // namespace fastnorm
