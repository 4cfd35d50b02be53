#include "emulator.h"

#include <ucontext.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <deque>

namespace emulation {
namespace {

constexpr size_t kStackBytes = 128 << 10;
constexpr unsigned char kGuardByte = 0xa5, kUnwritten = 0xff;  // NaN in every floating type

// A fiber, which outlives launches: making one is slow. Switching goes without system calls on x86-64.
struct Context {
  ucontext_t place;
  void* stack_pointer = nullptr;
  std::unique_ptr<unsigned char[]> stack;
};

Context scheduler;
std::vector<std::unique_ptr<Context>> idle;
Thread* running = nullptr;
std::deque<Thread*> ready;
const std::function<void()>* body = nullptr;
LaunchShape launch_shape{};
Barrier grid_barrier{"a grid barrier"};
std::vector<std::unique_ptr<Block>> blocks;
std::vector<std::unique_ptr<Cluster>> clusters;

#if defined(__x86_64__)
extern "C" void fastnorm_emulation_switch(void** from, void* to);
asm(R"(
.text
fastnorm_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
void switch_to(Context& from, Context& to) { fastnorm_emulation_switch(&from.stack_pointer, to.stack_pointer); }
#else
void switch_to(Context& from, Context& to) { swapcontext(&from.place, &to.place); }
#endif

void fiber_main() {
  for (;;) {
    Thread* const me = running;
    (*body)();
    me->done = true;
    switch_to(*static_cast<Context*>(me->context), scheduler);
  }
}

Context* new_context() {
  if (!idle.empty()) {
    Context* c = idle.back().release();
    idle.pop_back();
    return c;
  }
  Context* c = new Context;
  c->stack.reset(new unsigned char[kStackBytes]);
#if defined(__x86_64__)
  auto top = reinterpret_cast<uintptr_t>(c->stack.get() + kStackBytes) / 16 * 16;
  void** words = reinterpret_cast<void**>(top) - 10;  // six registers, the entry, and a frame that is never returned to
  std::memset(words, 0, 10 * sizeof(void*));
  words[6] = reinterpret_cast<void*>(&fiber_main);
  c->stack_pointer = words;
#else
  getcontext(&c->place);
  c->place.uc_stack.ss_sp = c->stack.get(), c->place.uc_stack.ss_size = kStackBytes;
  makecontext(&c->place, &fiber_main, 0);
#endif
  return c;
}

void pause() { switch_to(*static_cast<Context*>(running->context), scheduler); }

template <class Passed>
void wait(Barrier& b, Where where, Passed passed) {
  if (b.arrived > 0 && (b.where.line != where.line || std::strcmp(b.where.file, where.file) != 0)) {
    fail("threads meet in different calls of %s: %s:%d and %s:%d", b.name, b.where.file, b.where.line, where.file,
         where.line);
  }
  b.where = where;
  if (++b.arrived < b.expected) {
    b.waiting.push_back(running);
    return pause();
  }
  b.arrived = 0;
  passed();
  ready.insert(ready.end(), b.waiting.begin(), b.waiting.end());
  b.waiting.clear();
}

void passed_wide(Cluster& c) {
  ++c.epoch;
  for (Block* b : c.blocks) ++b->epoch;
}

void complain_of(const Barrier& b) {
  if (b.arrived > 0) fail("%s at %s:%d is reached by %d of %d threads", b.name, b.where.file, b.where.line, b.arrived,
                          b.expected);
}

void make_block(unsigned index, Cluster& cluster) {
  auto b = std::make_unique<Block>();
  b->index = index, b->rank = static_cast<unsigned>(cluster.blocks.size()), b->cluster = &cluster;
  const unsigned threads = launch_shape.threads;
  b->barrier.expected = static_cast<int>(threads);
  b->warps.resize((threads + 31) / 32);
  for (unsigned w = 0; w < b->warps.size(); ++w) {
    const unsigned left = threads - w * 32;
    b->warps[w].barrier.expected = static_cast<int>(left < 32 ? left : 32);
  }
  b->shared_bytes = static_cast<int>(launch_shape.shared_bytes);
  const size_t bytes = launch_shape.shared_bytes + 2 * Block::kGuard;
  b->memory.reset(new unsigned char[bytes]);
  std::memset(b->memory.get(), kGuardByte, bytes);
  std::memset(b->shared(), kUnwritten, launch_shape.shared_bytes);
  b->cells.resize(launch_shape.shared_bytes);
  cluster.blocks.push_back(b.get());
  blocks.push_back(std::move(b));
}

void check_guards(Block& b) {
  for (int i = 0; i < Block::kGuard; ++i) {
    if (b.memory[static_cast<size_t>(i)] != kGuardByte || b.shared()[b.shared_bytes + i] != kGuardByte) {
      fail("block %u wrote outside its %d bytes of shared memory", b.index, b.shared_bytes);
    }
  }
}

// Blocks [begin, end) at the same time.
void run_together(unsigned begin, unsigned end) {
  for (unsigned i = begin; i < end; ++i) {
    if (i % launch_shape.cluster == 0) clusters.push_back(std::make_unique<Cluster>());
    make_block(i, *clusters.back());
    clusters.back()->barrier.expected = static_cast<int>(launch_shape.cluster * launch_shape.threads);
  }
  grid_barrier.expected = static_cast<int>((end - begin) * launch_shape.threads);
  std::vector<Thread> threads((end - begin) * launch_shape.threads);
  for (size_t i = 0; i < threads.size(); ++i) {
    threads[i].index = static_cast<unsigned>(i) % launch_shape.threads;
    threads[i].block = blocks[i / launch_shape.threads].get();
    threads[i].context = new_context();
    ready.push_back(&threads[i]);
  }
  size_t left = threads.size();
  const char* const order = std::getenv("FASTNORM_EMULATED_ORDER");
  const bool last_first = order != nullptr && std::strcmp(order, "last") == 0;
  while (!ready.empty()) {
    running = last_first ? ready.back() : ready.front();
    if (last_first) ready.pop_back();
    else ready.pop_front();
    switch_to(scheduler, *static_cast<Context*>(running->context));
    if (running->done) {
      ++running->block->ended;
      idle.emplace_back(static_cast<Context*>(running->context));
      --left;
    }
  }
  if (left > 0) {  // all that are left wait for somebody who will not come
    running = nullptr;
    for (const auto& b : blocks) {
      complain_of(b->barrier);
      for (const Warp& w : b->warps) complain_of(w.barrier);
    }
    for (const auto& c : clusters) complain_of(c->barrier);
    complain_of(grid_barrier);
  }
  running = nullptr;
  for (const auto& b : blocks) check_guards(*b);
  blocks.clear(), clusters.clear();
}

}  // namespace

Thread& self() {
  if (running == nullptr) fail("device code is called from the host");
  return *running;
}

void fail(const char* format, ...) {
  std::fprintf(stderr, "emulation: ");
  std::va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  if (running != nullptr) std::fprintf(stderr, " [block %u, thread %u]", running->block->index, running->index);
  std::fprintf(stderr, "\n");
  std::abort();
}

const LaunchShape& current_launch() { return launch_shape; }

void run(const LaunchShape& shape, const std::function<void()>& kernel) {
  launch_shape = shape, body = &kernel;
  const unsigned together = shape.cooperative ? shape.blocks : shape.cluster;
  for (unsigned begin = 0; begin < shape.blocks; begin += together) run_together(begin, begin + together);
}

void sync_block(Where where) {
  Block& b = *self().block;
  wait(b.barrier, where, [&] { ++b.epoch; });
}

void sync_cluster() {
  Cluster& c = *self().block->cluster;
  wait(c.barrier, {"the cluster", 0}, [&] { passed_wide(c); });
}

void sync_grid() {
  if (!launch_shape.cooperative) fail("a grid barrier in a launch that is not cooperative");
  self();
  wait(grid_barrier, {"the grid", 0}, [] {
    for (const auto& c : clusters) passed_wide(*c);
  });
}

const uint64_t* exchange(Where where, unsigned mask, uint64_t value) {
  Thread& t = self();
  if (mask != 0xffffffffu) {
    fail("%s:%d: the emulation knows shuffles and votes of whole warps only", where.file, where.line);
  }
  Warp& w = t.block->warps[t.index / 32];
  uint64_t* const slots = w.slot[t.parity];
  t.parity ^= 1;
  slots[t.index % 32] = value;
  wait(w.barrier, where, [] {});
  return slots;
}

}  // namespace emulation
