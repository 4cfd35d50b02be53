// Mean, standard deviation and histogram of |x| in one launch that reads x once (docs/math.md A1 and A2).
#include "math/activation_stats.h"

#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"
#include "cuda/vec.cuh"
#include "op/activation_stats_cuda.h"

namespace fastnorm {
namespace {

// Two vectors of each of 512 threads are 16 KB an SM in flight; a third costs registers that nothing hides. Unmeasured.
constexpr int kMostThreads = 512, kLeastThreads = 128, kFlight = 2;

__device__ __forceinline__ double finite_or_zero(double v) { return v - v == 0 ? v : 0; }

// A block's counts, one table for each lane of a warp: neighbours never meet in one number, and their banks differ.
class LaneTables {
 public:
  __device__ __forceinline__ LaneTables(SharedMemory& memory, int bins)
      : slots_((bins + 1) * kWarp), counts_(memory.array<unsigned>(slots_)) {}

  __device__ __forceinline__ void clear() const {
    for (int i = static_cast<int>(threadIdx.x); i < slots_; i += static_cast<int>(blockDim.x)) counts_.write(i, 0);
  }
  __device__ __forceinline__ void count(int bin) const {
    counts_.add(bin * kWarp + static_cast<int>(threadIdx.x) % kWarp, 1);
  }
  __device__ __forceinline__ unsigned total(int bin) const {
    unsigned sum = 0;
    // Bin by bin another lane first: no two threads in a bank.
    for (int lane = 0; lane < kWarp; ++lane) sum += counts_.read(bin * kWarp + (bin + lane) % kWarp);
    return sum;
  }

 private:
  int slots_;
  Shared<unsigned> counts_;
};

inline int shared_bytes(const ActivationStatsCuda& args) {
  return SharedMemory::bytes_of<unsigned>((static_cast<int>(args.op.bins) + 1) * kWarp) +
         SharedMemory::bytes_of<double>(args.plan.threads / kWarp);
}

// Sums in fp64: nothing overflows or cancels, and a GPU that holds tensors worth the time has the units for it.
template <class T, int kLanes>
struct StatsKernel {
  using A = Arithmetic<T>;
  using Pack = Vec<T, kLanes>;

  const ActivationStatsCuda& args;
  const LaneTables& tables;
  const Shared<double>& scratch;  // one number a warp

  __device__ __forceinline__ const T* x() const { return static_cast<const T*>(args.op.x); }

  // Every element of this block's share, kFlight vectors at a time: f(value).
  template <class F>
  __device__ __forceinline__ void each(int64_t first, int64_t end, int64_t step, F f) const {
    int64_t i = first;
    for (; i + (kFlight - 1) * step < end; i += kFlight * step) {
      Pack v[kFlight];
#pragma unroll
      for (int u = 0; u < kFlight; ++u) v[u] = Pack::load(x() + (i + u * step) * kLanes);
#pragma unroll
      for (int u = 0; u < kFlight; ++u) all_of(v[u], f);
    }
    for (; i < end; i += step) all_of(Pack::load(x() + i * kLanes), f);
  }
  template <class F>
  static __device__ __forceinline__ void all_of(const Pack& v, F& f) {
#pragma unroll
    for (int j = 0; j < kLanes; ++j) f(v[j]);
  }

  __device__ __forceinline__ void run() const {
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x, vectors = args.op.n / kLanes;
    const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    const int64_t left = vectors * kLanes + first;  // the elements behind the last vector: a thread each
    const auto take = [&](int64_t end, auto f) {
      each(first, end, step, f);
      if (left < args.op.n) f(widened(x()[left]));
    };
    // A value near the mean: that of what the block's threads load first.
    double near = 0;
    int seen = 0;
    take(first + 1 < vectors ? first + 1 : vectors, [&](A v) { near += static_cast<double>(v), ++seen; });
    near = finite_or_zero(block_sum(near, scratch) / block_sum(static_cast<double>(seen), scratch));
    const Bins<A> bins(args.op.bins, args.op.low, args.op.high);
    double sum = 0, squares = 0;
    int64_t count = 0;
    take(vectors, [&](A v) {
      const double d = static_cast<double>(v) - near;
      sum += d, squares += d * d, ++count;
      tables.count(static_cast<int>(bins.position(v)));
    });
    store(near, block_sum(sum, scratch), block_sum(squares, scratch),
          block_sum(static_cast<double>(count), scratch));
  }
  __device__ __forceinline__ void store(double near, double sum, double squares, double count) const {
    const double way = sum / count, rest = squares - sum * way;
    if (threadIdx.x == 0) args.stats[blockIdx.x] = {near + way, rest < 0 ? 0 : rest, count};
    unsigned* counts = args.counts + blockIdx.x * args.op.bins;
    for (int bin = static_cast<int>(threadIdx.x); bin < args.op.bins; bin += static_cast<int>(blockDim.x)) {
      counts[bin] = tables.total(bin);
    }
  }

