// What a checkpoint holds, and that any layout reads it.
#include "checkpoint/checkpoint.hpp"

#include <gtest/gtest.h>

#include <cstring>

#include "base/hdf5.hpp"
#include "checkpoint_fixture.hpp"

namespace flanmoe {
namespace {

using test::clear_state;
using test::degrees_of;
using test::error_message;
using test::first_unmarked;
using test::mark_state;
using test::Rig;
using test::rig_deck;
using test::SharedFolder;
namespace fs = std::filesystem;

CheckpointInfo some_info(std::int64_t step = 12) {
  return {step, 3'000'000'000'123, "[run]\nsteps = 100\n; \xc3\xa9\n", "f00d"};
}

TEST(Checkpoint, EveryLayoutReadsWhatEveryLayoutWrote) {
  const Communicator world = Communicator::world();
  for (const char* name : {"adafactor", "adamw"}) {
    for (const int degree : degrees_of(world.size())) {
      const SharedFolder run(world);
      std::string folder;
      {
        Rig writer(world, degree, rig_deck(name));
        mark_state(writer);
        folder = write_checkpoint(run.path(), some_info(), writer.store, writer.optimizer, world, 2);
      }
      // The first `ranks` ranks read it together, and the others too, each group with every degree it allows.
      for (int ranks = 1; ranks <= world.size(); ++ranks) {
        const Communicator group = world.split(world.rank() < ranks ? 0 : 1, world.rank(), "readers");
        for (const int read_degree : degrees_of(group.size())) {
          Rig reader(group, read_degree, rig_deck(name));
          clear_state(reader);
          const CheckpointInfo info = read_checkpoint(folder, reader.store, reader.optimizer, group, false);

          EXPECT_EQ(first_unmarked(reader), "") << name << ": written with degree " << degree << " on " << world.size()
                                                << ", read with " << read_degree << " on " << group.size();
          EXPECT_EQ(info.step, 12);
        }
      }
    }
  }
}

TEST(Checkpoint, KeepsItsHeader) {
  const Communicator world = Communicator::world();
  const SharedFolder run(world);
  Rig rig(world, 1, rig_deck("adamw"));
  CheckpointInfo info = some_info(123456789);
  info.deck += std::string(200'000, 'x');
  info.tokenizer_fingerprint = "";
  const std::string folder = write_checkpoint(run.path(), info, rig.store, rig.optimizer, world, 2);

  EXPECT_EQ(folder, run.path() + "/checkpoints/step-123456789");
  for (const CheckpointInfo& found :
       {read_checkpoint_info(folder), read_checkpoint(folder, rig.store, rig.optimizer, world, false)}) {
    EXPECT_EQ(found.step, info.step);
    EXPECT_EQ(found.tokens_seen, info.tokens_seen);
    EXPECT_EQ(found.deck, info.deck);
    EXPECT_EQ(found.tokenizer_fingerprint, "");
  }
}

TEST(Checkpoint, HoldsGlobalTensorsByName) {
  const Communicator world = Communicator::world();
  const SharedFolder run(world);
  Rig rig(world, world.size(), rig_deck("adafactor"));
  const std::string folder = write_checkpoint(run.path(), some_info(), rig.store, rig.optimizer, world, 2);
  const auto shape_of = [&](const std::string& path) {
    const H5File file(H5Fopen((folder + "/checkpoint.h5").c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), "open");
    const H5Dataset dataset(H5Dopen2(file.get(), path.c_str(), H5P_DEFAULT), path);
    const H5Space space(H5Dget_space(dataset.get()), path);
    std::vector<hsize_t> shape(std::size_t(H5Sget_simple_extent_ndims(space.get())));
    H5Sget_simple_extent_dims(space.get(), shape.data(), nullptr);
    return shape;
  };
  using Shape = std::vector<hsize_t>;

  EXPECT_EQ(shape_of("weights/embedding"), (Shape{30, 10}));
  EXPECT_EQ(shape_of("weights/encoder/layer_00/norm"), (Shape{10}));
  EXPECT_EQ(shape_of("weights/encoder/layer_00/expert_up"), (Shape{12, 8, 9}));
  EXPECT_EQ(shape_of("optimizer/encoder/layer_00/expert_up/row"), (Shape{12, 8}));
  EXPECT_EQ(shape_of("optimizer/encoder/layer_00/expert_up/col"), (Shape{12, 9}));
  EXPECT_EQ(shape_of("optimizer/logits/row"), (Shape{24}));
  EXPECT_EQ(shape_of("optimizer/encoder/layer_00/norm/v"), (Shape{10}));
  EXPECT_EQ(shape_of("checksums/weights/encoder/layer_00/expert_up"), (Shape{12}));
}

TEST(Checkpoint, GoesOnBitForBitInADoubleRun) {
  const Communicator world = Communicator::world();
  const SharedFolder run(world);
  Rig writer(world, 1, rig_deck("adamw"), DType::f64), reader(world, world.size(), rig_deck("adamw"), DType::f64);
  writer.optimizer.visit_state([&](const StateTensor& state) {
    const double expert = double(writer.store.first_expert(state.parameter) + state.expert);
    for (double& x : state.tensor.flat<double>()) x = 1.0 / (3.0 + expert + state.parameter);
  });
  const std::string folder = write_checkpoint(run.path(), some_info(), writer.store, writer.optimizer, world, 2);
  read_checkpoint(folder, reader.store, reader.optimizer, world, false);

  reader.optimizer.visit_state([&](const StateTensor& state) {
    const double expert = double(reader.store.first_expert(state.parameter) + state.expert);
    for (const double x : state.tensor.flat<double>()) ASSERT_EQ(x, 1.0 / (3.0 + expert + state.parameter));
  });
  Rig single(world, 1, rig_deck("adamw"));
  const std::string text =
      error_message([&] { read_checkpoint(folder, single.store, single.optimizer, world, false); });
  EXPECT_NE(text.find("another type"), std::string::npos) << text;
}

TEST(Checkpoint, WeightsAloneLeaveTheMoments) {
  const Communicator world = Communicator::world();
  const SharedFolder run(world);
  Rig rig(world, 1, rig_deck("adafactor"));
  mark_state(rig);
  const std::string folder = write_checkpoint(run.path(), some_info(), rig.store, rig.optimizer, world, 2);
  clear_state(rig);
  read_checkpoint(folder, rig.store, rig.optimizer, world, true);

  EXPECT_EQ(first_unmarked(rig, /*masters_only=*/true), "");
}

TEST(Checkpoint, WorkingWeightsAreThoseThatTheOptimizerWouldPublish) {
  const Communicator world = Communicator::world();
  for (const DType compute : {DType::f32, DType::bf16}) {
    for (const int degree : degrees_of(world.size())) {
      const SharedFolder run(world);
      Rig writer(world, 1, rig_deck("adamw"), compute), published(world, degree, rig_deck("adamw"), compute),
          read(world, degree, rig_deck("adafactor"), compute);
      mark_state(writer);
      const std::string folder = write_checkpoint(run.path(), some_info(), writer.store, writer.optimizer, world, 2);
      read_checkpoint(folder, published.store, published.optimizer, world, true);
      published.optimizer.publish_weights(published.context, 0);
      const CheckpointInfo info = read_weights(folder, read.store, read.context, read.kernels, world);

      EXPECT_EQ(info.tokens_seen, some_info().tokens_seen);
      for (int p = 0; p < read.parameters(); ++p) {
        const Tensor a = published.store.weight(p), b = read.store.weight(p);
        EXPECT_EQ(std::memcmp(a.data, b.data, a.bytes()), 0) << read.spec(p).name << ", degree " << degree;
        EXPECT_NE(*static_cast<const char*>(b.data), 0);
      }
    }
  }
}

TEST(Checkpoint, AnotherOptimizersStateIsRefusedWithAWayOut) {
  const Communicator world = Communicator::world();
  const SharedFolder run(world);
  Rig factored(world, 1, rig_deck("adafactor")), adamw(world, 1, rig_deck("adamw"));
  OptimizerDeck deck = rig_deck("adafactor");
  deck.factor_threshold = 1000;
  std::vector<ParameterSpec> specs = test::rig_parameters();
  specs.back().block_rows = 0;  // logits, which are not factored now
  Rig full(world, 1, deck, DType::f32, "reference", specs);
  const std::string a = write_checkpoint(run.path(), some_info(1), factored.store, factored.optimizer, world, 9);
  const std::string b = write_checkpoint(run.path(), some_info(2), adamw.store, adamw.optimizer, world, 9);
  const auto refusal = [&](const std::string& folder, Rig& rig) {
    return error_message([&] { read_checkpoint(folder, rig.store, rig.optimizer, world, false); });
  };

  for (const std::string& text : {refusal(a, adamw), refusal(b, factored), refusal(b, full), refusal(a, full)}) {
    EXPECT_NE(text.find("optimizer.name"), std::string::npos) << text;
    EXPECT_NE(text.find("run.init_from"), std::string::npos) << text;
  }
  EXPECT_NE(refusal(a, adamw).find("needs [m, v]"), std::string::npos) << refusal(a, adamw);
  read_checkpoint(a, adamw.store, adamw.optimizer, world, true);
}

TEST(Checkpoint, AnotherModelIsRefusedByTensorName) {
  const Communicator world = Communicator::world();
  const SharedFolder run(world);
  Rig writer(world, 1, rig_deck("adafactor"));
  const std::string folder = write_checkpoint(run.path(), some_info(), writer.store, writer.optimizer, world, 2);
  std::vector<ParameterSpec> wider = test::rig_parameters(), more = wider, fewer = wider, experts = wider;
  wider[0].cols = 11;
  more.push_back({"decoder/norm", 1, 1, 10, Placement::dense, InitKind::ones, 0.0, true});
  fewer.erase(fewer.begin() + 3);
  experts[4].experts = 24;
  const auto refusals = [&](const std::vector<ParameterSpec>& specs) {
    Rig rig(world, 1, rig_deck("adafactor"), DType::f32, "reference", specs);
    return error_message([&] { read_checkpoint(folder, rig.store, rig.optimizer, world, true); }) + "\n" +
           error_message([&] { read_weights(folder, rig.store, rig.context, rig.kernels, world); });
  };
  const auto expect_twice = [&](const std::string& text, const std::string& part) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
    EXPECT_NE(text.find(part, text.find('\n')), std::string::npos) << text;
  };

  expect_twice(refusals(wider),
               folder + "/checkpoint.h5: tensor weights/embedding has shape [30, 10], this model needs [30, 11]");
  expect_twice(refusals(more), folder + "/checkpoint.h5: tensor weights/decoder/norm is missing");
  expect_twice(refusals(experts),
               "tensor weights/encoder/layer_00/expert_up has shape [12, 8, 9], this model needs [24, 8, 9]");
  expect_twice(refusals(fewer), "1 tensors that this model does not have, the first is weights/encoder/layer_00/query");
}

}  // namespace
}  // namespace flanmoe
