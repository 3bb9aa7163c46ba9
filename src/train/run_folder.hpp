// The run folder: who may write in it, where things are, and whether a deck may go on with what is there.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace flanmoe {

/// Makes the folder where it is missing and holds its lock, so that two runs never write into one folder. Rank 0 only.
class RunFolder {
 public:
  /// Throws UsageError when the folder cannot be made or another run (named by host and process) holds it.
  explicit RunFolder(const std::string& dir);
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;
  /// Throws Error when the folder is no longer there, or another one is in its place.
  void expect_there() const;

 private:
  std::string path_;  // of the lock
  int lock_ = -1;
};

struct RunPaths {
  std::string dir;
  std::string metrics() const { return dir + "/metrics.jsonl"; }
  std::string deck() const { return dir + "/deck.resolved"; }
  std::string log() const { return dir + "/log"; }
  std::string tensorboard() const { return dir + "/tensorboard"; }
  std::string events() const { return dir + "/events.jsonl"; }
  std::string summary() const { return dir + "/summary.json"; }
};

/// Writes aside, flushes and renames, so that the file is whole or absent.
void write_file(const std::string& path, const std::string& text);
std::string read_file(const std::string& path);

/// "section.key" -> value of a resolved deck.
std::map<std::string, std::string> deck_values(const std::string& deck);

/// Keys that change the training and differ between two resolved decks, one text a key: "key: then ..., now ...".
/// Keys that only say how long, where, on how many ranks, how often to report or to save, and how to evaluate, may
/// differ.
std::vector<std::string> training_differences(const std::string& deck_then, const std::string& deck_now);

}  // namespace flanmoe
