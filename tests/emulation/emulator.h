// Runs CUDA kernels on the CPU, one fiber per thread, and fails loudly where a GPU would go quietly wrong.
//
// A launch without clusters runs block by block, one with clusters cluster by cluster, a cooperative one all at once.
// A thread runs until it waits; then the next one does. docs/gpu.md says what this shows and what it cannot.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

namespace emulation {

struct Thread;
struct Where {  // in the source
  const char* file;
  int line;
};

struct Barrier {
  explicit Barrier(const char* name_) : name(name_) {}
  const char* name;
  int expected = 0, arrived = 0;
  Where where{};
  std::vector<Thread*> waiting;
};

struct Cluster {
  Barrier barrier{"a cluster barrier"};
  std::vector<struct Block*> blocks;
  unsigned epoch = 0;  // barriers of the cluster or the grid passed so far
};

// What was last done to a byte of shared memory, and when.
struct Cell {
  const Thread *writer = nullptr, *reader = nullptr, *adder = nullptr;
  bool several_readers = false, several_adders = false;
  unsigned written = 0, written_wide = 0, read = 0, read_wide = 0, added = 0;
};

struct Warp {
  Barrier barrier{"a warp shuffle or vote"};
  uint64_t slot[2][32];
};

struct Block {
  unsigned index = 0, rank = 0;  // in the grid, in the cluster
  Cluster* cluster = nullptr;
  Barrier barrier{"__syncthreads"};
  unsigned epoch = 0;  // barriers of any kind passed so far
  unsigned ended = 0;  // threads
  std::vector<Warp> warps;
  std::unique_ptr<unsigned char[]> memory;  // between two rows of guard bytes
  std::vector<Cell> cells;                  // one for each byte
  int shared_bytes = 0;

  unsigned char* shared() { return memory.get() + kGuard; }
  static constexpr int kGuard = 64;
};

struct Thread {
  unsigned index = 0;
  Block* block = nullptr;
  int parity = 0;  // of the warp's slots
  bool done = false;
  void* context = nullptr;
};

struct LaunchShape {
  unsigned blocks, threads, shared_bytes, cluster;
  bool cooperative;
};

Thread& self();
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
void run(const LaunchShape& shape, const std::function<void()>& kernel);
const LaunchShape& current_launch();

void sync_block(Where where);
void sync_cluster();
void sync_grid();
// Every lane brings a value; the slots of all lanes, until the next call.
const uint64_t* exchange(Where where, unsigned mask, uint64_t value);

void check_read(Block& owner, int byte, int bytes);
void check_write(Block& owner, int byte, int bytes);
void check_add(Block& owner, int byte, int bytes);  // in the thread's own block

template <class T>
T shuffle(Where where, unsigned mask, T value, unsigned lane) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "");
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof value);
  const uint64_t* slots = exchange(where, mask, word);
  std::memcpy(&value, &slots[lane % 32], sizeof value);
  return value;
}

}  // namespace emulation
