// The seam of the optimizers: a table of parameters, cut into chunks, and kernels that take a range of chunks.
#pragma once

#include <vector>

#include "op/tensor.h"

namespace fastnorm {

// Where the elements of a tensor lie that is not laid out like its parameter, in the parameter's storage order.
struct OptimLayout {
  std::vector<int64_t> sizes, strides;  // slowest dim first
};

// One tensor of a parameter; without a layout its elements are dense, in the parameter's storage order.
struct OptimStream {
  const void* in = nullptr;
  void* out = nullptr;
  const OptimLayout* layout = nullptr;
  Dtype dtype = Dtype::f32;
};

constexpr int kMostStates = 3;

struct OptimRow {
  OptimStream param, grad, state[kMostStates];
  OptimStream rounded;  // with master weights: `param` is the master, and this the parameter, which is only written
  int states = 0;         // how many there are
  bool centered = false;  // RMSprop: the last state is grad_avg
  int64_t numel = 0;
  int64_t set = 0;        // which numbers
  uint64_t key = 0;       // of the random bits
  bool stochastic = false;  // the 16-bit parameter is rounded at random
  bool wide = false;        // fp64 arithmetic
};

// Elements [begin, end) of a row. Cut by the table alone, so that nothing depends on the number of threads.
struct OptimChunk {
  int64_t row, begin, end;
};

constexpr int64_t kOptimChunk = 16384;  // elements

struct OptimTable {
  const OptimRow* rows;
  const OptimChunk* chunks;
  const void* numbers;  // SgdNumbers, RmspropNumbers or AdamNumbers, one for each set
};

using OptimKernel = void (*)(const OptimTable&, int64_t chunk0, int64_t chunk1);
// The sum of the squared gradients of each chunk.
using OptimNormKernel = void (*)(const OptimTable&, double* squares, int64_t chunk0, int64_t chunk1);

// Adam's derivative: old parameter, gradient and states, upstream gradients (null: zero), what is asked for (or null).
struct AdamBwdArgs {
  const void* in[5];
  const void* upstream[5];  // [1], of the gradient, is none
  void* out[5];
  const void* numbers;  // AdamNumbers
  double* sums;         // kAdamSums for each chunk
  int64_t numel;
  bool wide, amsgrad;
};
using AdamBwdKernel = void (*)(const AdamBwdArgs&, int64_t chunk0, int64_t chunk1);

struct OptimKernels {
  OptimKernel sgd, rmsprop, adam;
  OptimNormKernel norm;
  AdamBwdKernel adam_bwd;
};

// Of the same instruction set as cpu_kernels().
const OptimKernels& optim_kernels();

}  // namespace fastnorm
