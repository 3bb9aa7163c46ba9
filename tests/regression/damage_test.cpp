// Bits that are not what they were: in checkpoints on the disk, and in the memory of a rank.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <map>

#include "base/error.hpp"
#include "regression/faults_fixture.hpp"
#include "tensor/dtype.hpp"
#include "train/run_folder.hpp"

namespace flanmoe::regression {
namespace {

std::string file_of(const std::string& checkpoint) { return checkpoint + "/checkpoint.h5"; }

void cut_off(const std::string& checkpoint) {
  fs::resize_file(file_of(checkpoint), fs::file_size(file_of(checkpoint)) / 2);
}

/// One bit in the middle of a tensor's numbers.
void flip_a_bit(const std::string& checkpoint) {
  haddr_t place = 0;
  {
    const H5File file(H5Fopen(file_of(checkpoint).c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), checkpoint);
    const H5Dataset dataset(H5Dopen2(file.get(), "weights/embedding", H5P_DEFAULT), checkpoint);
    place = H5Dget_offset(dataset.get()) + H5Dget_storage_size(dataset.get()) / 2;
  }
  std::fstream file(file_of(checkpoint), std::ios::in | std::ios::out | std::ios::binary);
  const char byte = char(file.seekg(std::streamoff(place)).get() ^ 0x08);
  file.seekp(std::streamoff(place)).put(byte);
}

/// What is in a folder, with the content of files.
std::map<std::string, std::string> content_of(const std::string& folder) {
  std::map<std::string, std::string> content;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    content[entry.path().string()] = entry.is_regular_file() ? read_file(entry.path().string()) : "";
  }
  return content;
}

std::size_t times(const std::string& text, const std::string& part) {
  std::size_t count = 0;
  for (std::size_t at = 0; (at = text.find(part, at)) != std::string::npos; ++at) ++count;
  return count;
}

TEST_F(Faults, ADamagedNewestCheckpointIsSaidAndKeptAndTheOneBeforeItGoesOn) {
  const std::map<std::string, std::function<void(const std::string&)>> damages = {
      {"cut_off", cut_off}, {"bit_flipped", flip_a_bit}, {"file_missing", [](const std::string& checkpoint) {
                                                            fs::remove(file_of(checkpoint));
                                                          }}};
  for (const auto& [name, damage] : damages) {
    copy_undisturbed(name);
    const std::string newest = newest_of(dir(name)), aside = dir(name) + "/checkpoints/damaged-step-00000012";
    damage(newest);
    const std::string damaged = read_file(file_of(newest));
    const Ended ended = run(2, command(name));

    EXPECT_EQ(ended.exit_code, 0) << ended.output;
    EXPECT_EQ(times(ended.output, newest + " cannot be used"), 1U) << ended.output;
    EXPECT_TRUE(says(ended, "going on from " + dir(name) + "/checkpoints/step-00000010")) << ended.output;
    expect_same_end(name);
    EXPECT_EQ(read_file(file_of(aside)), damaged) << "nothing is removed";
    const auto events = events_of(name, "checkpoint_damaged");
    ASSERT_EQ(events.size(), 1U) << ended.output;
    EXPECT_EQ(events[0]["step"], 12);
    EXPECT_EQ(events[0]["now_at"], aside);
    EXPECT_NE(events[0]["why"].get<std::string>().find(newest), std::string::npos) << events[0];
  }

  // The same step once more; and a run that is complete has no need of its checkpoints.
  cut_off(newest_of(dir("cut_off")));
  const Ended complete = run(2, command("cut_off"));
  EXPECT_TRUE(says(complete, "is complete")) << complete.output;
  fs::remove(dir("cut_off") + "/summary.json");
  EXPECT_EQ(run(2, command("cut_off")).exit_code, 0);
  expect_same_end("cut_off");
  EXPECT_TRUE(fs::exists(dir("cut_off") + "/checkpoints/damaged-step-00000012-2"));
}

TEST_F(Faults, WhenAllCheckpointsAreDamagedTheyAreListedAndNothingIsChanged) {
  copy_undisturbed("all");
  flip_a_bit(dir("all") + "/checkpoints/step-00000012");
  cut_off(dir("all") + "/checkpoints/step-00000010");
  const auto before = content_of(dir("all") + "/checkpoints");
  const std::string metrics = read_file(dir("all") + "/metrics.jsonl");
  const Ended ended = run(2, command("all"));

  EXPECT_EQ(ended.exit_code, 1) << ended.output;
  EXPECT_EQ(times(ended.output, "none of the 2 checkpoints"), 1U) << ended.output;
  EXPECT_TRUE(says(ended, "tensor weights/embedding is damaged")) << ended.output;
  EXPECT_TRUE(says(ended, "cannot open the checkpoint " + dir("all") + "/checkpoints/step-00000010")) << ended.output;
  EXPECT_EQ(content_of(dir("all") + "/checkpoints"), before);
  EXPECT_EQ(read_file(dir("all") + "/metrics.jsonl"), metrics);
}

/// Flips one bit wherever a process holds these bytes in memory of its own. Returns the number of places, or -1 with
/// the reason in errno.
int flip_in_memory(pid_t process, const std::string& bytes) {
  const int memory = open(fmt::format("/proc/{}/mem", process).c_str(), O_RDWR | O_CLOEXEC);
  if (memory < 0) return -1;
  int places = 0;
  std::ifstream maps(fmt::format("/proc/{}/maps", process));
  for (std::string line; std::getline(maps, line);) {
    unsigned long first = 0, end = 0, inode = 1;
    char rights[8] = {};
    if (std::sscanf(line.c_str(), "%lx-%lx %7s %*s %*s %lu", &first, &end, rights, &inode) != 4) continue;
    if (std::string(rights) != "rw-p" || inode != 0) continue;
    std::string held(end - first, '\0');
    const ssize_t read = pread(memory, held.data(), held.size(), off_t(first));
    held.resize(std::size_t(std::max<ssize_t>(0, read)));
    for (std::size_t at = 0; (at = held.find(bytes, at)) != std::string::npos; at += bytes.size()) {
      const char byte = char(bytes[bytes.size() / 2] ^ 0x04);
      places += pwrite(memory, &byte, 1, off_t(first + at + bytes.size() / 2)) == 1 ? 1 : 0;
    }
  }
  close(memory);
  return places;
}

/// Some numbers of a weight in a checkpoint, as a bf16 run holds them.
std::string bf16_numbers(const std::string& checkpoint, const std::string& name) {
  const H5File file(H5Fopen(file_of(checkpoint).c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), checkpoint);
  const H5Dataset dataset(H5Dopen2(file.get(), name.c_str(), H5P_DEFAULT), name);
  const H5Space space(H5Dget_space(dataset.get()), name);
  std::vector<float> numbers(std::size_t(H5Sget_simple_extent_npoints(space.get())));
  h5_check(H5Dread(dataset.get(), H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, numbers.data()), name);
  std::string bytes;
  for (std::size_t i = 100; i < 164; ++i) {
    const bf16 rounded(numbers.at(i));
    bytes.append(reinterpret_cast<const char*>(&rounded), sizeof rounded);
  }
  return bytes;
}

/// What is frozen is never written again: a bit that flips in it stays flipped.
TEST_F(Faults, ABitThatFlipsInTheMemoryOfARankIsFoundAndTheRunGoesBackOrEnds) {
  const Words words = {"--run.steps=160", "--run.precision=bf16", "--optimizer.freeze=embeddings",
                       "--checkpoint.every=10", "--faults.compare_every=3"};
  const Ended healthy = run(2, command("healthy", words));
  ASSERT_EQ(healthy.exit_code, 0) << healthy.output;
  const std::string numbers = bf16_numbers(newest_of(dir("healthy")), "weights/embedding");
  for (const char* policy : {"skip", "stop"}) {
    const std::string name = fmt::format("flipped_{}", policy);
    Program program(2, command(name, with(words, {fmt::format("--faults.on_bad_step={}", policy)})));
    wait_for_steps(program, name, 12);
    kill(program.process_of_rank(1), SIGSTOP);
    const int places = flip_in_memory(program.process_of_rank(1), numbers);
    const std::string why = std::strerror(errno);
    kill(program.process_of_rank(1), SIGCONT);
    if (places < 0) GTEST_SKIP() << "the memory of another process cannot be written here: " << why;
    ASSERT_GT(places, 0) << "the weight was not found";

    EXPECT_EQ(program.wait(), std::string(policy) == "skip" ? 0 : 1) << program.output();
    EXPECT_EQ(times(program.output(), "the copies of embedding differ"), 1U) << program.output();
    if (std::string(policy) == "skip") {
      const auto back = events_of(name, "went_back");
      ASSERT_EQ(back.size(), 1U) << program.output();
      EXPECT_GE(back[0]["to_step"], 10);
      EXPECT_NE(back[0]["why"].get<std::string>().find("on ranks [1]"), std::string::npos) << back[0];
    } else {
      EXPECT_LT(count_lines(dir(name) + "/metrics.jsonl"), 160);
      EXPECT_EQ(run(2, command(name, words)).exit_code, 0);
    }
    expect_same_end(name, "healthy");
    EXPECT_TRUE(events_of(name, "batch_skipped").empty());
  }
}

}  // namespace
}  // namespace flanmoe::regression
