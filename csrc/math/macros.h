// What a formula needs to compile for the host and for a GPU alike.
#pragma once

#if defined(__CUDACC__)
#define FASTNORM_INLINE __host__ __device__ __forceinline__
#define FASTNORM_INLINED
#else
// Always inlined: the same formula is compiled once per instruction set, and a shared out-of-line copy of one would
// run on a CPU that lacks the other.
#define FASTNORM_INLINE inline __attribute__((always_inline))
// Behind a lambda's parameters: where one of its calls is not inlined, what it captures lies in memory for all of them.
#define FASTNORM_INLINED __attribute__((always_inline))
#endif
