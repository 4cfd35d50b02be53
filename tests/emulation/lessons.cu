// Kernels that are wrong, each in one way, and a right one of each kind: what the emulation has to say about them.
// lessons NAME runs one of them.
#include <cstdio>
#include <cstring>

#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"

namespace fastnorm {
namespace {

struct Args {
  double* out;
  int number;
};
constexpr int kThreads = 64, kBlocks = 4;

// Each thread hands its number to its neighbour.
template <bool kBarrier, bool kSecondBarrier>
__global__ void pass_on(Args args) {
  SharedMemory memory;
  const auto numbers = memory.array<int>(kThreads);
  const int thread = static_cast<int>(threadIdx.x);
  for (int turn = 0; turn < 2; ++turn) {
    numbers.write(thread, thread + turn);
    if (kBarrier) __syncthreads();
    args.out[thread] = numbers.read((thread + 1) % kThreads);
    if (kSecondBarrier) __syncthreads();
  }
}

__global__ void half_waits(Args args) {
  if (threadIdx.x < 32) __syncthreads();
  args.out[threadIdx.x] = 1;
}

__global__ void waits_in_two_places(Args args) {
  if (threadIdx.x < 32) __syncthreads();
  else __syncthreads();
  args.out[threadIdx.x] = 1;
}

__global__ void leaves_early(Args args) {
  if (threadIdx.x == 63) return;
  __syncthreads();
  args.out[threadIdx.x] = 1;
}

__global__ void half_a_warp_shuffles(Args args) {
  if (threadIdx.x % 32 < 16) args.out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.0, 1);
}

// args.number elements in an array of one less, args.number + 1 in memory that has no room for them.
__global__ void writes_too_far(Args args) {
  SharedMemory memory;
  const auto numbers = memory.array<int>(kThreads);
  numbers.write(static_cast<int>(threadIdx.x) + args.number, 1);
}
__global__ void asks_for_too_much(Args args) {
  SharedMemory memory;
  memory.array<int>(kThreads);
  memory.array<int>(args.number);
}

__global__ void reads_what_nobody_wrote(Args args) {
  SharedMemory memory;
  args.out[threadIdx.x] = memory.array<int>(kThreads).read(static_cast<int>(threadIdx.x));
}

__global__ void writes_past_a_tensor(Args args) { args.out[threadIdx.x + static_cast<unsigned>(args.number)] = 1; }

template <bool kBarrier>
__global__ void asks_a_neighbour(Args args) {
  SharedMemory memory;
  const auto numbers = memory.array<int>(1);
  const auto rank = static_cast<int>(blockIdx.x) % 2;
  if (threadIdx.x == 0) numbers.write(0, rank);
  if (kBarrier) cluster_barrier();
  else __syncthreads();
  args.out[blockIdx.x * kThreads + threadIdx.x] = numbers.of_block(1 - rank).read(0);
  if (kBarrier) cluster_barrier();
}

// The second block of a cluster looks for its neighbour when that one may be gone.
__global__ void comes_too_late(Args args) {
  SharedMemory memory;
  const auto numbers = memory.array<int>(1);
  const auto rank = static_cast<int>(blockIdx.x) % 2;
  if (threadIdx.x == 0) numbers.write(0, rank);
  cluster_barrier();
  for (int i = 0; i < args.number * rank; ++i) __syncthreads();
  args.out[blockIdx.x * kThreads + threadIdx.x] = numbers.of_block(1 - rank).read(0);
}

__global__ void grid_waits(Args args) {
  args.out[blockIdx.x * kThreads + threadIdx.x] = 1;
  grid_barrier();
  args.out[blockIdx.x * kThreads + threadIdx.x] += args.out[(blockIdx.x + 1) % kBlocks * kThreads + threadIdx.x];
}

__global__ void sums(Args args) {
  SharedMemory memory;
  const auto scratch = memory.array<double>(kThreads / kWarp);
  args.out[threadIdx.x] = block_sum(static_cast<double>(threadIdx.x), scratch);
}

// All threads add to one number.
template <bool kFirstBarrier, bool kSecondBarrier>
__global__ void adds(Args args) {
  SharedMemory memory;
  const auto total = memory.array<unsigned>(1);
  if (threadIdx.x == 0) total.write(0, 0);
  if (kFirstBarrier) __syncthreads();
  total.add(0, threadIdx.x);
  if (kSecondBarrier) __syncthreads();
  args.out[threadIdx.x] = total.read(0);
}

int run(const char* name) {
  double* const out = new double[kBlocks * kThreads]();
  const Args args{out, 1};
  const int ints = SharedMemory::bytes_of<int>(kThreads);
  const Launch one{name, 1, kThreads, ints}, clusters{name, kBlocks, kThreads, ints, 2};
  Launch together = clusters, alone = clusters;
  together.cluster = 1, together.cooperative = true;
  alone.cluster = 1;
  const struct {
    const char* name;
    void (*kernel)(Args);
    Launch launch;
    Args args;
    double first;  // result
  } lessons[] = {
      {"pass_on", pass_on<true, true>, one, args, 2},
      {"no_barrier", pass_on<false, true>, one, args, 0},
      {"no_second_barrier", pass_on<true, false>, one, args, 0},
      {"half_waits", half_waits, one, args, 0},
      {"waits_in_two_places", waits_in_two_places, one, args, 0},
      {"leaves_early", leaves_early, one, args, 0},
      {"half_a_warp_shuffles", half_a_warp_shuffles, one, args, 0},
      {"writes_too_far", writes_too_far, one, args, 0},
      {"asks_for_too_much", asks_for_too_much, one, args, 0},
      {"reads_what_nobody_wrote", reads_what_nobody_wrote, one, args, 0},
      {"writes_past_a_tensor", writes_past_a_tensor, one, {out, kBlocks * kThreads}, 0},
      {"cluster", asks_a_neighbour<true>, clusters, args, 1},
      {"no_cluster_barrier", asks_a_neighbour<false>, clusters, args, 0},
      {"comes_too_late", comes_too_late, clusters, args, 0},
      {"cluster_of_three", asks_a_neighbour<true>, {name, kBlocks, kThreads, ints, 3}, args, 0},
      {"grid", grid_waits, together, args, 2},
      {"grid_not_cooperative", grid_waits, alone, args, 0},
      {"sums", sums, one, args, 2016},
      {"adds", adds<true, true>, one, args, 2016},
      {"adds_too_early", adds<false, true>, one, args, 0},
      {"reads_while_others_add", adds<true, false>, one, args, 0},
  };
  for (const auto& lesson : lessons) {
    if (std::strcmp(lesson.name, name) != 0) continue;
    launch(lesson.launch, {}, lesson.kernel, lesson.args);
    std::printf("%s\n", out[0] == lesson.first ? "right" : "WRONG");
    delete[] out;
    return 0;
  }
  std::fprintf(stderr, "there is no lesson %s\n", name);
  return 2;
}

}  // namespace
}  // namespace fastnorm

int main(int, char** arguments) {
  try {
    return fastnorm::run(arguments[1]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
