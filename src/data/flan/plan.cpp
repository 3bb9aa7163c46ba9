#include "data/flan/plan.hpp"

#include <glob.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <set>

#include "base/error.hpp"
#include "data/flan/prompts.hpp"
#include "data/formats/formats.hpp"
#include "data/patterns.hpp"
#include "data/sections.hpp"
#include "data/text.hpp"
#include "deck/table.hpp"

namespace flanmoe::flan {
namespace {

namespace fs = std::filesystem;

const std::vector<std::string>& source_keys() {
  static const std::vector<std::string> keys = {
      "format",    "files",   "task",           "templates", "variants",  "split",           "category", "dataset",
      "only_from", "exclude", "inverted_share", "benchmark", "exemplars", "exemplar_format", "prompts",  "shots"};
  return keys;
}

std::int64_t parse_count(const std::string& value, const std::string& where) {
  std::int64_t count = -1;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), count);
  if (error != std::errc() || end != value.data() + value.size() || count < 0 || count > 1000) {
    usage_fail("{}: expected shots to be a number from 0 to 1000, found \"{}\"", where, value);
  }
  return count;
}

double parse_share(const std::string& value, const std::string& where) {
  double share = -1;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), share);
  if (error != std::errc() || end != value.data() + value.size() || !(share > 0 && share <= 1)) {
    usage_fail("{}: expected inverted_share to be above 0 and at most 1, found \"{}\"", where, value);
  }
  return share;
}

void set_key(Source& source, const SectionEntry& entry, const std::string& where) {
  const std::string &key = entry.key, &value = entry.value;
  if (key == "format") {
    source.format = formats::find_format(value, where).name;
  } else if (key == "files") {
    source.files = split_words(value);
  } else if (key == "variants") {
    source.variants = split_words(value);
    for (const std::string& name : source.variants) find_variant(name, where);
  } else if (key == "exclude") {
    source.exclude = split_words(value);
  } else if (key == "exemplar_format") {
    source.exemplar_format = formats::find_format(value, where).name;
  } else if (key == "inverted_share") {
    source.inverted_share = parse_share(value, where);
  } else if (key == "shots") {
    source.shots = parse_count(value, where);
  } else if (std::string* text = key == "task"        ? &source.task
                                 : key == "templates" ? &source.templates
                                 : key == "split"     ? &source.split
                                 : key == "category"  ? &source.category
                                 : key == "dataset"   ? &source.dataset
                                 : key == "only_from" ? &source.only_from
                                 : key == "benchmark" ? &source.benchmark
                                 : key == "exemplars" ? &source.exemplars
                                 : key == "prompts"   ? &source.prompts
                                                      : nullptr) {
    *text = value;
  } else {
    usage_fail("{}: unknown key \"{}\"; nearest: {}", where, key, deck_detail::nearest_name(key, source_keys()));
  }
}

void complete(Source& source) {
  const std::string& where = source.where;
  if (source.format.empty()) usage_fail("{}: [{}] has no format", where, source.name);
  if (source.files.empty()) usage_fail("{}: [{}] has no files", where, source.name);
  bool stars = false;
  for (const std::string& pattern : source.files) {
    if (std::count(pattern.begin(), pattern.end(), '*') > 1) {
      usage_fail("{}: expected at most one * in files, found \"{}\"", where, pattern);
    }
    stars = stars || pattern.find('*') != std::string::npos;
  }
  if (!stars && source.files.size() > 1)
    usage_fail("{}: expected one file, or a *, in files of [{}]", where, source.name);
  if (source.task.empty()) source.task = stars ? source.name + "_*" : source.name;
  if (source.dataset.empty()) source.dataset = source.name;
  if (!source.exemplars.empty() && source.exemplar_format.empty()) source.exemplar_format = source.format;
  const bool ready = source.format == "flat" || source.format == "text" || source.format == "text_lines";
  if (ready != source.templates.empty()) {
    usage_fail("{}: [{}] {}", where, source.name,
               ready ? "is made of ready text and takes no templates" : "needs templates");
  }
  const bool evaluates = !source.benchmark.empty();
  if (!evaluates && (source.shots > 0 || !source.exemplars.empty() || !source.prompts.empty())) {
    usage_fail("{}: shots, exemplars and prompts of [{}] need a benchmark", where, source.name);
  }
  if (evaluates && source.inverted_share != 1) {
    usage_fail("{}: inverted_share is of training data and [{}] is a benchmark", where, source.name);
  }
  if (evaluates && ready) usage_fail("{}: [{}] is a benchmark and needs a format with questions", where, source.name);
  if (evaluates && source.variants.empty()) usage_fail("{}: the benchmark [{}] needs variants", where, source.name);
  if (evaluates && source.split == "train") source.split = "test";
}

}  // namespace

Plan parse_plan(std::string_view text, const std::string& path) {
  Plan plan;
  plan.path = path;
  std::set<std::string> names;
  for (const Section& section : parse_sections(text, path)) {
    if (section.line == 0) {
      for (const SectionEntry& entry : section.entries) {
        if (entry.key != "held_out") {
          usage_fail("{}:{}: unknown key \"{}\" before the first [section]; expected held_out", path, entry.line,
                     entry.key);
        }
        plan.held_out = entry.value;
      }
      continue;
    }
    Source source;
    source.name = section.name;
    source.where = fmt::format("{}:{}", path, section.line);
    if (source.name.find_first_of("/\\ .*") != std::string::npos) {
      usage_fail("{}: expected a name without blanks, stops, stars and slashes, found [{}]", source.where, source.name);
    }
    if (!names.insert(section.name).second) usage_fail("{}: a second section [{}]", source.where, section.name);
    for (const SectionEntry& entry : section.entries) set_key(source, entry, fmt::format("{}:{}", path, entry.line));
    complete(source);
    plan.sources.push_back(std::move(source));
  }
  if (plan.sources.empty()) usage_fail("{}: expected a [section] for each source, found none", path);
  return plan;
}

std::vector<SourceFile> find_files(const Plan& plan, const Source& source, const std::string& data) {
  std::vector<SourceFile> files;
  for (const std::string& word : source.files) {
    const std::string pattern = data + "/" + word;
    const std::size_t star = pattern.find('*', data.size());
    glob_t found{};
    const int status = ::glob(pattern.c_str(), 0, nullptr, &found);
    for (std::size_t i = 0; status == 0 && i < found.gl_pathc; ++i) {
      const std::string path = found.gl_pathv[i];
      const std::size_t fixed = pattern.size() - 1;
      files.push_back({path, star == std::string::npos ? source.name : path.substr(star, path.size() - fixed)});
    }
    ::globfree(&found);
  }
  std::erase_if(files, [&](const SourceFile& file) { return matches_any(source.exclude, file.star); });
  if (source.only_from.empty() || files.empty()) return files;  // a list is asked for only where there are files
  const auto listed = split_words(read_whole_file(find_beside(plan, source.only_from, data, source.where)));
  const std::set<std::string> names(listed.begin(), listed.end());
  std::erase_if(files, [&](const SourceFile& file) { return !names.contains(file.star); });
  return files;
}

std::string with_star(const std::string& pattern, const std::string& star) { return replace_all(pattern, "*", star); }

std::string find_beside(const Plan& plan, const std::string& name, const std::string& data, const std::string& where) {
  const std::string beside = (fs::path(plan.path).parent_path() / name).string(), under = data + "/" + name;
  for (const std::string& path : {beside, under}) {
    if (fs::is_regular_file(path)) return path;
  }
  fail("{}: expected a file {} or {}, found none", where, beside, under);
}

}  // namespace flanmoe::flan
