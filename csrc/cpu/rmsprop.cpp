// RMSprop over chunks of parameters.
#include "math/rmsprop.h"

#include "cpu/optim.h"

namespace fastnorm {
namespace FASTNORM_ISA {

template <class V>
using PlainRmsprop = Rmsprop<V, false, false>;
template <class V>
using MomentumRmsprop = Rmsprop<V, true, false>;
template <class V>
using CenteredRmsprop = Rmsprop<V, false, true>;
template <class V>
using CenteredMomentumRmsprop = Rmsprop<V, true, true>;

void rmsprop(const OptimTable& table, int64_t chunk0, int64_t chunk1) {
  while (chunk0 < chunk1) {
    const OptimRow& row = table.rows[table.chunks[chunk0].row];
    if (row.states == 3) chunk0 = update<CenteredMomentumRmsprop>(table, chunk0, chunk1);
    else if (row.states == 1) chunk0 = update<PlainRmsprop>(table, chunk0, chunk1);
    else if (row.centered) chunk0 = update<CenteredRmsprop>(table, chunk0, chunk1);
    else chunk0 = update<MomentumRmsprop>(table, chunk0, chunk1);
  }
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
