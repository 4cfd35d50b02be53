// Prints the launch plans of batch_norm, one a line, for lines of
// SMs, shared bytes, L2 bytes, clusters, N, C, S, rows, bytes of an element, tensors, alignment.
#include <iostream>

#include "op/batch_norm_cuda.h"

int main() {
  using namespace fastnorm;
  CudaDevice d;
  BatchNormShape s;
  bool rows = false;
  int element = 0, tensors = 0;
  int64_t alignment = 0;
  while (std::cin >> d.sms >> d.shared_bytes >> d.l2_bytes >> d.clusters >> s.N >> s.C >> s.S >> rows >> element >>
         tensors >> alignment) {
    const Dtype dtype = element == 8 ? Dtype::f64 : element == 4 ? Dtype::f32 : Dtype::bf16;
    const BatchNormPlan p = batch_norm_plan(d, s, rows, dtype, tensors, alignment);
    const char* const kinds[] = {"block", "cluster", "grid"};
    std::cout << kinds[static_cast<int>(p.kind)] << ' ' << p.lanes << ' ' << p.columns << ' ' << p.threads << ' '
              << p.team << ' ' << p.teams << ' ' << p.held << ' ' << p.shared_bytes << ' ' << p.groups << ' '
              << p.vectors << ' ' << p.rounds() << std::endl;
  }
}
