// What ranks agree on before a stage starts.
#include "stage/start.hpp"

#include <gtest/gtest.h>
#include <omp.h>

#include <cstdlib>
#include <fstream>

#include "base/error.hpp"
#include "train/resources.hpp"

namespace flanmoe {
namespace {

Arguments arguments_of(const std::string& deck, const std::vector<std::string>& overrides) {
  Arguments arguments;
  arguments.deck = deck;
  arguments.overrides = overrides;
  return arguments;
}

/// A deck file that all ranks see.
class Start : public testing::Test {
 protected:
  void SetUp() override {
    path_ = world_.broadcast(fmt::format("{}/flanmoe_start_{}", testing::TempDir(), getpid()), 0);
    if (world_.rank() == 0) {
      std::ofstream(path_ + ".h5") << "x";
      std::ofstream(path_) << "[data]\ntrain = " << path_ << ".h5\n[batch]\nrows = 12\n";
    }
    world_.barrier();
  }
  void TearDown() override {
    world_.barrier();
    if (world_.rank() != 0) return;
    std::remove(path_.c_str());
    std::remove((path_ + ".h5").c_str());
  }
  std::string error_of(const Arguments& arguments) const {
    try {
      agree_on_deck(arguments, world_);
    } catch (const UsageError& error) {
      return fmt::format("usage: {}", error.what());
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }
  Communicator world_ = Communicator::world();
  std::string path_;
};

TEST_F(Start, EveryRankGetsTheSameDeck) {
  const Deck deck = agree_on_deck(arguments_of(path_, {"--run.seed=5"}), world_);

  EXPECT_EQ(deck.batch.rows, 12);
  EXPECT_EQ(deck.run.seed, 5);
}

TEST_F(Start, WrongDeckIsAUsageErrorOnEveryRank) {
  EXPECT_NE(error_of(arguments_of(path_, {"--run.seed=-5"})).find("usage: "), std::string::npos);
  EXPECT_NE(error_of(arguments_of(path_ + "missing", {})).find("usage: "), std::string::npos);
}

TEST_F(Start, RanksWithDifferentDecksAreFound) {
  const int last = world_.size() - 1;
  const std::string seed = world_.rank() == last && last > 0 ? "--run.seed=2" : "--run.seed=1";

  const std::string error = error_of(arguments_of(path_, {seed}));

  if (last == 0) {
    EXPECT_EQ(error, "");
  } else {
    EXPECT_NE(error.find(fmt::format("rank {} read another deck", last)), std::string::npos) << error;
  }
}

TEST_F(Start, SlurmMustAgreeOnTheNumberOfRanks) {
  unsetenv("SLURM_NTASKS");
  EXPECT_NO_THROW(expect_ranks_of_slurm(3));
  setenv("SLURM_NTASKS", "3", 1);
  EXPECT_NO_THROW(expect_ranks_of_slurm(3));
  EXPECT_THROW(expect_ranks_of_slurm(2), UsageError);
  unsetenv("SLURM_NTASKS");
}

TEST_F(Start, RanksOfAHostShareItsCores) {
  const auto cores = std::int64_t(allowed_cores().size());

  set_threads(0, world_);
  const std::int64_t automatic = omp_get_max_threads();
  set_threads(3, world_);

  // Tests run unbound: all ranks may use all cores of one host.
  EXPECT_EQ(automatic, std::max<std::int64_t>(1, cores / world_.size()));
  EXPECT_EQ(omp_get_max_threads(), 3);
}

}  // namespace
}  // namespace flanmoe
