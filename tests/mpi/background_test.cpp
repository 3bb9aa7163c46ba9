// Checkpoints that are written while the training goes on.
#include "checkpoint/background.hpp"

#include <gtest/gtest.h>

#include <filesystem>

#include "checkpoint_fixture.hpp"
#include "file_size_limit.hpp"

namespace flanmoe {
namespace {

using test::clear_state;
using test::error_message;
using test::first_unmarked;
using test::mark_state;
using test::Rig;
using test::rig_deck;
using test::SharedFolder;
namespace fs = std::filesystem;

CheckpointInfo at_step(std::int64_t step) { return {step, step * 1000, "[run]\nsteps = 9\n", "abc"}; }

/// A model with its writer, whose every number tells where it belongs.
struct Writing {
  explicit Writing(const std::string& optimizer = "adamw")
      : rig(world, world.size(), rig_deck(optimizer)),
        run(world),
        writer(run.path(), 2, rig.store, rig.optimizer, world) {
    writer.lay(copies);
    copies.commit();
    copies.rewind();
    writer.lay(copies);
    mark_state(rig);
  }
  /// What is wrong with the newest checkpoint; empty when it holds step `step` with every number in its place.
  std::string fault_of_newest(std::int64_t step) {
    const auto newest = newest_checkpoint(run.path());
    world.barrier();
    if (!newest) return "there is none";
    clear_state(rig);
    const CheckpointInfo info = read_checkpoint(*newest, rig.store, rig.optimizer, world, false);
    if (info.step != step || info.tokens_seen != step * 1000) return fmt::format("it is of step {}", info.step);
    return first_unmarked(rig);
  }
  Communicator world = Communicator::world();
  Rig rig;
  SharedFolder run;
  Arena copies{"checkpoint copy"};
  BackgroundWriter writer;
};

TEST(Background, HoldsTheStateOfTheMomentItBegan) {
  for (const char* optimizer : {"adamw", "adafactor"}) {
    Writing writing(optimizer);
    writing.writer.begin(at_step(3));
    clear_state(writing.rig);  // the training goes on
    const auto report = writing.writer.finish();

    ASSERT_TRUE(report.has_value());
    EXPECT_EQ(report->step, 3);
    EXPECT_GT(report->bytes, 1000);
    EXPECT_GT(report->seconds, 0);
    EXPECT_FALSE(writing.writer.under_way());
    EXPECT_EQ(writing.fault_of_newest(3), "") << optimizer;
  }
}

TEST(Background, IsPublishedByTheTrainingAndNotBefore) {
  Writing writing;
  EXPECT_EQ(writing.writer.poll(), std::nullopt);
  writing.writer.begin(at_step(3));
  EXPECT_EQ(newest_checkpoint(writing.run.path()), std::nullopt);
  writing.world.barrier();
  std::optional<SaveReport> report;
  while (!report) report = writing.writer.poll();
  EXPECT_EQ(report->step, 3);
  EXPECT_EQ(writing.fault_of_newest(3), "");
}

TEST(Background, WhatIsGivenUpIsNotPublishedAndIsCleared) {
  Writing writing;
  writing.writer.begin(at_step(3));
  writing.writer.finish();
  {
    Arena copies("second copy");
    BackgroundWriter second(writing.run.path(), 2, writing.rig.store, writing.rig.optimizer, writing.world);
    second.lay(copies);
    copies.commit();
    copies.rewind();
    second.lay(copies);
    second.begin(at_step(4));
  }
  EXPECT_EQ(writing.fault_of_newest(3), "");
  writing.writer.begin(at_step(5));
  writing.writer.finish();
  EXPECT_EQ(writing.fault_of_newest(5), "");
  for (const auto& entry : fs::directory_iterator(writing.run.path() + "/checkpoints")) {
    EXPECT_TRUE(entry.path().filename().string().starts_with("step-")) << entry.path();
  }
}

TEST(Background, AFullDiskOfOneRankIsAnErrorOfAllAndTheOlderOneStays) {
  Writing writing;
  writing.writer.begin(at_step(1));
  writing.writer.finish();
  const auto size = rlim_t(fs::file_size(*newest_checkpoint(writing.run.path()) + "/checkpoint.h5"));
  for (const int full_rank : {writing.world.size() - 1, 0}) {
    std::string text;
    {
      const test::FileSizeLimit limit(writing.world.rank() == full_rank ? size / 8 : RLIM_INFINITY);
      text = error_message([&] {
        writing.writer.begin(at_step(2));
        writing.writer.finish();
      });
      writing.world.barrier();
    }
    EXPECT_NE(text.find("checkpoint of step 2 was not written"), std::string::npos) << text;
    EXPECT_NE(text.find("checkpoint.h5"), std::string::npos) << text;
    EXPECT_FALSE(writing.writer.under_way());
    EXPECT_EQ(writing.fault_of_newest(1), "");
  }
  writing.writer.begin(at_step(2));
  writing.writer.finish();
  EXPECT_EQ(writing.fault_of_newest(2), "");
}

TEST(Background, AnOldOneThatCannotBeRemovedIsNoFailureOfTheNewOne) {
  Writing writing;
  for (const std::int64_t step : {1, 2}) {
    writing.writer.begin(at_step(step));
    writing.writer.finish();
  }
  writing.writer.begin(at_step(3));
  const std::string checkpoints = writing.run.path() + "/checkpoints";
  // In the way of the name that the oldest one gets before it is removed.
  if (writing.world.rank() == 0) fs::create_directories(checkpoints + "/.aside-remove-00000001/in_the_way");
  const auto report = writing.writer.finish();

  ASSERT_TRUE(report.has_value());
  EXPECT_EQ(report->step, 3);
  EXPECT_TRUE(fs::exists(checkpoints + "/step-00000001"));
  EXPECT_EQ(writing.fault_of_newest(3), "");
  writing.writer.begin(at_step(4));  // clears the way
  writing.writer.finish();
  EXPECT_FALSE(fs::exists(checkpoints + "/step-00000001"));
  EXPECT_EQ(writing.fault_of_newest(4), "");
}

TEST(Background, AFolderThatVanishesIsAnErrorOfAll) {
  Writing writing;
  writing.writer.begin(at_step(2));
  writing.world.barrier();
  if (writing.world.rank() == 0) fs::remove_all(writing.run.path() + "/checkpoints");
  writing.world.barrier();
  const std::string text = error_message([&] { writing.writer.finish(); });

  EXPECT_NE(text.find("checkpoint of step 2 was not written"), std::string::npos) << text;
  EXPECT_EQ(newest_checkpoint(writing.run.path()), std::nullopt);
  writing.world.barrier();
}

}  // namespace
}  // namespace flanmoe
