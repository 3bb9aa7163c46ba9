// Checkpoints that are damaged, cut off, half written or cannot be written.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <functional>
#include <thread>

#include "base/hdf5.hpp"
#include "checkpoint/checkpoint.hpp"
#include "checkpoint/folder.hpp"
#include "checkpoint_fixture.hpp"
#include "file_size_limit.hpp"
#include "job_fixture.hpp"

namespace flanmoe {
namespace {

using test::clear_state;
using test::error_message;
using test::file_bytes;
using test::FileSizeLimit;
using test::first_unmarked;
using test::mark_state;
using test::Rig;
using test::rig_deck;
using test::SharedFolder;
using test::write_bytes;
namespace fs = std::filesystem;

CheckpointInfo at_step(std::int64_t step) { return {step, step * 1000, "[run]\nsteps = 9\n", "abc"}; }

std::vector<std::string> entries_of(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

/// A published checkpoint with marked state, and its file.
struct Written {
  explicit Written(const std::string& optimizer = "adamw") : rig(world, world.size(), rig_deck(optimizer)), run(world) {
    mark_state(rig);
    folder = write_checkpoint(run.path(), at_step(1), rig.store, rig.optimizer, world, 2);
    file = folder + "/checkpoint.h5";
  }
  /// Reads everything back; the error on this rank.
  std::string read() {
    clear_state(rig);
    return error_message([&] { read_checkpoint(folder, rig.store, rig.optimizer, world, false); });
  }
  void on_rank_0(const std::function<void()>& f) const {
    world.barrier();
    if (world.rank() == 0) f();
    world.barrier();
  }
  Communicator world = Communicator::world();
  Rig rig;
  SharedFolder run;
  std::string folder, file;
};

/// Flips one bit in the middle of the stored bytes of a state tensor that this rank has.
void flip_inside(const std::string& file, const Tensor& tensor) {
  std::vector<char> bytes = file_bytes(file);
  const auto* first = static_cast<const char*>(tensor.data);
  const auto at = std::search(bytes.begin(), bytes.end(), first, first + tensor.bytes());
  ASSERT_NE(at, bytes.end());
  *(at + std::ptrdiff_t(tensor.bytes() / 2)) ^= 0x10;
  write_bytes(file, bytes);
}

TEST(DamagedCheckpoint, AFlippedBitIsReportedWithFileAndTensorOnEveryRank) {
  struct Case {
    std::string parameter, kind, path;
  };
  for (const Case& c : {Case{"embedding", "master", "tensor weights/embedding is damaged"},
                        Case{"encoder/layer_00/expert_down", "master",
                             "tensor weights/encoder/layer_00/expert_down, expert 0 is damaged"},
                        Case{"logits", "v", "tensor optimizer/logits/v is damaged"}}) {
    Written written;
    mark_state(written.rig);
    // The owner of the last row knows the bytes; with `world.size()` experts groups every rank owns its experts, rank 0
    // the first.
    written.rig.optimizer.visit_state([&](const StateTensor& state) {
      const bool first = written.rig.store.first_expert(state.parameter) + state.expert == 0;
      const ParameterSpec& spec = written.rig.spec(state.parameter);
      const bool last_row = state.first_row + state.tensor.rows == spec.rows;
      if (spec.name == c.parameter && c.kind == state.kind && first && last_row) {
        flip_inside(written.file, state.tensor);
      }
    });
    written.world.barrier();
    const std::string text = written.read();

    EXPECT_NE(text.find(written.file), std::string::npos) << text;
    EXPECT_NE(text.find(c.path), std::string::npos) << text;
    const std::string weights_text = error_message([&] {
      read_weights(written.folder, written.rig.store, written.rig.context, written.rig.kernels, written.world);
    });
    EXPECT_EQ(weights_text.find(c.path) != std::string::npos, c.kind == "master") << weights_text;
  }
}

TEST(DamagedCheckpoint, NoFlippedBitAnywhereChangesWhatIsRead) {
  Written written("adafactor");
  const Communicator self = written.world.split(written.world.rank(), 0, "self");
  if (written.world.rank() == 0) {
    Rig rig(self, 1, rig_deck("adafactor"));
    const std::vector<char> bytes = file_bytes(written.file);
    const std::size_t stride = std::max<std::size_t>(1, bytes.size() / 331);
    int noticed = 0, tried = 0;
    for (std::size_t at = 0; at < bytes.size(); at += stride) {
      std::vector<char> damaged = bytes;
      damaged[at] ^= char(1 << (at % 8));
      write_bytes(written.file, damaged);
      clear_state(rig);
      std::string error;
      CheckpointInfo info;
      try {
        info = read_checkpoint(written.folder, rig.store, rig.optimizer, self, false);
      } catch (const Error& thrown) {
        error = thrown.what();
      }
      ++tried;
      noticed += error.empty() ? 0 : 1;
      if (error.empty()) {
        EXPECT_EQ(first_unmarked(rig), "") << "byte " << at;
        EXPECT_EQ(info.deck, at_step(1).deck) << "byte " << at;
        EXPECT_EQ(info.tokens_seen, 1000) << "byte " << at;
      } else {
        EXPECT_NE(error.find(written.file), std::string::npos) << error;
      }
    }
    EXPECT_GT(noticed, tried / 2);  // the others hit bytes that hold nothing
  }
}

TEST(DamagedCheckpoint, ATruncatedFileIsReported) {
  Written written;
  const std::vector<char> bytes = written.world.rank() == 0 ? file_bytes(written.file) : std::vector<char>();
  for (const double share : {0.0, 0.1, 0.5, 0.999}) {
    written.on_rank_0([&] {
      write_bytes(written.file, {bytes.begin(), bytes.begin() + std::ptrdiff_t(double(bytes.size()) * share)});
    });
    const std::string text = written.read();
    EXPECT_NE(text.find("cannot open the checkpoint " + written.file), std::string::npos) << text;
  }
}

TEST(DamagedCheckpoint, AMissingTensorOrFileIsReported) {
  Written written;
  written.on_rank_0([&] {
    const H5File file(H5Fopen(written.file.c_str(), H5F_ACC_RDWR, H5P_DEFAULT), "open");
    h5_check(H5Ldelete(file.get(), "weights/logits", H5P_DEFAULT), "delete");
  });
  std::string text = written.read();
  EXPECT_NE(text.find(written.file + ": tensor weights/logits is missing"), std::string::npos) << text;

  written.on_rank_0([&] { fs::remove(written.file); });
  text = written.read();
  EXPECT_NE(text.find("cannot open the checkpoint " + written.file), std::string::npos) << text;
  EXPECT_THROW(read_checkpoint_info(written.folder), Error);
}

TEST(DamagedCheckpoint, AnotherFormatVersionIsRefused) {
  Written written;
  written.on_rank_0([&] {
    const H5File file(H5Fopen(written.file.c_str(), H5F_ACC_RDWR, H5P_DEFAULT), "open");
    const H5Attribute attribute(H5Aopen(file.get(), "format_version", H5P_DEFAULT), "open");
    const std::int64_t version = 7;
    h5_check(H5Awrite(attribute.get(), H5T_NATIVE_INT64, &version), "write");
  });
  const std::string text = written.read();

  EXPECT_NE(text.find("format version 7; this program reads version 1"), std::string::npos) << text;
}

TEST(CheckpointFolder, KeepsTheNewestAndClearsWhatKilledRunsLeft) {
  Written written;
  const auto write = [&](std::int64_t step, std::int64_t keep) {
    write_checkpoint(written.run.path(), at_step(step), written.rig.store, written.rig.optimizer, written.world, keep);
  };
  const std::string checkpoints = written.run.path() + "/checkpoints";
  written.on_rank_0([&] {
    fs::create_directories(checkpoints + "/.aside-write-00000007");
    write_bytes(checkpoints + "/.aside-write-00000007/checkpoint.h5", {'x'});
    fs::create_directories(checkpoints + "/.aside-remove-00000000");
    fs::create_directories(checkpoints + "/notes");
  });
  EXPECT_EQ(newest_checkpoint(written.run.path()), checkpoints + "/step-00000001");
  written.world.barrier();
  for (const std::int64_t step : {2, 3, 10}) write(step, 2);

  EXPECT_EQ(entries_of(checkpoints), (std::vector<std::string>{"notes", "step-00000003", "step-00000010"}));
  EXPECT_EQ(newest_checkpoint(written.run.path()), checkpoints + "/step-00000010");
  written.world.barrier();
  write(5, 1);  // what has just been written stays, whatever is newer
  EXPECT_EQ(entries_of(checkpoints), (std::vector<std::string>{"notes", "step-00000005", "step-00000010"}));
  written.world.barrier();
  write(100000001, 0);  // 0 keeps all; nine digits are a step too
  EXPECT_EQ(entries_of(checkpoints).size(), 4U);
  EXPECT_EQ(newest_checkpoint(written.run.path()), checkpoints + "/step-100000001");
}

TEST(CheckpointFolder, TheSameStepMayBeWrittenAgain) {
  Written written;
  const CheckpointInfo again{1, 77, "other", "def"};
  const std::string folder =
      write_checkpoint(written.run.path(), again, written.rig.store, written.rig.optimizer, written.world, 2);

  EXPECT_EQ(folder, written.folder);
  EXPECT_EQ(read_checkpoint_info(folder).tokens_seen, 77);
  EXPECT_EQ(entries_of(written.run.path() + "/checkpoints"), (std::vector<std::string>{"step-00000001"}));
}

TEST(CheckpointFolder, NewestIgnoresWhatIsNotACheckpoint) {
  const Communicator world = Communicator::world();
  const SharedFolder run(world);
  EXPECT_EQ(newest_checkpoint(run.path()), std::nullopt);
  EXPECT_EQ(newest_checkpoint(run.path() + "/nowhere"), std::nullopt);
  world.barrier();
  if (world.rank() == 0) {
    for (const char* name : {"step-00000009", "step-00000x10", "step-11", "step--0000012", "steps-00000013"}) {
      fs::create_directories(run.path() + "/checkpoints/" + name);
      if (std::string(name) != "step-00000009") write_bytes(run.path() + "/checkpoints/" + name + "/checkpoint.h5", {});
    }
  }
  world.barrier();
  EXPECT_EQ(newest_checkpoint(run.path()), std::nullopt);
}

TEST(CheckpointFolder, AFolderThatCannotBeListedIsNotTakenForAnEmptyOne) {
  const Communicator world = Communicator::world();
  const SharedFolder run(world);
  if (world.rank() == 0) fs::create_symlink("checkpoints", run.path() + "/checkpoints");  // a loop
  world.barrier();
  EXPECT_THROW(newest_checkpoint(run.path()), Error);
  world.barrier();
}

TEST(CheckpointFolder, AFolderThatCannotBeMadeIsReportedOnEveryRank) {
  const Communicator world = Communicator::world();
  const SharedFolder run(world);
  if (world.rank() == 0) write_bytes(run.path() + "/checkpoints", {'x'});
  world.barrier();
  Rig rig(world, 1, rig_deck("adamw"));
  const std::string text =
      error_message([&] { write_checkpoint(run.path(), at_step(3), rig.store, rig.optimizer, world, 2); });

  EXPECT_NE(text.find("checkpoint of step 3 was not written"), std::string::npos) << text;
  EXPECT_NE(text.find(run.path() + "/checkpoints"), std::string::npos) << text;
}

TEST(FullDisk, OnOneRankIsAnErrorOnAllAndLeavesOlderCheckpoints) {
  Written written;
  const auto write = [&] {
    return error_message([&] {
      write_checkpoint(written.run.path(), at_step(2), written.rig.store, written.rig.optimizer, written.world, 2);
    });
  };
  mark_state(written.rig);
  const std::size_t size = file_bytes(written.file).size();
  for (const int full_rank : {written.world.size() - 1, 0}) {
    std::string text;
    {
      const FileSizeLimit limit(written.world.rank() == full_rank ? rlim_t(size / 8) : RLIM_INFINITY);
      text = write();
      written.world.barrier();  // rank 0 has tidied up
    }
    EXPECT_NE(text.find("checkpoint of step 2 was not written"), std::string::npos) << text;
    EXPECT_EQ(entries_of(written.run.path() + "/checkpoints"), (std::vector<std::string>{"step-00000001"}));
    EXPECT_EQ(newest_checkpoint(written.run.path()), written.folder);
    EXPECT_EQ(written.read(), "(nothing was thrown)");
    EXPECT_EQ(first_unmarked(written.rig), "");
  }
  EXPECT_EQ(write(), "(nothing was thrown)");
  EXPECT_EQ(entries_of(written.run.path() + "/checkpoints").size(), 2U);
}

/// Writes checkpoint after checkpoint; FLANMOE_TEST_MILLISECONDS after the first, one of the two ranks is killed.
TEST(Jobs, DISABLED_WritesUntilItIsKilled) {
  const Communicator world = Communicator::world();
  const std::string run = std::getenv("FLANMOE_TEST_RUN");
  const int delay = std::atoi(std::getenv("FLANMOE_TEST_MILLISECONDS"));
  const std::int64_t first = std::atoi(std::getenv("FLANMOE_TEST_STEP"));
  Rig rig(world, 2, rig_deck("adamw"));
  mark_state(rig);
  const auto write = [&](std::int64_t step) {
    write_checkpoint(run, at_step(step), rig.store, rig.optimizer, world, 2);
  };
  write(first);
  std::thread killer([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(delay));
    if (world.rank() == delay % 2) std::raise(SIGKILL);
  });
  for (std::int64_t step = first + 1; step < first + 10000; ++step) write(step);
  killer.join();
}

TEST(KilledJob, LeavesOnlyCompleteCheckpointsPublished) {
  if (!test::one_rank()) return;
  const Communicator world = Communicator::world();
  const SharedFolder run(world);
  Rig rig(world, 1, rig_deck("adamw"));
  std::int64_t newest = 0;
  for (const int milliseconds : {6, 17, 30, 45}) {
    const auto job = test::run_job("WritesUntilItIsKilled", 2, "",
                                   fmt::format("FLANMOE_TEST_RUN={} FLANMOE_TEST_MILLISECONDS={} FLANMOE_TEST_STEP={}",
                                               run.path(), milliseconds, newest + 1));
    EXPECT_EQ(job.exit_code, 137) << job.output;  // 128 + SIGKILL: it did not end for another reason
    for (const auto& [step, folder] : detail::published_checkpoints(run.path())) {
      clear_state(rig);
      EXPECT_EQ(read_checkpoint(folder.string(), rig.store, rig.optimizer, world, false).step, step);
      EXPECT_EQ(first_unmarked(rig), "");
    }
    const std::int64_t before = newest;
    newest = read_checkpoint_info(newest_checkpoint(run.path()).value()).step;
    EXPECT_GT(newest, before);
  }
  write_checkpoint(run.path(), at_step(newest + 1), rig.store, rig.optimizer, world, 1);
  EXPECT_EQ(entries_of(run.path() + "/checkpoints").size(), 1U);
}

}  // namespace
}  // namespace flanmoe
