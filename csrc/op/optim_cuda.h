// The seam of the optimizers on a GPU: tables in device memory, as fastnorm/ops/optim_table.py fills them.
#pragma once

#include "op/cuda.h"
#include "op/tensor.h"

namespace fastnorm {

enum class OptimCudaKind : int64_t { sgd, rmsprop, adam };  // as fastnorm/ops/optim.py counts them

// One parameter: addresses, all dense in one order. With master weights `param` is the master, and `rounded` the
// parameter, which is only written; 0 otherwise.
struct OptimCudaRow {
  int64_t param, grad, state[3], rounded, numel, set;
};
// `OptimCudaForm::chunk` elements of a row from `begin` on, or what is left of it.
struct OptimCudaChunk {
  int64_t row, begin;
};

// What all rows of one launch have in common. Where the parameter is fp64 so are all others, else none is.
struct OptimCudaForm {
  OptimCudaKind kind;
  int states;
  bool centered;
  Dtype param, grad, state, rounded;
  bool aligned;  // every address divides by 16
  int64_t chunk;
};

struct OptimCudaArgs {
  const OptimCudaRow* rows;
  const OptimCudaChunk* chunks;
  int64_t chunk_count;
  const double* numbers;      // SgdNumbers, RmspropNumbers or AdamNumbers for each set, as consecutive doubles
  ChannelVector factor;       // multiplies every gradient; absent: 1
  ChannelVector found_inf;    // not 0: nothing is written; absent: 0
  const double* squares;      // partial sums of optim_squares_cuda, or null
  int square_count;
  double max_norm;            // to which the gradients are clipped together, if there are squares
  OptimCudaForm form;
};

// Throws std::runtime_error where the states are none that the kind has, or the launch fails.
void optim_step_cuda(const OptimCudaArgs& args, const CudaStream& stream);
// How many double numbers a set has.
int optim_cuda_numbers(OptimCudaKind kind);

// Into how many partial sums the squares of all gradients are added, by a fixed order for this number of SMs.
int optim_square_count(int64_t chunk_count, const CudaDevice& device);
void optim_squares_cuda(const OptimCudaArgs& args, double* squares, int count, const CudaStream& stream);

}  // namespace fastnorm
