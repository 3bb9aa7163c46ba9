// A model of transformers, imported, trained by the program, and exported again.
#include "exchange/exchange.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "base/hdf5.hpp"
#include "exchange_fixture.hpp"
#include "regression/program.hpp"

namespace flanmoe::regression {
namespace {

using flanmoe::testing::bytes_of;
using flanmoe::testing::fixture;

class Exchanged : public ::testing::TestWithParam<const char*> {
 protected:
  static void SetUpTestSuite() { silence_hdf5(); }
  Workplace workplace_;
};

// With a learning rate too small to change any number, what is exported after training is what was imported.
TEST_P(Exchanged, TrainsFromTheImportedWeightsAndNoOthers) {
  const std::string imported = workplace_.path("imported"), trained = workplace_.path("trained");
  import_model(open_hf(fixture(GetParam())), imported, {256, ""});  // the toy shards have 256 pieces
  const Ended ended =
      run(2, {imported + "/deck.ini", "--run.init_from=" + imported, "--run.dir=" + trained, "--run.stage=finetune",
              "--run.steps=2", "--batch.rows=4", "--batch.input_length=24", "--batch.target_length=12",
              "--data.train=" + write_pairs(workplace_), "--optimizer.name=adamw", "--optimizer.schedule=constant",
              "--optimizer.warmup_steps=0", "--optimizer.learning_rate=1e-30", "--model.dropout=0.1"});
  ASSERT_EQ(ended.exit_code, 0) << ended.output;
  const double loss = summary_of(trained)["first_loss"];
  EXPECT_GT(loss, 1.0);
  EXPECT_LT(loss, 20.0);

  export_hf(imported, workplace_.path("before"), {});
  export_hf(trained, workplace_.path("after"), {});
  EXPECT_EQ(bytes_of(workplace_.path("after/model.safetensors")),
            bytes_of(workplace_.path("before/model.safetensors")));
}

INSTANTIATE_TEST_SUITE_P(Fixtures, Exchanged, ::testing::Values("t5_1_1", "switch"));

}  // namespace
}  // namespace flanmoe::regression
