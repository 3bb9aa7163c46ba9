// The run folder: its lock, whole files, and which decks may go on.
#include "train/run_folder.hpp"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "base/error.hpp"
#include "deck/deck.hpp"

namespace flanmoe {
namespace {

class RunFolderTest : public testing::Test {
 protected:
  void SetUp() override { std::filesystem::remove_all(dir_); }
  void TearDown() override { std::filesystem::remove_all(dir_); }
  std::string dir_ = testing::TempDir() + "/flanmoe_run_folder/deep";
};

TEST_F(RunFolderTest, SecondRunIsRefusedAndTheHolderNamed) {
  const RunFolder first(dir_);

  try {
    const RunFolder second(dir_);
    FAIL() << "two runs hold one folder";
  } catch (const UsageError& error) {
    EXPECT_NE(std::string(error.what()).find(fmt::format("process {}", getpid())), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find(dir_), std::string::npos) << error.what();
  }
}

TEST_F(RunFolderTest, LockEndsWithItsHolderHoweverThatEnds) {
  const pid_t child = fork();
  if (child == 0) {
    new RunFolder(dir_);  // never released
    _exit(0);
  }
  waitpid(child, nullptr, 0);

  EXPECT_NO_THROW(RunFolder{dir_});
}

TEST_F(RunFolderTest, FolderThatCannotBeMadeIsAWrongDeck) {
  std::filesystem::create_directories(dir_);
  write_file(dir_ + "/a", "a file, no folder");

  EXPECT_THROW(RunFolder{dir_ + "/a/run"}, UsageError);
}

TEST_F(RunFolderTest, FilesAreReplacedWhole) {
  std::filesystem::create_directories(dir_);

  write_file(dir_ + "/a", "first, and longer\n");
  write_file(dir_ + "/a", "second\n");

  EXPECT_EQ(read_file(dir_ + "/a"), "second\n");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir_), {}), 1);
  EXPECT_EQ(read_file(dir_ + "/missing"), "");
  EXPECT_THROW(write_file(dir_ + "/missing/a", "x"), Error);
}

TEST(TrainingDifferences, LayoutLengthAndReportingAreFree) {
  Deck then, now;
  now.run.steps = 7;
  now.run.dir = "elsewhere";
  now.run.threads = 3;
  now.run.log_every = 1;
  now.run.stop_after_minutes = 5;
  now.run.stop_before_minutes = 5;
  now.run.watchdog_seconds = 1;
  now.parallel.expert = 4;
  now.batch.microbatch_rows = 2;
  now.checkpoint.every = 3;
  now.checkpoint.keep = 9;
  now.checkpoint.final = false;
  now.evaluate.limit = 12;
  now.data.prefetch = 5;

  EXPECT_TRUE(training_differences(print_deck(then), print_deck(now)).empty());
}

TEST(TrainingDifferences, LengthIsNotFreeWhereTheScheduleLooksAtIt) {
  Deck then, now;
  now.run.steps = 7;
  then.optimizer.schedule = now.optimizer.schedule = "cosine";

  EXPECT_EQ(training_differences(print_deck(then), print_deck(now)),
            (std::vector<std::string>{"run.steps: then 100, now 7"}));
}

TEST(TrainingDifferences, WhatChangesTheTrainingIsListedWithBothValues) {
  Deck then, now;
  now.run.seed = 2;
  now.batch.rows = 32;
  now.model.dropout = 0.5;
  now.moe.capacity_factor = 2;
  now.optimizer.learning_rate = 0.5;
  now.data.train = "other.h5";

  const std::vector<std::string> differences = training_differences(print_deck(then), print_deck(now));

  EXPECT_EQ(differences,
            (std::vector<std::string>{"batch.rows: then 16, now 32", "data.train: then empty, now other.h5",
                                      "model.dropout: then 0, now 0.5", "moe.capacity_factor: then 1.25, now 2",
                                      "optimizer.learning_rate: then 1, now 0.5", "run.seed: then 1, now 2"}));
}

TEST(TrainingDifferences, KeyThatOneDeckLacksIsADifference) {
  EXPECT_EQ(training_differences("[model]\nwidth = 8\n", "[model]\n"),
            (std::vector<std::string>{"model.width: then 8, now absent"}));
}

}  // namespace
}  // namespace flanmoe
