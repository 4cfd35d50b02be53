// Python objects that are held, and compared by identity.
#pragma once

#include <Python.h>

#include <utility>
#include <vector>

namespace fastnorm {

// One reference; taken and given back under the GIL.
class Held {
 public:
  static constexpr struct Owned {} owned{};

  Held() = default;
  explicit Held(PyObject* object) : object_(object) { Py_IncRef(object_); }
  Held(PyObject* object, Owned) : object_(object) {}  // takes over the caller's reference
  Held(Held&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  Held& operator=(Held other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  ~Held() { Py_DecRef(object_); }

  bool is(const PyObject* object) const { return object_ == object; }
  PyObject* get() const { return object_; }

 private:
  PyObject* object_ = nullptr;
};

inline std::vector<Held> hold_all(PyObject* list) {
  std::vector<Held> found;
  for (Py_ssize_t i = 0; i < PyList_Size(list); ++i) found.emplace_back(PyList_GetItem(list, i));
  return found;
}

}  // namespace fastnorm
