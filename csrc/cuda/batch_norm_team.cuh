// The blocks that share channels: who takes which elements, and how their sums come together.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"
#include "cuda/vec.cuh"
#include "op/batch_norm_channel.h"
#include "op/batch_norm_cuda.h"

namespace fastnorm {

__device__ __forceinline__ ChannelSums operator+(const ChannelSums& a, const ChannelSums& b) {
  return {a.sum + b.sum, a.product + b.product};
}

// What the elements of a channel need: z = (x - mean) * scale + bias, dx = dz * scale + ((x - mean) * slope + offset).
template <class A>
struct ChannelNumbers {
  A mean, scale, bias, slope, offset;
};

// The shared memory that a block takes for sums and numbers.
inline int batch_norm_fixed_bytes(const BatchNormPlan& p, int threads) {
  return SharedMemory::bytes_of<ChannelSums>((threads / kWarp + 2) * p.channels()) +
         SharedMemory::bytes_of<ChannelSums>(2 * p.channels()) +
         SharedMemory::bytes_of<ChannelNumbers<double>>(p.channels());
}

// The offsets of a thread's vectors, one after the other. In plane order a step that leaves a plane goes on in the next
// sample's; in row order `bound` is never reached.
struct Walk {
  int64_t offset, s, step, step_s, bound, carry;

  __device__ __forceinline__ void next() {
    offset += step, s += step_s;
    if (s >= bound) s -= bound, offset += carry;
  }
  __device__ __forceinline__ void back() {
    offset -= step, s -= step_s;
    if (s < 0) s += bound, offset -= carry;
  }
};

// The vectors of one thread in one round: every threads-th of its block's part of a group.
template <int kLanes, bool kRows>
class Part {
 public:
  __device__ __forceinline__ Part(const BatchNormShape& shape, const BatchNormPlan& plan, int64_t round)
      : shape_(shape), plan_(plan) {
    const int64_t block = blockIdx.x, rank = block % plan.team, group = round * plan.teams + block / plan.team;
    group_ = group;
    first_channel_ = group * (kRows ? plan.columns * kLanes : 1);
    const int64_t per_step = kRows ? blockDim.x / plan.columns : blockDim.x;
    const int64_t units = kRows ? shape.N : plan.vectors;
    const int64_t column = kRows ? threadIdx.x % plan.columns : 0;
    own_channel_ = first_channel_ + column * kLanes;
    per_step_ = per_step;
    begin_ = rank * units / plan.team + (kRows ? threadIdx.x / plan.columns : threadIdx.x);
    const int64_t end = (rank + 1) * units / plan.team;
    const bool some = group < plan.groups && own_channel_ < shape.C && begin_ < end;
    count_ = some ? static_cast<int>((end - begin_ + per_step - 1) / per_step) : 0;
  }

  __device__ __forceinline__ int count() const { return count_; }
  __device__ __forceinline__ int64_t first_channel() const { return first_channel_; }  // of the group
  // The number within the group of this thread's first channel.
  __device__ __forceinline__ int own() const { return static_cast<int>(own_channel_ - first_channel_); }
  __device__ __forceinline__ int64_t own_channel() const { return own_channel_; }
  // Where a channel's first element lies.
  __device__ __forceinline__ int64_t start_of(int64_t c) const { return kRows ? c : c * shape_.S; }

  // Before the i-th vector.
  __device__ __forceinline__ Walk at(int64_t i) const {
    const int64_t unit = begin_ + i * per_step_;
    if (kRows) return {unit * shape_.C + own_channel_, 0, per_step_ * shape_.C, 0, 1, 0};
    const int64_t of_plane = shape_.S / kLanes, sample = shape_.C * shape_.S;
    const int64_t n = unit / of_plane, s = unit % of_plane, dn = per_step_ / of_plane, ds = per_step_ % of_plane;
    return {n * sample + own_channel_ * shape_.S + s * kLanes, s, dn * sample + ds * kLanes, ds, of_plane,
            sample - shape_.S};
  }

 private:
  const BatchNormShape& shape_;
  const BatchNormPlan& plan_;
  int64_t group_, first_channel_, own_channel_, per_step_, begin_;
  int count_;
};

// Sums over a team, always added in the same order: threads of a warp, warps of a block, blocks of a team.
class TeamSums {
 public:
  __device__ __forceinline__ TeamSums(SharedMemory& memory, const BatchNormPlan& plan, ChannelSums* exchange)
      : plan_(plan), channels_(plan.channels()),
        warps_(memory.array<ChannelSums>(static_cast<int>(blockDim.x) / kWarp * plan.channels())),
        slots_(memory.array<ChannelSums>(2 * plan.channels())), exchange_(exchange) {}

