// Frozen parameters: no gradient, no state, no part in the norm, the same bits for ever; everything else as if nothing
// were frozen.
#include "model/freeze.hpp"

#include <gtest/gtest.h>

#include <cstring>

#include "checkpoint_fixture.hpp"
#include "model_fixture.hpp"
#include "optimizer/optimizer.hpp"

namespace flanmoe {
namespace {

using test::degrees_of;
using test::Rig;
using test::rig_deck;
using testing::limits_of;
using testing::random_batch;
using testing::take_rows;
using testing::TestModel;
using testing::tiny_deck;

constexpr std::array kFreezes = {"gate",       "experts", "moe",          "all_but_moe",        "attention",
                                 "embeddings", "norms",   "feed_forward", "encoder/* embedding"};

int largest_degree(const Communicator& world, std::int64_t experts) {
  int largest = 1;
  for (const int degree : degrees_of(world.size())) {
    if (experts % degree == 0) largest = degree;
  }
  return largest;
}

std::vector<char> bytes_of(const Tensor& t) {
  const auto* data = static_cast<const char*>(t.data);
  return {data, data + t.bytes()};
}

TEST(FrozenModel, TrainedParametersGetTheSameGradientsBitForBit) {
  const Communicator world = Communicator::world();
  for (const auto& [device, compute] :
       {std::pair{"reference", DType::f64}, {"cpu", DType::f32}, {"cpu", DType::bf16}}) {
    Deck deck = tiny_deck(true);
    deck.moe.top_k = 2;
    deck.model.dropout = 0.1;
    deck.model.tied_logits = compute == DType::f32;
    if (compute == DType::f32) {  // with all tensors that a layer can have
      deck.model.multiplicative_bias = deck.moe.extra_feed_forward = true;
      deck.moe.shared_experts = 1;
      deck.moe.bias_rate = 0.1;
    }
    const int degree = largest_degree(world, deck.moe.experts);
    const PackedBatch batch = take_rows(random_batch(deck, 2 * world.size(), 4), 2 * world.rank(), 2);
    TestModel all(deck, world, degree, device, compute, limits_of(deck, 2));
    StepStatistics expected;
    all.model->forward_backward(all.context, batch, expected);
    for (const char* freeze : kFreezes) {
      SCOPED_TRACE(freeze);
      deck.optimizer.freeze = freeze;
      TestModel some(deck, world, degree, device, compute, limits_of(deck, 2));
      StepStatistics statistics;
      some.model->forward_backward(some.context, batch, statistics);
      EXPECT_EQ(statistics.pack(), expected.pack());
      int frozen = 0;
      for (int p = 0; p < int(some.store.specs().size()); ++p) {
        for (std::int64_t e = 0; e < some.store.local_experts(p); ++e) {
          const Tensor gradient = some.store.gradient(p, e);
          frozen += gradient.absent() ? 1 : 0;
          EXPECT_EQ(gradient.absent(), !some.store.trained(p));
          if (gradient.absent()) continue;
          EXPECT_EQ(bytes_of(gradient), bytes_of(all.store.gradient(p, e))) << some.store.specs()[std::size_t(p)].name;
        }
      }
      EXPECT_GT(frozen, 0);
    }
  }
}

TEST(FrozenModel, TakesNoMemoryForGradientsAndMoments) {
  const Communicator world = Communicator::world();
  for (const DType compute : {DType::f32, DType::bf16}) {
    for (const char* freeze : kFreezes) {
      SCOPED_TRACE(freeze);
      Deck deck = tiny_deck(true);
      deck.optimizer.freeze = freeze;
      deck.optimizer.name = "adamw";
      const ProcessGrid grid(world.size(), world.rank(), 1);
      const Communicators communicators = Communicators::make(world, grid);
      ParameterStore store(training_parameters(deck), grid.coordinates(), compute);
      Optimizer optimizer(deck.optimizer, store, communicators, kernels_for("cpu"));
      Arena weights("weights"), gradients("gradients"), state("state"), scratch("scratch");
      store.lay(weights, &gradients);
      optimizer.lay(state, scratch);
      std::int64_t trained = 0, rounded = 0, matrices = 0, own = 0, own_frozen = 0, received = 0;
      for (const ParameterSpec& spec : store.specs()) {
        if (spec.trained) trained += spec.global_size();
        matrices += spec.experts;
      }
      for (const Placement placement : {Placement::dense, Placement::expert}) {
        own += store.owned_sizes(placement)[std::size_t(store.replica_rank(placement))];
        for (std::int64_t bucket = 0; bucket < store.buckets(); ++bucket) {
          const auto& sizes = store.segment_sizes(placement, bucket);
          received = std::max(received, Communicator::reduce_scatter_work(sizes, DType::f32));
        }
        for (const ParameterUnit& unit : store.frozen_units(placement)) {
          const ParameterSpec& spec = store.specs()[std::size_t(unit.parameter)];
          if (unit.owner != store.replica_rank(placement)) continue;
          own_frozen += unit.rows * spec.cols;
          if (compute == DType::bf16 && !spec.full_precision) rounded += unit.rows * spec.cols;
        }
      }
      EXPECT_EQ(world.all_reduce(own, ReduceOp::sum), trained);
      const auto slack = std::size_t(matrices * 4 * 64);  // alignment of every tensor
      EXPECT_LE(gradients.measured(), std::size_t(trained) * 4 + slack);
      // Master, m and v of what is trained, messages of sums, and in bf16 the unrounded values of what is not.
      EXPECT_LE(state.measured(), std::size_t(own) * 12 + std::size_t(rounded + received) * 4 + slack);
      EXPECT_EQ(rounded > 0, compute == DType::bf16 && own_frozen > 0 && std::string(freeze) != "gate" &&
                                 std::string(freeze) != "norms");
    }
  }
}

std::vector<ParameterSpec> rig_parameters_without(const std::set<std::string>& frozen) {
  auto specs = test::rig_parameters();
  for (ParameterSpec& spec : specs) spec.trained = !frozen.contains(spec.name);
  return specs;
}
const std::set<std::string> kSomeFrozen = {"embedding", "encoder/layer_00/norm", "encoder/layer_00/expert_up"};

void fill_gradients(Rig& rig) {
  for (int p = 0; p < rig.parameters(); ++p) {
    for (std::int64_t e = 0; e < rig.store.local_experts(p) && rig.store.trained(p); ++e) {
      for (float& x : rig.store.gradient(p, e).flat<float>()) x = 0.5F + 0.25F * float(p);
    }
  }
}

TEST(FrozenOptimizer, KeepsTheBitsOfWhatIsFrozenAndLeavesItOutOfTheNorm) {
  const Communicator world = Communicator::world();
  for (const DType compute : {DType::f32, DType::bf16}) {
    for (const int degree : degrees_of(world.size())) {
      Rig rig(world, degree, rig_deck("adamw"), compute, "reference", rig_parameters_without(kSomeFrozen));
      rig.optimizer.initialize(rig.context, 3);
      std::vector<std::vector<char>> before;
      for (int p = 0; p < rig.parameters(); ++p) before.push_back(bytes_of(rig.store.weight(p)));
      double squares = 0;
      for (int p = 0; p < rig.parameters(); ++p) {
        // Every rank adds the same gradient; the sum goes over the replicas.
        const double g = (0.5 + 0.25 * p) * double(rig.store.replica_size(rig.spec(p).placement));
        if (rig.store.trained(p)) squares += g * g * double(rig.spec(p).global_size());
      }
      for (std::int64_t step = 0; step < 2; ++step) {
        fill_gradients(rig);
        const auto result = rig.optimizer.step(rig.context, step, 0.1);
        EXPECT_NEAR(result.gradient_norm, std::sqrt(squares), 1e-5 * std::sqrt(squares));
      }
      for (int p = 0; p < rig.parameters(); ++p) {
        EXPECT_EQ(bytes_of(rig.store.weight(p)) == before[std::size_t(p)], !rig.store.trained(p)) << rig.spec(p).name;
      }
    }
  }
}

TEST(FrozenOptimizer, FrozenWeightsReachEveryRankAndNeverDependOnTheLayout) {
  const Communicator world = Communicator::world();
  for (const DType compute : {DType::f32, DType::bf16}) {
    for (const int degree : degrees_of(world.size())) {
      Rig free(world, degree, rig_deck("adamw"), compute);
      Rig frozen(world, degree, rig_deck("adamw"), compute, "reference", rig_parameters_without(kSomeFrozen));
      free.optimizer.initialize(free.context, 3);
      frozen.optimizer.initialize(frozen.context, 3);
      for (int p = 0; p < free.parameters(); ++p) {
        EXPECT_EQ(bytes_of(frozen.store.weight(p)), bytes_of(free.store.weight(p))) << free.spec(p).name;
      }
    }
  }
}

TEST(FrozenCheckpoint, IsCompleteAndUnroundedAndHoldsNoStateOfWhatIsFrozen) {
  const Communicator world = Communicator::world();
  for (const DType compute : {DType::f32, DType::bf16}) {
    for (const int degree : degrees_of(world.size())) {
      const test::SharedFolder run(world);
      const auto specs = rig_parameters_without(kSomeFrozen);
      Rig writer(world, degree, rig_deck("adamw"), compute, "reference", specs);
      test::mark_state(writer);
      const std::string folder = write_checkpoint(run.path(), {1, 2, "", ""}, writer.store, writer.optimizer, world, 1);
      writer.optimizer.visit_state([&](const StateTensor& state) {
        EXPECT_TRUE(writer.store.trained(state.parameter) || std::string(state.kind) == "master");
      });

      Rig same(world, world.size(), rig_deck("adamw"), compute, "reference", specs);
      test::clear_state(same);
      read_checkpoint(folder, same.store, same.optimizer, world, false);
      EXPECT_EQ(test::first_unmarked(same), "");

      // Weights alone go into a run that trains them all; its missing state is named when it is asked for.
      Rig free(world, degree, rig_deck("adamw"), compute);
      test::clear_state(free);
      read_checkpoint(folder, free.store, free.optimizer, world, true);
      EXPECT_EQ(test::first_unmarked(free, /*masters_only=*/true), "");
      const std::string text =
          test::error_message([&] { read_checkpoint(folder, free.store, free.optimizer, world, false); });
      EXPECT_NE(text.find("optimizer.freeze"), std::string::npos) << text;
    }
  }
}

}  // namespace
}  // namespace flanmoe
