// How batch norm is spread over a GPU. Every number here is an argument, not a measurement (docs/gpu.md).
#include <cuda_runtime.h>

#include "cuda/batch_norm_team.cuh"

namespace fastnorm {
namespace {

constexpr int kMostThreads = 512;    // four loads of 16 bytes each in flight are 32 KB an SM: what HBM's latency takes
constexpr int kLeastThreads = 64;
constexpr int kLineBytes = 128;      // of a row that a group of channels spans: whole lines of the cache
constexpr int kPortableCluster = 8;  // larger ones are not promised by every GPU
constexpr int64_t kLeastVectors = 64;  // for a block to be worth waiting for: two warps' first loads

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

int power_of_two_up_to(int64_t limit, int start) {
  int p = start;
  while (p * 2 <= limit) p *= 2;
  return p;
}

// The widest load that divides a run of elements and their addresses: one of the kernels' variants.
int lanes_for(int64_t run, bool rows, Dtype dtype, int64_t alignment) {
  const int64_t size = size_of(dtype);
  for (const int64_t bytes : {int64_t{16}, int64_t{8}}) {
    const bool exists = bytes == 16 || (!rows && size == 2);
    if (exists && run % (bytes / size) == 0 && alignment % bytes == 0) return static_cast<int>(bytes / size);
  }
  return 1;
}

// Blocks of a team so that no SM is idle for long, whatever the number of groups: teams of t take groups' 1 / t share
// of time in ceil(groups / teams) rounds. Waiting for others costs too, so a larger team has to gain a tenth. No block
// should have hardly anything to do.
int64_t team_that_fills(const CudaDevice& d, const BatchNormPlan& p) {
  int64_t best = 1, best_rounds = ceil_div(p.groups, d.sms);
  const int64_t enough = least(d.sms, most(1, p.vectors / kLeastVectors));
  for (int64_t team = 2; team <= enough; ++team) {
    const int64_t rounds = ceil_div(p.groups, d.sms / team);
    if (10 * rounds * best < 9 * best_rounds * team) best = team, best_rounds = rounds;
  }
  return best;
}

// Blocks that share a channel in plane order.
int64_t team_for_planes(const CudaDevice& d, const BatchNormPlan& p, int64_t group_bytes, int64_t held_bytes) {
  const int64_t enough = most(1, p.vectors / kLeastVectors), team = team_that_fills(d, p);
  // Read once: as many blocks as it takes to keep the channel in shared memory.
  const int64_t holding = ceil_div(group_bytes, held_bytes);
  if (holding <= team) return team;
  if (d.clusters && holding <= kPortableCluster) return least(power_of_two_up_to(2 * holding - 1, 1), d.sms);
  // Read twice, the second time from L2, of which half is counted on: few enough channels at the same time. Half the
  // GPU's SMs on one channel must leave something to do between two waits, or the waiting costs more than the reading.
  const int64_t on_chip = d.l2_bytes / 2 + d.sms * held_bytes;
  const int64_t sharing = ceil_div(d.sms * group_bytes, on_chip);
  const int64_t cluster = d.clusters ? least(kPortableCluster, d.sms) : 1;
  return most(team, least(enough, sharing <= d.sms ? sharing : cluster));
}

}  // namespace

BatchNormPlan batch_norm_plan(const CudaDevice& d, const BatchNormShape& shape, bool rows, Dtype dtype, int tensors,
                              int64_t alignment) {
  BatchNormPlan p;
  p.rows = rows;
  p.lanes = lanes_for(rows ? shape.C : shape.S, rows, dtype, alignment);
  const int64_t vector_bytes = size_of(dtype) * p.lanes;
  if (rows) {
    const int64_t wanted = least(ceil_div(shape.C, p.lanes), least(kLineBytes / vector_bytes, kWarp));
    p.columns = power_of_two_up_to(2 * wanted - 1, 1);
    p.groups = ceil_div(shape.C, p.channels());
    p.vectors = shape.N * p.columns;
  } else {
    p.groups = shape.C;
    p.vectors = shape.per_channel() / p.lanes;
  }
  int64_t team = 1;
  if (rows) team = team_that_fills(d, p);
  else team = team_for_planes(d, p, p.vectors * vector_bytes * tensors,
                              d.shared_bytes - batch_norm_fixed_bytes(p, kMostThreads));
  p.team = static_cast<int>(team);
  p.kind = team == 1 ? Team::block : d.clusters && team <= kPortableCluster ? Team::cluster : Team::grid;
  p.teams = static_cast<int>(least(p.groups, most(1, d.sms / team)));
  const int64_t part = ceil_div(p.vectors, team);
  p.threads = power_of_two_up_to(least(kMostThreads, part), kLeastThreads);
  const int64_t fixed_bytes = batch_norm_fixed_bytes(p, p.threads);
  const int64_t fitting = most(0, d.shared_bytes - fixed_bytes) / (vector_bytes * tensors * p.threads);
  p.held = static_cast<int>(least(ceil_div(part, p.threads), fitting));
  p.shared_bytes = static_cast<int>(fixed_bytes + p.held * p.threads * tensors * vector_bytes);
  return p;
}

}  // namespace fastnorm
