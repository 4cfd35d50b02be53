// SGD over chunks of parameters.
#include "math/sgd.h"

#include "cpu/optim.h"

namespace fastnorm {
namespace FASTNORM_ISA {

template <class V>
using PlainSgd = Sgd<V, false>;
template <class V>
using MomentumSgd = Sgd<V, true>;

void sgd(const OptimTable& table, int64_t chunk0, int64_t chunk1) {
  while (chunk0 < chunk1) {
    if (table.rows[table.chunks[chunk0].row].states == 0) chunk0 = update<PlainSgd>(table, chunk0, chunk1);
    else chunk0 = update<MomentumSgd>(table, chunk0, chunk1);
  }
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
