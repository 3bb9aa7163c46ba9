// What flanmoe-shards makes: a list of sources, each some released files of one format.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace flanmoe::flan {

/// One section of a plan. The format of the file is described in input/shards/README.md.
struct Source {
  std::string name, where;  // section; "PLAN:LINE" for messages
  std::string format;
  std::vector<std::string> files;     // patterns under the data folder; what a * matches names the task
  std::string task;                   // name in the shards; * stands for what the * of files matched
  std::string templates;              // file of input/templates, without .txt; empty: records are used as they are
  std::vector<std::string> variants;  // empty: all that templates and records support
  std::string split = "train", category;
  std::string dataset;               // names in the list of the FLAN collection, separated by blanks
  std::string only_from;             // file of names, one a line: other files are left alone
  double inverted_share = 1;         // of the records, that the inverted variants ask
  std::vector<std::string> exclude;  // patterns of what the * matched: these files are left alone
  // Evaluation
  std::string benchmark;
  std::string exemplars, exemplar_format;  // file; * as in task
  std::string prompts;                     // JSON: name of the task to the text that stands before the question
  std::int64_t shots = 0;
};

struct Plan {
  std::string path;
  std::string held_out;  // file, empty: none
  std::vector<Source> sources;
};

/// Throws UsageError with PLAN:LINE for unknown keys, formats and variants, and for values that are missing.
Plan parse_plan(std::string_view text, const std::string& path);

/// One file of a source that is on the disk.
struct SourceFile {
  std::string path, star;  // what the * matched, or the source's name
};
/// The files of a source under the data folder, sorted; those that only_from does not name or exclude does are left
/// out.
std::vector<SourceFile> find_files(const Plan& plan, const Source& source, const std::string& data);
/// `pattern` with its * replaced.
std::string with_star(const std::string& pattern, const std::string& star);
/// A file beside the plan, else under the data folder; throws Error naming both when there is none.
std::string find_beside(const Plan& plan, const std::string& name, const std::string& data, const std::string& where);

}  // namespace flanmoe::flan
