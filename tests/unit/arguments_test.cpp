// The command line.
#include "stage/arguments.hpp"

#include <gtest/gtest.h>

#include <cstdlib>

#include "base/error.hpp"

namespace flanmoe {
namespace {

Arguments parse(std::vector<const char*> words) {
  words.insert(words.begin(), "flanmoe");
  return parse_arguments(int(words.size()), words.data());
}

TEST(Arguments, DeckAndOverridesInAnyOrder) {
  const Arguments arguments = parse({"--run.steps=3", "a.ini", "--run.dir=x"});

  EXPECT_EQ(arguments.action, Action::run);
  EXPECT_EQ(arguments.deck, "a.ini");
  EXPECT_EQ(arguments.overrides, (std::vector<std::string>{"--run.steps=3", "--run.dir=x"}));
}

TEST(Arguments, FlagsChooseTheAction) {
  EXPECT_EQ(parse({"a.ini", "--check"}).action, Action::check);
  EXPECT_EQ(parse({"--print", "a.ini"}).action, Action::print);
  EXPECT_EQ(parse({"--version"}).action, Action::version);
  EXPECT_EQ(parse({"--help"}).help_key, "");
  EXPECT_EQ(parse({"--help", "run.steps"}).help_key, "run.steps");
}

TEST(Arguments, CommandsTakeAFileOrAFolder) {
  EXPECT_EQ(parse({"calibrate"}).action, Action::calibrate);
  EXPECT_EQ(parse({"calibrate", "m.json"}).file, "m.json");
  EXPECT_EQ(parse({"watch", "runs/a"}).action, Action::watch);
  EXPECT_EQ(parse({"watch", "runs/a"}).file, "runs/a");
  EXPECT_THROW(parse({"watch"}), UsageError);
  EXPECT_THROW(parse({"watch", "a", "b"}), UsageError);
  EXPECT_THROW(parse({"calibrate", "a", "b"}), UsageError);
  EXPECT_THROW(parse({"calibrate", "--run.steps=3"}), UsageError);
}

TEST(Arguments, RanksAreNeededToRunAndToCalibrate) {
  EXPECT_TRUE(needs_ranks(parse({"calibrate"})));
  EXPECT_FALSE(needs_ranks(parse({"--version"})));
  const std::string deck = std::string(FLANMOE_SOURCE_DIR) + "/input/smoke.ini";
  EXPECT_TRUE(needs_ranks(parse({deck.c_str()})));
  EXPECT_FALSE(needs_ranks(parse({deck.c_str(), "--run.stage=plan"})));
  EXPECT_TRUE(needs_ranks(parse({"missing.ini"})));  // refused together
}

TEST(Arguments, WhatMakesNoSenseIsRefused) {
  EXPECT_THROW(parse({}), UsageError);
  EXPECT_THROW(parse({"--check"}), UsageError);
  EXPECT_THROW(parse({"a.ini", "b.ini"}), UsageError);
  EXPECT_THROW(parse({"a.ini", "--check", "--print"}), UsageError);
}

TEST(Arguments, LauncherIsFoundInTheEnvironment) {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "PMI_SIZE", "PMI_RANK",
                           "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"}) {
    unsetenv(name);
  }
  EXPECT_EQ(launch_of_environment().size, 0);

  setenv("PMI_SIZE", "4", 1);
  EXPECT_EQ(launch_of_environment().size, 0);
  setenv("PMI_RANK", "3", 1);
  EXPECT_EQ(launch_of_environment().size, 4);
  EXPECT_EQ(launch_of_environment().rank, 3);
}

TEST(Arguments, VersionNamesTheLibraries) {
  const std::string text = answer(parse({"--version"}));

  for (const char* part : {"flanmoe ", "compiler ", "MPI ", "HDF5 ", "oneDNN ", "CUDA "}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << " not in:\n" << text;
  }
}

}  // namespace
}  // namespace flanmoe
