#include "data/flan/collection.hpp"

#include <algorithm>
#include <map>

#include "data/formats/csv.hpp"
#include "data/formats/formats.hpp"
#include "data/patterns.hpp"
#include "data/text.hpp"

namespace flanmoe::flan {
namespace {

/// Names differ in case and punctuation from list to list.
std::string plain_name(const std::string& name) {
  std::string out;
  for (const char c : lower_ascii(name)) {
    if ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9')) out += c;
  }
  return out;
}

/// What a file of the plan stands for: the data sets that it names, or that the plan names for it.
std::vector<std::string> datasets_of(const Source& source, const SourceFile& file) {
  std::vector<std::string> names;
  if (source.format != "natural_instructions") {
    for (const std::string& name : split_words(source.dataset)) names.push_back(plain_name(with_star(name, file.star)));
    return names;
  }
  formats::Input input = formats::Input::file(file.path);
  formats::BadRecords bad;
  bad.skip = true;
  for (const std::string& name :
       read_all(formats::find_format(source.format, source.where), input, bad).facts.sources) {
    names.push_back(plain_name(name));
  }
  return names;
}

}  // namespace

std::vector<CollectionRow> read_collection(const std::string& path) {
  formats::Input input = formats::Input::file(path);
  std::map<std::pair<std::string, std::string>, CollectionRow> rows;
  std::string line;
  if (!input.line(line) || !line.starts_with("Source,Dataset,")) {
    fail("{}: expected a header \"Source,Dataset,...\", found \"{}\"", path, formats::shown(line));
  }
  while (input.line(line)) {
    const std::string where = input.where();
    if (trim(line).empty()) continue;
    const auto fields = formats::csv_row(input, line, where);
    if (fields.size() < 2) fail("{}: expected at least 2 fields, found \"{}\"", where, formats::shown(line));
    CollectionRow& row = rows[{fields[0], fields[1]}];
    row.source = fields[0];
    row.dataset = fields[1];
    ++row.tasks;
  }
  std::vector<CollectionRow> all;
  for (const auto& [key, row] : rows) all.push_back(row);
  return all;
}

void find_present(const Plan& plan, const std::string& data, std::vector<CollectionRow>& rows) {
  std::map<std::pair<bool, std::string>, std::int64_t> present;  // instructions or not, name
  for (const Source& source : plan.sources) {
    if (!source.benchmark.empty()) continue;
    for (const SourceFile& file : find_files(plan, source, data)) {
      for (const std::string& name : datasets_of(source, file))
        ++present[{source.format == "natural_instructions", name}];
    }
  }
  for (CollectionRow& row : rows) {
    const auto found = present.find({row.source == "NIv2", plain_name(row.dataset)});
    if (found != present.end()) row.present = found->second;
  }
}

std::string describe_collection(const std::vector<CollectionRow>& rows) {
  struct Total {
    std::int64_t datasets = 0, tasks = 0, present = 0, files = 0;
  };
  std::map<std::string, Total> totals;
  Total all;
  for (const CollectionRow& row : rows) {
    for (Total* total : {&totals[row.source], &all}) {
      ++total->datasets;
      total->tasks += row.tasks;
      total->present += row.present > 0 ? 1 : 0;
      total->files += row.present;
    }
  }
  std::string out =
      fmt::format("{:18} {:>9} {:>9} {:>18} {:>6}\n", "source", "data sets", "tasks", "data sets present", "files");
  const auto line = [&](const std::string& name, const Total& total) {
    out +=
        fmt::format("{:18} {:>9} {:>9} {:>18} {:>6}\n", name, total.datasets, total.tasks, total.present, total.files);
  };
  for (const auto& [name, total] : totals) line(name, total);
  line("all", all);
  out += fmt::format("\n{:18} {:52} {:>6} {:>6}\n", "source", "data set", "tasks", "files");
  for (const CollectionRow& row : rows) {
    out += fmt::format("{:18} {:52} {:>6} {:>6}\n", row.source, row.dataset.substr(0, 52), row.tasks,
                       row.present > 0 ? std::to_string(row.present) : "-");
  }
  return out;
}

}  // namespace flanmoe::flan
