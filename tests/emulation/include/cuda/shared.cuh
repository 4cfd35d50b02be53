// In place of csrc/cuda/shared.cuh: the same arrays, every access checked.
#pragma once

#include <cooperative_groups.h>

#include <type_traits>

namespace fastnorm {

template <class T>
class Shared {
 public:
  Shared(emulation::Block* block, int byte, int count) : block_(block), byte_(byte), count_(count) {}

  T read(int i) const {
    emulation::check_read(*block_, inside(i, "reads"), sizeof(T));
    T value;
    std::memcpy(&value, block_->shared() + inside(i, "reads"), sizeof value);
    return value;
  }
  void write(int i, T value) const {
    emulation::check_write(*block_, inside(i, "writes"), sizeof(T));
    std::memcpy(block_->shared() + inside(i, "writes"), &value, sizeof value);
  }
  void add(int i, T value) const {
    static_assert(std::is_integral_v<T>, "the sum of floating-point numbers would depend on who comes first");
    emulation::check_add(*block_, inside(i, "adds to"), sizeof(T));
    T sum;
    std::memcpy(&sum, block_->shared() + inside(i, "adds to"), sizeof sum);
    sum += value;
    std::memcpy(block_->shared() + inside(i, "adds to"), &sum, sizeof sum);
  }
  Shared of_block(int rank) const {
    const auto& blocks = block_->cluster->blocks;
    if (rank < 0 || static_cast<size_t>(rank) >= blocks.size()) emulation::fail("there is no block %d", rank);
    return Shared(blocks[static_cast<size_t>(rank)], byte_, count_);
  }

 private:
  int inside(int i, const char* what) const {
    if (i < 0 || i >= count_) emulation::fail("%s element %d of a shared array of %d", what, i, count_);
    return byte_ + i * static_cast<int>(sizeof(T));
  }

  emulation::Block* block_;
  int byte_, count_;
};

class SharedMemory {
 public:
  static constexpr int kAlignment = 16;

  template <class T>
  static constexpr int bytes_of(int count) {
    return (count * static_cast<int>(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
  }
  template <class T>
  Shared<T> array(int count) {
    emulation::Block& block = *emulation::self().block;
    const int byte = used_;
    used_ += bytes_of<T>(count);
    if (used_ > block.shared_bytes) {
      emulation::fail("asks for %d bytes of shared memory where the launch gave %d", used_, block.shared_bytes);
    }
    return Shared<T>(&block, byte, count);
  }

 private:
  int used_ = 0;
};

inline void cluster_barrier() { cooperative_groups::this_cluster().sync(); }
inline void grid_barrier() { cooperative_groups::this_grid().sync(); }

}  // namespace fastnorm
