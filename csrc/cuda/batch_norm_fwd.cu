// Batch norm forward in one launch: statistics, running statistics, y. A block keeps of x what its shared memory holds
// and reads the rest again, from the end, where L2 has it most likely (docs/math.md N1-N4).
#include "cuda/batch_norm_team.cuh"
#include "cuda/launch.cuh"

namespace fastnorm {
namespace {

template <class A>
__device__ __forceinline__ A finite_or_zero(A v) {
  return v - v == 0 ? v : A(0);
}

// The sums of kCount values relative to the shift. They are taken around the values' own mean, so that nothing cancels
// however far off the shift is, and moved to the shift in double.
template <int kCount, class A, class Value>
__device__ __forceinline__ ChannelSums tile_sums(A shift, Value value) {
  A sum = 0;
#pragma unroll
  for (int k = 0; k < kCount; ++k) sum += value(k);
  const A middle = finite_or_zero(sum * (A(1) / kCount));
  A distance = 0, squares = 0;
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    const A d = value(k) - middle;
    distance += d, squares += d * d;
  }
  const double way = static_cast<double>(middle) - shift, way_of_all = way * kCount;
  return {distance + way_of_all, squares + way * (2 * static_cast<double>(distance) + way_of_all)};
}

template <class V>
struct FwdKernel {
  using T = typename V::type;
  using A = Arithmetic<T>;
  using Pack = Vec<T, V::kLanes>;
  using Bits = typename Pack::Bits;
  static constexpr int kOwn = V::kRows ? V::kLanes : 1;
  // Vectors of each tensor that a thread loads before it uses the first: as many as there are registers for.
  static constexpr int kFlight = kOwn > 4 ? 2 : 4;

  const BatchNormFwdCuda& args;
  Part<V::kLanes, V::kRows> part;
  const Shared<ChannelNumbers<A>>& numbers;  // of the group's channels
  const Shared<Bits>& held;

  __device__ __forceinline__ const T* x() const { return static_cast<const T*>(args.op.x); }
  __device__ __forceinline__ int kept() const { return args.op.training ? args.plan.held : 0; }
  __device__ __forceinline__ int slot(int i) const {
    return i * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x);
  }
  // A value of the channel, the same for all blocks: the first.
  __device__ __forceinline__ A shift(int64_t c) const { return finite_or_zero(widened(x()[part.start_of(c)])); }

  __device__ __forceinline__ void sum(ChannelSums (&sums)[kOwn]) const {
    if (part.count() == 0) return;
    A shifts[kOwn];
    for (int j = 0; j < kOwn; ++j) shifts[j] = shift(part.own_channel() + j);
    Walk walk = part.at(0);
    int i = 0;
    for (; i + kFlight <= part.count(); i += kFlight) sum_some<kFlight>(walk, i, shifts, sums);
    for (; i < part.count(); ++i) sum_some<1>(walk, i, shifts, sums);
  }
  template <int kSome>
  __device__ __forceinline__ void sum_some(Walk& walk, int i, const A (&shifts)[kOwn],
                                           ChannelSums (&sums)[kOwn]) const {
    Pack v[kSome];
#pragma unroll
    for (int u = 0; u < kSome; ++u) v[u] = Pack::load(x() + walk.offset), walk.next();
#pragma unroll
    for (int u = 0; u < kSome; ++u) {
      if (i + u < args.plan.held) held.write(slot(i + u), v[u].bits());
    }
    if constexpr (V::kRows) {
#pragma unroll
      for (int j = 0; j < kOwn; ++j) {
        sums[j] = sums[j] + tile_sums<kSome>(shifts[j], [&](int k) { return v[k][j]; });
      }
    } else {
      const auto value = [&](int k) { return v[k / V::kLanes][k % V::kLanes]; };
      sums[0] = sums[0] + tile_sums<kSome * V::kLanes>(shifts[0], value);
    }
  }

