// Optimizer steps: one launch over all parameters, a block a chunk. Formulas: docs/math.md O1 to O4, in csrc/math.
#include <cmath>

#include "cuda/launch.cuh"
#include "cuda/optim_streams.cuh"
#include "cuda/reduce.cuh"
#include "math/adam.h"
#include "math/rmsprop.h"
#include "math/sgd.h"
#include "op/optim_cuda.h"

namespace fastnorm {
namespace {

// 8 elements of up to five tensors are 160 bytes in flight a thread, 100 KB and more on an SM. Unmeasured.
constexpr int kThreads = 128, kWarps = kThreads / kWarp;

struct Root {
  __device__ __forceinline__ float operator()(float v) const { return sqrtf(v); }
  __device__ __forceinline__ double operator()(double v) const { return sqrt(v); }
};

// A set of numbers as it lies in memory: its fields one after the other, a flag as 0 or 1.
__device__ __forceinline__ void read_set(const double* from, AdamNumbers& n) {
  n = {from[0], from[1], from[2], from[3], from[4], from[5], from[6], from[7], from[8], from[9]};
}
__device__ __forceinline__ void read_set(const double* from, SgdNumbers& n) {
  n = {from[0], from[1], from[2], from[3], from[4], from[5], from[6], from[7] != 0};
}
__device__ __forceinline__ void read_set(const double* from, RmspropNumbers& n) {
  n = {from[0], from[1], from[2], from[3], from[4], from[5], from[6], from[7], from[8], from[9], from[10] != 0};
}

// As torch.nn.utils.clip_grad_norm_: by the norm of the gradients after `factor`. NaN stays.
__device__ __forceinline__ double clipping(const OptimCudaArgs& args, double factor) {
  if (args.squares == nullptr) return 1;
  SharedMemory memory;
  double sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < args.square_count; i += kThreads) sum += args.squares[i];
  const double norm = sqrt(block_sum(sum, memory.array<double>(kWarps))) * fabs(factor);
  const double clip = args.max_norm / (norm + 1e-6);
  return clip > 1 ? 1 : clip;
}

template <class A, class Rule>
__device__ __forceinline__ void update(const Rule& rule, const OptimCudaRow& row, const OptimCudaForm& form, int64_t at,
                                       int count) {
  constexpr int kStates = Rule::kStates, kLanes = Streamed<A>::kLanes;
  const bool whole = form.aligned && count == kLanes;
  Streamed<A> param, grad, state[kStates + 1];
  param.load(reinterpret_cast<const void*>(row.param), form.param, at, count, whole);
  grad.load(reinterpret_cast<const void*>(row.grad), form.grad, at, count, whole);
  for (int k = 0; k < kStates; ++k) {
    state[k].load(reinterpret_cast<const void*>(row.state[k]), form.state, at, count, whole);
  }
  A p[kLanes], g[kLanes], s[kStates + 1][kLanes];
  param.widen(form.param, p);
  grad.widen(form.grad, g);
  for (int k = 0; k < kStates; ++k) state[k].widen(form.state, s[k]);
  for (int i = 0; i < kLanes; ++i) {
    A own[kStates + 1];
    for (int k = 0; k < kStates; ++k) own[k] = s[k][i];
    rule.update(p[i], g[i], own, Root());
    for (int k = 0; k < kStates; ++k) s[k][i] = own[k];
  }
  param.narrow(form.param, p);
  param.store(reinterpret_cast<void*>(row.param), form.param, at, count, whole);
  for (int k = 0; k < kStates; ++k) {
    state[k].narrow(form.state, s[k]);
    state[k].store(reinterpret_cast<void*>(row.state[k]), form.state, at, count, whole);
  }
  if (row.rounded != 0) {
    grad.narrow(form.rounded, p);
    grad.store(reinterpret_cast<void*>(row.rounded), form.rounded, at, count, whole);
  }
}

template <class A, class Rule>
__global__ void __launch_bounds__(kThreads, sizeof(A) == 4 ? 4 : 2) optim_step_kernel(OptimCudaArgs args) {
  constexpr int kLanes = Streamed<A>::kLanes;
  if (read(args.found_inf, 0, 0) != 0) return;
  const OptimCudaChunk chunk = args.chunks[blockIdx.x];
  const OptimCudaRow row = args.rows[chunk.row];
  const double factor = read(args.factor, 0, 1);
  typename Rule::Numbers numbers;
  read_set(args.numbers + row.set * static_cast<int64_t>(sizeof numbers / sizeof(double)), numbers);
  numbers.grad *= factor * clipping(args, factor);
  const Rule rule(numbers);
  const int64_t end = chunk.begin + args.form.chunk < row.numel ? chunk.begin + args.form.chunk : row.numel;
  for (int64_t at = chunk.begin + static_cast<int64_t>(threadIdx.x) * kLanes; at < end; at += kThreads * kLanes) {
    const int64_t left = end - at;
    update<A>(rule, row, args.form, at, left < kLanes ? static_cast<int>(left) : kLanes);
  }
}

struct SquaresArgs {
  OptimCudaArgs step;
  double* squares;
};

// Every square in fp64, so that no gradient that fp32 holds overflows.
template <class A>
__global__ void __launch_bounds__(kThreads) optim_squares_kernel(SquaresArgs args) {
  constexpr int kLanes = Streamed<A>::kLanes;
  const OptimCudaForm& form = args.step.form;
  double sum = 0;
  for (int64_t c = blockIdx.x; c < args.step.chunk_count; c += gridDim.x) {
    const OptimCudaChunk chunk = args.step.chunks[c];
    const OptimCudaRow row = args.step.rows[chunk.row];
    const int64_t end = chunk.begin + form.chunk < row.numel ? chunk.begin + form.chunk : row.numel;
    for (int64_t at = chunk.begin + static_cast<int64_t>(threadIdx.x) * kLanes; at < end; at += kThreads * kLanes) {
      const int count = end - at < kLanes ? static_cast<int>(end - at) : kLanes;
      Streamed<A> grad;
      A g[kLanes];
      grad.load(reinterpret_cast<const void*>(row.grad), form.grad, at, count, form.aligned && count == kLanes);
      grad.widen(form.grad, g);
      for (int i = 0; i < kLanes; ++i) sum += static_cast<double>(g[i]) * static_cast<double>(g[i]);
    }
  }
  SharedMemory memory;
  sum = block_sum(sum, memory.array<double>(kWarps));
  if (threadIdx.x == 0) args.squares[blockIdx.x] = sum;
}

constexpr int kScratchBytes = SharedMemory::bytes_of<double>(kWarps);

template <class A, class Rule>
void launch_rule(const OptimCudaArgs& args, const CudaStream& stream) {
  const int scratch = args.squares == nullptr ? 0 : kScratchBytes;
  const Launch l{"optim_step", static_cast<int>(args.chunk_count), kThreads, scratch};
  launch(l, stream, optim_step_kernel<A, Rule>, args);
}

template <class A>
void launch_wide(const OptimCudaArgs& args, const CudaStream& stream) {
  const int states = args.form.states;
  const bool centered = args.form.centered;
  switch (args.form.kind) {
    case OptimCudaKind::sgd:
      if (states == 0) return launch_rule<A, Sgd<A, false>>(args, stream);
      if (states == 1) return launch_rule<A, Sgd<A, true>>(args, stream);
      break;
    case OptimCudaKind::rmsprop:
      if (states == 1 && !centered) return launch_rule<A, Rmsprop<A, false, false>>(args, stream);
      if (states == 2 && !centered) return launch_rule<A, Rmsprop<A, true, false>>(args, stream);
      if (states == 2 && centered) return launch_rule<A, Rmsprop<A, false, true>>(args, stream);
      if (states == 3 && centered) return launch_rule<A, Rmsprop<A, true, true>>(args, stream);
      break;
    case OptimCudaKind::adam:
      if (states == 2) return launch_rule<A, Adam<A, false>>(args, stream);
      if (states == 3) return launch_rule<A, Adam<A, true>>(args, stream);
      break;
  }
  throw std::runtime_error("optim_step: there is no such optimizer with " + std::to_string(states) + " states");
}

}  // namespace