  // One block adds up what all found, in their order.
  __device__ __forceinline__ void merge() const {
    const int thread = static_cast<int>(threadIdx.x), blocks = args.plan.blocks;
    const auto over_blocks = [&](auto f) {
      double sum = 0;
      for (int b = thread; b < blocks; b += static_cast<int>(blockDim.x)) sum += f(args.stats[b]);
      return block_sum(sum, scratch);
    };
    const double n = static_cast<double>(args.op.n), base = finite_or_zero(args.stats[0].mean);
    const double way = over_blocks([&](const BlockStats& s) { return s.count * (s.mean - base); }) / n;
    const double squares = over_blocks([&](const BlockStats& s) {
      const double spread = (s.mean - base) - way;
      return s.squares + s.count * spread * spread;
    });
    if (thread == 0) {
      write(args.mean, 0, base + way);
      write(args.std, 0, sqrt(squares / (n - 1)));
    }
    for (int64_t bin = thread; bin < args.op.bins; bin += blockDim.x) {
      int64_t total = 0;
      for (int b = 0; b < blocks; ++b) total += args.counts[b * args.op.bins + bin];
      args.hist[bin] = total;
    }
  }
};

template <class T, int kLanes>
__global__ void __launch_bounds__(kMostThreads, 1)
    activation_stats_kernel(const __grid_constant__ ActivationStatsCuda args) {
  SharedMemory memory;
  const LaneTables tables(memory, static_cast<int>(args.op.bins));
  const auto scratch = memory.array<double>(static_cast<int>(blockDim.x) / kWarp);
  const StatsKernel<T, kLanes> k{args, tables, scratch};
  tables.clear();  // the barriers of the first sum stand between this and the counting
  k.run();
  grid_barrier();
  if (blockIdx.x == 0) k.merge();
}

template <class T>
void launch_of(const ActivationStatsCuda& args, const CudaStream& stream) {
  const Launch l{"activation_stats_fwd", args.plan.blocks, args.plan.threads, shared_bytes(args), 1, true};
  if (args.plan.wide) launch(l, stream, activation_stats_kernel<T, kWidest<T>>, args);
  else launch(l, stream, activation_stats_kernel<T, 1>, args);
}

}  // namespace

ActivationStatsPlan activation_stats_plan(const CudaDevice& d, const ActivationStatsArgs& args) {
  constexpr int64_t kShare = 4;  // vectors of a thread, at least, for a block to be worth waiting for
  ActivationStatsPlan p;
  p.wide = reinterpret_cast<uintptr_t>(args.x) % 16 == 0;
  const int64_t vectors = args.n / (p.wide ? 16 / size_of(args.dtype) : 1);
  p.threads = kLeastThreads;  // small blocks until every SM has one
  while (p.threads < kMostThreads && p.threads * kShare * d.sms < vectors) p.threads *= 2;
  const int64_t wanted = vectors / (p.threads * kShare);
  p.blocks = static_cast<int>(wanted < 1 ? 1 : wanted < d.sms ? wanted : d.sms);
  return p;
}

void activation_stats_cuda(const ActivationStatsCuda& args, const CudaStream& stream) {
  switch (args.op.dtype) {
    case Dtype::f64: return launch_of<double>(args, stream);
    case Dtype::f32: return launch_of<float>(args, stream);
    case Dtype::bf16: return launch_of<bfloat16>(args, stream);
    case Dtype::f16: return launch_of<float16>(args, stream);
  }
}

}  // namespace fastnorm
