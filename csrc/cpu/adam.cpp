// Adam and AdamW over chunks of parameters.
#include "math/adam.h"

#include "cpu/optim.h"

namespace fastnorm {
namespace FASTNORM_ISA {

template <class V>
using PlainAdam = Adam<V, false>;
template <class V>
using AmsgradAdam = Adam<V, true>;

void adam(const OptimTable& table, int64_t chunk0, int64_t chunk1) {
  while (chunk0 < chunk1) {
    if (table.rows[table.chunks[chunk0].row].states == 2) chunk0 = update<PlainAdam>(table, chunk0, chunk1);
    else chunk0 = update<AmsgradAdam>(table, chunk0, chunk1);
  }
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