int optim_cuda_numbers(OptimCudaKind kind) {
  switch (kind) {
    case OptimCudaKind::sgd: return sizeof(SgdNumbers) / sizeof(double);
    case OptimCudaKind::rmsprop: return sizeof(RmspropNumbers) / sizeof(double);
    default: return sizeof(AdamNumbers) / sizeof(double);
  }
}

void optim_step_cuda(const OptimCudaArgs& args, const CudaStream& stream) {
  if (args.form.param == Dtype::f64) launch_wide<double>(args, stream);
  else launch_wide<float>(args, stream);
}

// Every block of the step adds them all up: no more than fill the SMs.
int optim_square_count(int64_t chunk_count, const CudaDevice& device) {
  const int64_t most = 4 * static_cast<int64_t>(device.sms);
  return static_cast<int>(chunk_count < most ? chunk_count : most);
}

void optim_squares_cuda(const OptimCudaArgs& args, double* squares, int count, const CudaStream& stream) {
  const Launch l{"optim_squares", count, kThreads, kScratchBytes};
  const SquaresArgs all{args, squares};
  if (args.form.grad == Dtype::f64) launch(l, stream, optim_squares_kernel<double>, all);
  else launch(l, stream, optim_squares_kernel<float>, all);
}

}  // namespace fastnorm
