// Batch norm backward in one launch: dweight, dbias, dx and, with a residual, dresidual. A block keeps of x, dy and the
// residual what its shared memory holds and reads the rest again, from the end (docs/math.md N5, N6).
#include "cuda/batch_norm_team.cuh"
#include "cuda/launch.cuh"

namespace fastnorm {
namespace {

template <class V>
struct BwdKernel {
  using T = typename V::type;
  using A = Arithmetic<T>;
  using Pack = Vec<T, V::kLanes>;
  using Bits = typename Pack::Bits;
  static constexpr int kOwn = V::kRows ? V::kLanes : 1;
  // Vectors of each tensor that a thread loads before it uses the first: as many as there are registers for.
  static constexpr int kFlight = kOwn > 4 ? 1 : 2;

  struct Inputs {
    Pack x, dy, residual;
  };

  const BatchNormBwdCuda& args;
  Part<V::kLanes, V::kRows> part;
  const Shared<ChannelNumbers<A>>& numbers;  // of the group's channels
  const Shared<Bits>& held;                  // x, then dy, then the residual

  __device__ __forceinline__ int slot(int i, int tensor) const {
    return (tensor * args.plan.held + i) * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x);
  }
  __device__ __forceinline__ bool has_residual() const { return args.op.residual != nullptr; }
  static __device__ __forceinline__ Pack load(const void* tensor, int64_t offset) {
    return Pack::load(static_cast<const T*>(tensor) + offset);
  }
  __device__ __forceinline__ Inputs load(int64_t offset) const {
    Inputs v;
    v.x = load(args.op.x, offset), v.dy = load(args.op.dy, offset);
    if (has_residual()) v.residual = load(args.op.residual, offset);
    return v;
  }
  __device__ __forceinline__ void hold(int i, const Inputs& v) const {
    held.write(slot(i, 0), v.x.bits()), held.write(slot(i, 1), v.dy.bits());
    if (has_residual()) held.write(slot(i, 2), v.residual.bits());
  }
  __device__ __forceinline__ Inputs take(int i) const {
    Inputs v;
    v.x = Pack::of_bits(held.read(slot(i, 0))), v.dy = Pack::of_bits(held.read(slot(i, 1)));
    if (has_residual()) v.residual = Pack::of_bits(held.read(slot(i, 2)));
    return v;
  }
  __device__ __forceinline__ A dz(const Inputs& v, int j, const ChannelNumbers<A>& c,
                                  const Relu<A, AnySteps>& act) const {
    A z = normalized(v.x[j], c.mean, c.scale, c.bias);
    if (has_residual()) z += v.residual[j];
    return act.backward(z, v.dy[j]);
  }

  // What both sweeps need of the forward.
  __device__ __forceinline__ void take_statistics() const {
    __syncthreads();  // the last round's numbers are done with
    for (int number = static_cast<int>(threadIdx.x); number < args.plan.channels(); number += blockDim.x) {
      const int64_t c = part.first_channel() + number;
      if (c >= args.op.shape.C) break;
      const Affine<A> z = affine_of<A>(args.op, c);
      numbers.write(number, {z.mean, z.scale, z.bias, A(0), A(0)});
    }
    __syncthreads();
  }

