#include "bind/exchange.h"

#include <Python.h>

namespace fastnorm {
namespace {

struct Header {
  uint32_t major, minor;
  const Header* older;
};

// DLPack's table of functions; only the one that is used here is spelled out.
struct Table {
  Header header;
  void* others[3];
  int (*view)(void* object, ExchangedTensor* out);
};

struct Exchange {
  PyObject* type = nullptr;  // torch.Tensor: the protocol speaks of this very type
  int (*view)(void* object, ExchangedTensor* out) = nullptr;
};

Exchange find() {
  Exchange found;
  PyObject* torch = PyImport_ImportModule("torch");
  PyObject* type = torch == nullptr ? nullptr : PyObject_GetAttrString(torch, "Tensor");
  PyObject* capsule = type == nullptr ? nullptr : PyObject_GetAttrString(type, "__dlpack_c_exchange_api__");
  if (capsule != nullptr && PyCapsule_IsValid(capsule, "dlpack_exchange_api")) {
    auto* header = static_cast<const Header*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
    while (header != nullptr && header->major > 1) header = header->older;
    if (header != nullptr && header->major == 1) {
      found.type = type, found.view = reinterpret_cast<const Table*>(header)->view;
      Py_IncRef(type);
    }
  }
  PyErr_Clear();  // an older torch has no such attribute
  Py_DecRef(capsule), Py_DecRef(type), Py_DecRef(torch);
  return found;
}

}  // namespace

bool exchange(PyObject* object, ExchangedTensor& out) {
  static const Exchange torch = find();
  if (torch.view == nullptr || reinterpret_cast<PyObject*>(Py_TYPE(object)) != torch.type) return false;
  if (torch.view(object, &out) == 0) return true;
  PyErr_Clear();
  return false;
}

}  // namespace fastnorm