  // One thread of each block; the team's first block stores.
  __device__ __forceinline__ void finish(int number, const ChannelSums& total, bool leads) const {
    const int64_t c = part.first_channel() + number;
    if (c >= args.op.shape.C) return;
    const Moments m = moments(total, shift(c), static_cast<double>(args.op.shape.per_channel()));
    const double rstd = inverse_std_of(args.op, m);
    store_numbers(number, c, m.mean, rstd, leads);
    if (leads) move_running(args.op, c, m, read(args.factor, 0, args.op.momentum));
  }
  __device__ __forceinline__ void store_numbers(int number, int64_t c, double mean, double rstd, bool leads) const {
    const Affine<A> z = affine_with<A>(args.op, c, static_cast<A>(mean), static_cast<A>(rstd));
    numbers.write(number, {z.mean, z.scale, z.bias, A(0), A(0)});
    if (leads) write_stat(args.op.mean, args.op.dtype, c, mean), write_stat(args.op.rstd, args.op.dtype, c, rstd);
  }

  // Evaluation: the running statistics, in place of a sum.
  __device__ __forceinline__ void take_running(bool leads) const {
    __syncthreads();  // the last round's numbers are done with
    for (int number = static_cast<int>(threadIdx.x); number < args.plan.channels(); number += blockDim.x) {
      const int64_t c = part.first_channel() + number;
      if (c >= args.op.shape.C) break;
      const double var = read(args.op.running_var, c, 1);
      store_numbers(number, c, read(args.op.running_mean, c, 0), inverse_std(var, 2, args.op.eps, false), leads);
    }
    __syncthreads();
  }

  __device__ __forceinline__ void write() const {
    if (part.count() == 0) return;
    const Relu<A, AnySteps> act(args.op.act);
    ChannelNumbers<A> own[kOwn];
    for (int j = 0; j < kOwn; ++j) own[j] = numbers.read(part.own() + j);
    Walk walk = part.at(part.count() - 1);
    int end = part.count();
    for (; end >= kFlight; end -= kFlight) write_some<kFlight>(walk, end, own, act);
    for (; end > 0; --end) write_some<1>(walk, end, own, act);
  }
  template <int kSome>
  __device__ __forceinline__ void write_some(Walk& walk, int end, const ChannelNumbers<A> (&own)[kOwn],
                                             const Relu<A, AnySteps>& act) const {
    const T* const residual = static_cast<const T*>(args.op.residual);
    int64_t offset[kSome];
    Pack v[kSome], added[kSome];
#pragma unroll
    for (int u = 0; u < kSome; ++u) offset[u] = walk.offset, walk.back();
#pragma unroll
    for (int u = 0; u < kSome; ++u) {
      const int i = end - 1 - u;
      v[u] = i < kept() ? Pack::of_bits(held.read(slot(i))) : Pack::load(x() + offset[u]);
      if (residual != nullptr) added[u] = Pack::load(residual + offset[u]);
    }
#pragma unroll
    for (int u = 0; u < kSome; ++u) {
#pragma unroll
      for (int j = 0; j < V::kLanes; ++j) {
        const ChannelNumbers<A>& c = own[V::kRows ? j : 0];
        A z = normalized(v[u][j], c.mean, c.scale, c.bias);
        if (residual != nullptr) z += added[u][j];
        v[u].set(j, act.forward(z));
      }
      v[u].store(static_cast<T*>(args.op.y) + offset[u]);
    }
  }
};

template <class V>
__global__ void __launch_bounds__(512, 1) batch_norm_fwd_kernel(const __grid_constant__ BatchNormFwdCuda args) {
  using Kernel = FwdKernel<V>;
  SharedMemory memory;
  TeamSums team(memory, args.plan, args.exchange);
  const auto numbers = memory.array<ChannelNumbers<typename Kernel::A>>(args.plan.channels());
  const auto held = memory.array<typename Kernel::Bits>(args.plan.held * static_cast<int>(blockDim.x));
  for (int64_t round = 0; round < args.plan.rounds(); ++round) {
    const Kernel k{args, {args.op.shape, args.plan, round}, numbers, held};
    const bool leads = team.leads();
    if (args.op.training) {
      ChannelSums sums[Kernel::kOwn];
      k.sum(sums);
      team.add_up(round, sums, k.part.own(), [&](int c, const ChannelSums& total) { k.finish(c, total, leads); });
    } else {
      k.take_running(leads);
    }
    k.write();
  }
  team.leave();
}

}  // namespace

void batch_norm_fwd_cuda(const BatchNormFwdCuda& args, const CudaStream& stream) {
  with_variant(args.plan, args.op.dtype, [&](auto variant) {
    launch(launch_of("batch_norm_fwd", args.plan), stream, batch_norm_fwd_kernel<decltype(variant)>, args);
  });
}

}  // namespace fastnorm
