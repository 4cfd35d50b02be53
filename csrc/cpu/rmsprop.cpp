// RMSprop over chunks of parameters.
#include "math/rmsprop.h"

#include "cpu/optim.h"

namespace fastnorm {
namespace FASTNORM_ISA {

template <class V>
using Plain = Rmsprop<V, false, false>;
template <class V>
using WithMomentum = Rmsprop<V, true, false>;
template <class V>
using Centered = Rmsprop<V, false, true>;
template <class V>
using CenteredWithMomentum = Rmsprop<V, true, true>;

void rmsprop(const OptimTable& table, int64_t chunk0, int64_t chunk1) {
  while (chunk0 < chunk1) {
    const OptimRow& row = table.rows[table.chunks[chunk0].row];
    if (row.states == 3) chunk0 = update<CenteredWithMomentum>(table, chunk0, chunk1);
    else if (row.states == 1) chunk0 = update<Plain>(table, chunk0, chunk1);
    else if (row.centered) chunk0 = update<Centered>(table, chunk0, chunk1);
    else chunk0 = update<WithMomentum>(table, chunk0, chunk1);
  }
}

}  // namespace FASTNORM_ISA
}  // namespace fastnorm