  // The sums of dz and dz * (x - mean). dresidual is written, and with constant statistics dx.
  __device__ __forceinline__ void sum(ChannelSums (&sums)[kOwn]) const {
    if (part.count() == 0) return;
    const Relu<A, AnySteps> act(args.op.act);
    ChannelNumbers<A> own[kOwn];
    for (int j = 0; j < kOwn; ++j) own[j] = numbers.read(part.own() + j);
    Walk walk = part.at(0);
    int i = 0;
    for (; i + kFlight <= part.count(); i += kFlight) sum_some<kFlight>(walk, i, own, act, sums);
    for (; i < part.count(); ++i) sum_some<1>(walk, i, own, act, sums);
  }
  template <int kSome>
  __device__ __forceinline__ void sum_some(Walk& walk, int i, const ChannelNumbers<A> (&own)[kOwn],
                                           const Relu<A, AnySteps>& act, ChannelSums (&sums)[kOwn]) const {
    int64_t offset[kSome];
    Inputs v[kSome];
    A sum[kOwn] = {}, product[kOwn] = {};
#pragma unroll
    for (int u = 0; u < kSome; ++u) offset[u] = walk.offset, v[u] = load(walk.offset), walk.next();
#pragma unroll
    for (int u = 0; u < kSome; ++u) {
      if (i + u < args.plan.held) hold(i + u, v[u]);
      Pack dresidual, dx;
#pragma unroll
      for (int j = 0; j < V::kLanes; ++j) {
        const int k = V::kRows ? j : 0;
        const A d = dz(v[u], j, own[k], act);
        sum[k] += d, product[k] += d * (v[u].x[j] - own[k].mean);
        dresidual.set(j, d), dx.set(j, d * own[k].scale);
      }
      if (args.op.dresidual != nullptr) dresidual.store(static_cast<T*>(args.op.dresidual) + offset[u]);
      if (args.op.dx != nullptr && !args.op.batch_stats) dx.store(static_cast<T*>(args.op.dx) + offset[u]);
    }
    for (int k = 0; k < kOwn; ++k) {
      sums[k] = sums[k] + ChannelSums{static_cast<double>(sum[k]), static_cast<double>(product[k])};
    }
  }

  // One thread of each block; the team's first block stores.
  __device__ __forceinline__ void finish(int number, const ChannelSums& total, bool leads) const {
    const int64_t c = part.first_channel() + number;
    if (c >= args.op.shape.C) return;
    const InputGrad g = input_grad_of(args.op, c, total);
    const Affine<A> z = affine_of<A>(args.op, c);
    numbers.write(number, {z.mean, z.scale, z.bias, static_cast<A>(g.slope), static_cast<A>(g.offset)});
    if (leads) store_parameter_grads(args.op, c, total);
  }

  __device__ __forceinline__ void write() const {
    if (part.count() == 0 || args.op.dx == nullptr || !args.op.batch_stats) return;
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
    int64_t offset[kSome];
    Inputs v[kSome];
#pragma unroll
    for (int u = 0; u < kSome; ++u) {
      const int i = end - 1 - u;
      offset[u] = walk.offset;
      v[u] = i < args.plan.held ? take(i) : load(walk.offset);
      walk.back();
    }
#pragma unroll
    for (int u = 0; u < kSome; ++u) {
      Pack dx;
#pragma unroll
      for (int j = 0; j < V::kLanes; ++j) {
        const ChannelNumbers<A>& c = own[V::kRows ? j : 0];
        dx.set(j, dz(v[u], j, c, act) * c.scale + ((v[u].x[j] - c.mean) * c.slope + c.offset));
      }
      dx.store(static_cast<T*>(args.op.dx) + offset[u]);
    }
  }
};

template <class V>
__global__ void __launch_bounds__(512, 1) batch_norm_bwd_kernel(const __grid_constant__ BatchNormBwdCuda args) {
  using Kernel = BwdKernel<V>;
  SharedMemory memory;
  TeamSums team(memory, args.plan, args.exchange);
  const int tensors = args.op.residual != nullptr ? 3 : 2;
  const auto numbers = memory.array<ChannelNumbers<typename Kernel::A>>(args.plan.channels());
  const auto held = memory.array<typename Kernel::Bits>(tensors * args.plan.held * static_cast<int>(blockDim.x));
  for (int64_t round = 0; round < args.plan.rounds(); ++round) {
    const Kernel k{args, {args.op.shape, args.plan, round}, numbers, held};
    const bool leads = team.leads();
    ChannelSums sums[Kernel::kOwn];
    k.take_statistics();
    k.sum(sums);
    team.add_up(round, sums, k.part.own(), [&](int c, const ChannelSums& total) { k.finish(c, total, leads); });
    k.write();
  }
  team.leave();
}

}  // namespace

void batch_norm_bwd_cuda(const BatchNormBwdCuda& args, const CudaStream& stream) {
  with_variant(args.plan, args.op.dtype, [&](auto variant) {
    launch(launch_of("batch_norm_bwd", args.plan), stream, batch_norm_bwd_kernel<decltype(variant)>, args);
  });
}

}  // namespace fastnorm
