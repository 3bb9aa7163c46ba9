// After the first steps a training step takes no memory from the heap: everything comes from arenas sized before.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <new>

#include "model_fixture.hpp"
#include "optimizer/optimizer.hpp"

namespace {
thread_local bool counting = false;
thread_local std::int64_t allocations = 0;

/// Counts an allocation of the calling thread when flanmoe's own code asked for it: libraries (oneDNN's primitives keep
/// small tables per call) are not ours to forbid.
void count(void* caller) {
  if (!counting) return;
  counting = false;
  Dl_info asked{};
  Dl_info self{};
  if (dladdr(caller, &asked) != 0 && dladdr(reinterpret_cast<void*>(&count), &self) != 0) {
    allocations += asked.dli_fbase == self.dli_fbase ? 1 : 0;
  }
  counting = true;
}
}  // namespace

__attribute__((noinline)) void* operator new(std::size_t bytes) {
  count(__builtin_return_address(0));
  if (void* memory = std::malloc(bytes == 0 ? 1 : bytes)) return memory;
  throw std::bad_alloc();
}
__attribute__((noinline)) void* operator new(std::size_t bytes, std::align_val_t alignment) {
  count(__builtin_return_address(0));
  const auto align = static_cast<std::size_t>(alignment);
  if (void* memory = std::aligned_alloc(align, (bytes + align - 1) / align * align)) return memory;
  throw std::bad_alloc();
}
__attribute__((noinline)) void operator delete(void* memory) noexcept { std::free(memory); }
__attribute__((noinline)) void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
__attribute__((noinline)) void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
__attribute__((noinline)) void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}

namespace flanmoe {
namespace {

using testing::TestModel;

void expect_no_allocation(const Communicator& world, Deck deck) {
  deck.moe.top_k = 2;
  deck.model.dropout = 0.1;
  deck.moe.expert_dropout = 0.1;
  deck.moe.router = "expert_choice";  // in the encoder; tokens choose in the decoder
  deck.moe.jitter = 0.1;
  deck.moe.second_policy = "random";
  deck.moe.shared_experts = 1;
  deck.moe.extra_feed_forward = true;
  deck.moe.bias_rate = 0.001;
  deck.moe.dispatch_chunks = 2;
  deck.model.multiplicative_bias = true;
  const int degree = deck.moe.experts % world.size() == 0 ? world.size() : 1;
  for (const DType compute : {DType::f32, DType::bf16}) {
    TestModel test(deck, world, degree, "cpu", compute, testing::limits_of(deck, 4), /*training=*/true, kAllPasses);
    Optimizer optimizer(deck.optimizer, test.store, test.communicators, test.kernels);
    Arena state("optimizer");
    Arena scratch("optimizer scratch");
    optimizer.lay(state, scratch);
    state.commit();
    scratch.rewind();
    scratch.commit();
    state.rewind();
    optimizer.lay(state, scratch);
    KernelContext context{&scratch, nullptr};
    optimizer.initialize(context, 1);
    const PackedBatch whole = testing::random_batch(deck, 4 * world.size(), 3);
    const PackedBatch batch = testing::take_rows(whole, 4 * world.rank(), 4);
    StepStatistics statistics;
    for (std::int64_t step = 0; step < 4; ++step) {
      statistics.reset();
      allocations = 0;
      counting = true;
      test.model->forward_backward(test.context, batch, statistics);
      const std::int64_t after_model = allocations;
      optimizer.step(context, step, 1e-3);
      counting = false;
      if (step < 2) continue;  // vectors and primitives that are kept have reached their size
      EXPECT_EQ(after_model, 0) << "forward and backward, step " << step;
      EXPECT_EQ(allocations - after_model, 0) << "optimizer, step " << step;
    }
  }
}

TEST(SteadyState, AStepAllocatesNothing) {
  const Communicator world = Communicator::world();
  Deck split = testing::tiny_deck(true);
  split.model.hidden = 48;
  split.optimizer.factor_threshold = 4;
  split.optimizer.split_above = 100;
  for (const Deck& deck : {testing::tiny_deck(true), testing::tiny_palm(true, "prefix"), split}) {
    expect_no_allocation(world, deck);
  }
}

}  // namespace
}  // namespace flanmoe
