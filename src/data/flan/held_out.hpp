// What no training may contain: tasks by name, and questions of released files by their hash.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "data/formats/formats.hpp"

namespace flanmoe::flan {

/// A file of lines "task PATTERN..." and "file FORMAT PATH" (paths and patterns under the data folder).
struct HeldOutList {
  std::vector<std::string> tasks;
  struct File {
    std::string format, path, where;
  };
  std::vector<File> files;
};
/// Throws UsageError with PATH:LINE for a line of another form.
HeldOutList parse_held_out(std::string_view text, const std::string& path);

/// Letters and digits of a text, in lower case: what counts when two questions are compared.
std::string essence(std::string_view text);

class HeldOutQuestions {
 public:
  /// Adds the questions of a file.
  void add(const std::vector<formats::Record>& records);
  /// Whether a record asks a held-out question, or a line of its text does. Lines and questions of fewer than 8 words
  /// are too common to tell: such a question counts together with its choices, such a line not at all.
  bool contains(const formats::Record& record) const;
  std::size_t size() const { return hashes_.size(); }

 private:
  std::unordered_set<std::uint64_t> hashes_;
};

}  // namespace flanmoe::flan
