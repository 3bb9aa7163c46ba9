// Running the built program from a test, and looking at what it left.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "temporary_folder.hpp"

namespace flanmoe::regression {

/// A folder of one test, removed at its end.
class Workplace {
 public:
  std::string path(const std::string& name) const { return folder_.file(name); }

 private:
  TemporaryFolder folder_;
};

/// Words after the program: a deck, overrides, flags.
using Words = std::vector<std::string>;

/// flanmoe under way. ranks 0: without the launcher. Output and errors go to files of their own.
class Program {
 public:
  Program(int ranks, const Words& words, const Words& environment = {});
  ~Program();
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  bool running();
  /// Waits for the end and returns the exit code (128 + signal when a signal ended it).
  int wait();
  std::string output() const;  // of standard output and standard error
  /// Process of a rank; 0 while it has none.
  pid_t process_of_rank(int rank) const;
  /// kill -9 to every rank and to the launcher, and waits until all are gone.
  void kill_all();

 private:
  int ranks_;
  std::string output_path_;
  pid_t process_ = -1;
  int status_ = 0;
  bool ended_ = false;
};

struct Ended {
  int exit_code = 0;
  std::string output;
};
Ended run(int ranks, const Words& words, const Words& environment = {});

/// Shard of pairs of two tasks: the first token of an input decides the whole target.
std::string write_pairs(const Workplace& workplace);
/// Shard of raw text: runs of neighbouring tokens, so that a gap can be filled from what stands around it.
std::string write_text(const Workplace& workplace);

/// Words with more overrides, which replace those of the same key.
Words with(Words words, const Words& more);
/// The smoke deck on this shard in this run folder.
Words smoke(const std::string& shard, const std::string& run_dir, const Words& more = {});
/// The same with the deck of the decoder-only model.
Words smoke_palm(const std::string& shard, const std::string& run_dir, const Words& more = {});

std::vector<nlohmann::json> metrics_of(const std::string& run_dir);
std::int64_t count_lines(const std::string& path);
nlohmann::json summary_of(const std::string& run_dir);

/// Folder of the newest published checkpoint; empty when there is none.
std::string newest_of(const std::string& run_dir);
/// First difference between the tensors (weights and optimizer state) of two checkpoint folders, bit for bit; empty
/// when there is none. Fails when a checkpoint has no tensors.
std::string difference_of_checkpoints(const std::string& a, const std::string& b);
/// Names of the tensors, of those that begin with `prefix`, that are not the same in both checkpoint folders.
std::vector<std::string> different_tensors(const std::string& a, const std::string& b, const std::string& prefix);
/// First difference between two metrics files, times aside; empty when there is none.
std::string difference_of_metrics(const std::string& run_a, const std::string& run_b);

}  // namespace flanmoe::regression
