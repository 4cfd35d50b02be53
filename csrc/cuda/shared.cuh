// A block's dynamic shared memory, handed out as arrays. Nothing else in csrc/cuda touches shared memory: on the CPU
// tests/emulation puts a file of this name in front of this one, whose arrays check every access.
#pragma once

#include <cooperative_groups.h>

namespace fastnorm {

template <class T>
class Shared {
 public:
  explicit __device__ __forceinline__ Shared(T* data) : data_(data) {}
  __device__ __forceinline__ T read(int i) const { return data_[i]; }
  __device__ __forceinline__ void write(int i, T value) const { data_[i] = value; }
  // Several threads may add to one number between two barriers; of integers only, whose sum no order changes.
  __device__ __forceinline__ void add(int i, T value) const { atomicAdd(data_ + i, value); }

  // The same array in another block of the cluster. That block must not end before its neighbours have read.
  __device__ __forceinline__ Shared of_block(int rank) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    return Shared(cooperative_groups::this_cluster().map_shared_rank(data_, rank));
#else
    (void)rank;
    return *this;  // without clusters there is no other block
#endif
  }

 private:
  T* data_;
};

// Every block hands out the same arrays in the same order.
class SharedMemory {
 public:
  static constexpr int kAlignment = 16;

  template <class T>
  static constexpr __host__ __device__ int bytes_of(int count) {
    return (count * static_cast<int>(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
  }
  template <class T>
  __device__ __forceinline__ Shared<T> array(int count) {
    extern __shared__ __align__(16) unsigned char fastnorm_shared_memory[];
    T* data = reinterpret_cast<T*>(fastnorm_shared_memory + used_);
    used_ += bytes_of<T>(count);
    return Shared<T>(data);
  }

 private:
  int used_ = 0;
};

__device__ __forceinline__ void cluster_barrier() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cooperative_groups::this_cluster().sync();
#endif
}
__device__ __forceinline__ void grid_barrier() { cooperative_groups::this_grid().sync(); }

}  // namespace fastnorm
