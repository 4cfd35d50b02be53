// Shared memory, byte by byte: who reads what nobody has written, or meets another thread without a barrier in between.
#include "emulator.h"

namespace emulation {
namespace {

// Whether other threads have added to a number since the last barrier: additions may meet, but nothing else with them.
bool others_add(const Thread& t, const Block& owner, const Cell& c) {
  return c.adder != nullptr && c.added == owner.epoch && (c.several_adders || c.adder != &t);
}

bool unordered(const Thread& t, const Block& owner, const Thread* other, unsigned when, unsigned when_wide) {
  if (other == nullptr || other == &t) return false;
  const bool far = &owner != t.block || other->block != &owner;
  return far ? owner.cluster->epoch == when_wide : owner.epoch == when;
}

// what: "writes" or "adds to".
void check_change(const Thread& t, const Block& owner, const Cell& c, int byte, const char* what) {
  if (unordered(t, owner, c.writer, c.written, c.written_wide)) {
    fail("%s byte %d of shared memory, which thread %u wrote, without a barrier in between", what, byte,
         c.writer->index);
  }
  const bool read_by_others = c.several_readers && c.read == owner.epoch && c.read_wide == owner.cluster->epoch;
  if (read_by_others || unordered(t, owner, c.reader, c.read, c.read_wide)) {
    fail("%s byte %d of shared memory, which thread %u reads, without a barrier in between", what, byte,
         c.reader->index);
  }
}

}  // namespace

void check_read(Block& owner, int byte, int bytes) {
  const Thread& t = self();
  if (owner.ended == current_launch().threads) fail("reads shared memory of block %u, which has ended", owner.index);
  for (int i = byte; i < byte + bytes; ++i) {
    Cell& c = owner.cells[static_cast<size_t>(i)];
    if (c.writer == nullptr) fail("reads byte %d of shared memory, which nobody wrote", i);
    if (unordered(t, owner, c.writer, c.written, c.written_wide)) {
      fail("reads byte %d of shared memory, which thread %u of block %u wrote, without a barrier in between", i,
           c.writer->index, c.writer->block->index);
    }
    if (others_add(t, owner, c)) fail("reads byte %d of shared memory, to which others add, without a barrier", i);
    const bool same_time = c.reader != nullptr && c.read == owner.epoch && c.read_wide == owner.cluster->epoch;
    c.several_readers = same_time && (c.several_readers || c.reader != &t);
    c.reader = &t, c.read = owner.epoch, c.read_wide = owner.cluster->epoch;
  }
}

void check_write(Block& owner, int byte, int bytes) {
  const Thread& t = self();
  for (int i = byte; i < byte + bytes; ++i) {
    Cell& c = owner.cells[static_cast<size_t>(i)];
    check_change(t, owner, c, i, "writes");
    if (others_add(t, owner, c)) fail("writes byte %d of shared memory, to which others add, without a barrier", i);
    c.writer = &t, c.written = owner.epoch, c.written_wide = owner.cluster->epoch;
    c.reader = nullptr, c.several_readers = false;
  }
}

void check_add(Block& owner, int byte, int bytes) {
  const Thread& t = self();
  for (int i = byte; i < byte + bytes; ++i) {
    Cell& c = owner.cells[static_cast<size_t>(i)];
    if (c.writer == nullptr) fail("adds to byte %d of shared memory, which nobody wrote", i);
    check_change(t, owner, c, i, "adds to");
    c.several_adders = others_add(t, owner, c);
    c.adder = &t, c.added = owner.epoch;
  }
}

}  // namespace emulation
