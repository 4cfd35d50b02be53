#include "nodes/optim_groups.h"

namespace fastnorm {
namespace {

// Appends one number, all of a tuple, or what a word means; false for any other object.
bool append(std::vector<double>& found, PyObject* value, PyObject* words) {
  if (PyTuple_Check(value)) {
    for (Py_ssize_t i = 0; i < PyTuple_Size(value); ++i) {
      if (!append(found, PyTuple_GetItem(value, i), words)) return false;
    }
    return true;
  }
  if (PyUnicode_Check(value)) value = PyDict_GetItemWithError(words, value);
  if (value == nullptr || !(PyFloat_Check(value) || PyLong_Check(value))) return false;
  found.push_back(PyFloat_AsDouble(value));
  return PyErr_Occurred() == nullptr;
}

bool is_named(PyObject* key, const char* name) {
  return PyUnicode_Check(key) && PyUnicode_CompareWithASCIIString(key, name) == 0;
}

}  // namespace

OptimGroups::OptimGroups(PyObject* groups, PyObject* params, PyObject* hyper_keys, PyObject* form_keys,
                         PyObject* words)
    : hyper_keys_(hyper_keys), words_(words), params_(hold_all(params)) {
  for (Py_ssize_t g = 0; g < PyList_Size(groups); ++g) {
    Group group{Held(PyList_GetItem(groups, g)), {}, {}};
    PyObject *key, *value;
    for (Py_ssize_t at = 0; PyDict_Next(group.dict.get(), &at, &key, &value);) {
      const bool is_form = PySequence_Contains(form_keys, key) == 1;
      group.items.push_back({Held(key), Held(value), is_named(key, "params"), is_form});
    }
    read(group);
    groups_.push_back(std::move(group));
  }
  gather();
  PyErr_Clear();
}

void OptimGroups::read(Group& group) {
  group.numbers.clear();
  for (Py_ssize_t k = 0; k < PyTuple_Size(hyper_keys_.get()); ++k) {
    PyObject* value = PyDict_GetItemWithError(group.dict.get(), PyTuple_GetItem(hyper_keys_.get(), k));
    if (value == nullptr || !append(group.numbers, value, words_.get())) {
      PyErr_Clear();
      return group.numbers.clear();
    }
  }
}

void OptimGroups::gather() {
  numbers_.clear();
  readable_ = true;
  for (const Group& group : groups_) {
    readable_ = readable_ && !group.numbers.empty();
    numbers_.insert(numbers_.end(), group.numbers.begin(), group.numbers.end());
  }
}

bool OptimGroups::are(PyObject* groups, bool& reformed) {
  if (!PyList_Check(groups) || PyList_Size(groups) != static_cast<Py_ssize_t>(groups_.size())) return false;
  size_t params = 0;
  bool same = true, changed = false;
  for (size_t g = 0; same && g < groups_.size(); ++g) {
    bool other = false;
    same = is(groups_[g], PyList_GetItem(groups, static_cast<Py_ssize_t>(g)), params, other, reformed);
    if (other) read(groups_[g]), changed = true;
  }
  if (changed) gather();
  return same && params == params_.size();
}

bool OptimGroups::is(Group& group, PyObject* dict, size_t& params, bool& other, bool& reformed) {
  if (!group.dict.is(dict)) return false;
  PyObject *key, *value;
  Py_ssize_t at = 0;
  for (Item& item : group.items) {
    if (!PyDict_Next(dict, &at, &key, &value) || !item.key.is(key)) return false;
    if (item.is_params && !has_params(value, params)) return false;
    if (item.value.is(value)) continue;
    item.value = Held(value);
    other = true, reformed = reformed || item.is_form;
  }
  return PyDict_Next(dict, &at, &key, &value) == 0;
}

bool OptimGroups::has_params(PyObject* list, size_t& at) const {
  if (!PyList_Check(list)) return false;
  const Py_ssize_t count = PyList_Size(list);
  if (at + static_cast<size_t>(count) > params_.size()) return false;
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (!params_[at++].is(PyList_GetItem(list, i))) return false;
  }
  return true;
}

OptimStates::OptimStates(PyObject* all, PyObject* dicts) : all_(hold_all(all)), dicts_(hold_all(dicts)) {
  PyObject *key, *value;
  for (const Held& dict : dicts_) {
    for (Py_ssize_t at = 0; PyDict_Next(dict.get(), &at, &key, &value);) values_.emplace_back(value);
  }
}

bool OptimStates::are(PyObject* states) const {
  PyObject *key, *value;
  Py_ssize_t at = 0;
  if (!PyDict_Check(states)) return false;
  for (const Held& dict : all_) {
    if (!PyDict_Next(states, &at, &key, &value) || !dict.is(value)) return false;
  }
  if (PyDict_Next(states, &at, &key, &value)) return false;
  size_t seen = 0;
  for (size_t i = 0; i < dicts_.size(); ++i) {
    if (i + 8 < dicts_.size()) __builtin_prefetch(dicts_[i + 8].get());
    for (at = 0; PyDict_Next(dicts_[i].get(), &at, &key, &value); ++seen) {
      if (seen == values_.size() || !values_[seen].is(value)) return false;
    }
  }
  return seen == values_.size();
}

}  // namespace fastnorm
