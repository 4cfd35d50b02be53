// Where a Python tensor lies, asked through the exchange protocol of DLPack 1.3: torch fills in a view that owns
// nothing, at a tenth of what the same tensor costs as an argument of an op.
#pragma once

#include <cstdint>

struct _object;

namespace fastnorm {

// As DLPack's ABI lays it out (its major version 1).
struct ExchangedTensor {
  void* data;
  int32_t device_type, device_index;
  int32_t dims;
  uint8_t type_code, bits;
  uint16_t lanes;
  int64_t *sizes, *strides;
  uint64_t byte_offset;
};

constexpr int32_t kExchangedCpu = 1;
constexpr uint8_t kExchangedFloat = 2, kExchangedBfloat = 4;

// Fills `out` from an object whose type is torch.Tensor itself; valid as long as the object is. False where the object
// is anything else, has no memory that a view can describe, or torch does not speak the protocol. Needs the GIL.
bool exchange(_object* object, ExchangedTensor& out);

}  // namespace fastnorm