  __device__ __forceinline__ bool leads() const { return blockIdx.x % plan_.team == 0; }

  // Each thread brings the sums of kOwn channels, from number `own` of its group on. finish(number, total) is called in
  // one thread of each block for every channel; what it writes to shared memory all threads may read afterwards. Every
  // block of the grid calls this in every round.
  template <int kOwn, class Finish>
  __device__ __forceinline__ void add_up(int64_t round, const ChannelSums (&sums)[kOwn], int own, Finish finish) {
    const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
    const int warps = static_cast<int>(blockDim.x) / kWarp;
    for (int i = 0; i < kOwn; ++i) {
      const ChannelSums total = warp_sum(sums[i], plan_.columns);
      if (lane < plan_.columns) warps_.write(warp * channels_ + own + i, total);
    }
    __syncthreads();
    const int turn = static_cast<int>(round % 2);  // a slow block may still be reading what the last round left
    for (int c = thread; c < channels_; c += static_cast<int>(blockDim.x)) {
      ChannelSums total = warps_.read(c);
      for (int w = 1; w < warps; ++w) total = total + warps_.read(w * channels_ + c);
      publish(turn, c, total);
    }
    wait();
    for (int c = warp; c < channels_; c += warps) {
      ChannelSums total;
      for (int rank = lane; rank < plan_.team; rank += kWarp) total = total + published(turn, c, rank);
      total = warp_sum(total);
      if (lane == 0) finish(c, total);
    }
    __syncthreads();
  }

  // Before a block ends: its neighbours may still be reading its shared memory.
  __device__ __forceinline__ void leave() const {
    if (plan_.kind == Team::cluster) cluster_barrier();
  }

 private:
  __device__ __forceinline__ void wait() const {
    if (plan_.kind == Team::grid) grid_barrier();
    else if (plan_.kind == Team::cluster) cluster_barrier();
    else __syncthreads();
  }
  __device__ __forceinline__ ChannelSums& exchanged(int turn, int c, int rank) const {
    const int64_t team = blockIdx.x / plan_.team;
    return exchange_[((team * 2 + turn) * channels_ + c) * plan_.team + rank];
  }
  __device__ __forceinline__ void publish(int turn, int c, const ChannelSums& total) const {
    if (plan_.kind == Team::grid) exchanged(turn, c, static_cast<int>(blockIdx.x) % plan_.team) = total;
    else slots_.write(turn * channels_ + c, total);
  }
  __device__ __forceinline__ ChannelSums published(int turn, int c, int rank) const {
    if (plan_.kind == Team::grid) return exchanged(turn, c, rank);
    if (plan_.kind == Team::cluster) return slots_.of_block(rank).read(turn * channels_ + c);
    return slots_.read(turn * channels_ + c);
  }

  const BatchNormPlan& plan_;
  int channels_;
  Shared<ChannelSums> warps_, slots_;
  ChannelSums* exchange_;
};

template <class T, int kLanes_, bool kRows_>
struct Variant {
  using type = T;
  static constexpr int kLanes = kLanes_;
  static constexpr bool kRows = kRows_;
};

// Calls f with the variant of a kernel that a plan asks for: loads of 16 bytes, of one element, and for planes of
// 16-bit elements also of 8 bytes (14 x 14 pixels).
template <class T, bool kRows, class F>
void with_lanes(const BatchNormPlan& p, F& f) {
  if (p.lanes == kWidest<T>) return f(Variant<T, kWidest<T>, kRows>{});
  if constexpr (!kRows && sizeof(T) == 2) {
    if (p.lanes == kWidest<T> / 2) return f(Variant<T, kWidest<T> / 2, kRows>{});
  }
  return f(Variant<T, 1, kRows>{});
}
template <class T, class F>
void with_order(const BatchNormPlan& p, F& f) {
  if (p.rows) with_lanes<T, true>(p, f);
  else with_lanes<T, false>(p, f);
}
template <class F>
void with_variant(const BatchNormPlan& p, Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::f64: return with_order<double>(p, f);
    case Dtype::f32: return with_order<float>(p, f);
    case Dtype::bf16: return with_order<bfloat16>(p, f);
    case Dtype::f16: return with_order<float16>(p, f);
  }
}

inline Launch launch_of(const char* op, const BatchNormPlan& p) {
  return {op, p.blocks(), p.threads, p.shared_bytes, p.kind == Team::cluster ? p.team : 1, p.kind == Team::grid};
}

}  // namespace fastnorm
