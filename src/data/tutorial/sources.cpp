#include "data/tutorial/sources.hpp"

#include <filesystem>

#include "base/error.hpp"
#include "data/text.hpp"

namespace flanmoe::tutorial {

namespace {

/// Every file that is read, with the Debian package it comes from.
std::vector<std::pair<std::string, std::string>> source_files(const SourcePaths& paths) {
  std::vector<std::pair<std::string, std::string>> files;
  for (const char* part : {"noun", "verb", "adj", "adv"}) {
    files.emplace_back(paths.wordnet + "/data." + part, "wordnet-base");
    files.emplace_back(paths.wordnet + "/index." + part, "wordnet-base");
  }
  files.emplace_back(paths.wordnet + "/noun.exc", "wordnet-base");
  for (const char* name :
       {"foldoc", "gcide", "freedict-eng-fra", "freedict-fra-eng", "freedict-nld-eng", "freedict-spa-eng"}) {
    files.emplace_back(fmt::format("{}/{}.index", paths.dictd, name), fmt::format("dict-{}", name));
    files.emplace_back(fmt::format("{}/{}.dict.dz", paths.dictd, name), fmt::format("dict-{}", name));
  }
  return files;
}

}  // namespace

void check_sources(const SourcePaths& paths) {
  std::string missing, packages;
  for (const auto& [file, package] : source_files(paths)) {
    if (std::filesystem::exists(file)) continue;
    missing += "\n  " + file;
    if (packages.find(package) == std::string::npos) packages += " " + package;
  }
  if (!missing.empty()) fail("source files are missing; install{}:{}", packages, missing);
}

std::string sources_fingerprint(const SourcePaths& paths, const std::string& package_list) {
  std::string facts = crc32_hex(package_list);
  for (const auto& [file, package] : source_files(paths)) {
    const auto time = std::filesystem::last_write_time(file).time_since_epoch().count();
    facts += fmt::format("|{} {} {}", file, std::filesystem::file_size(file), time);
  }
  return crc32_hex(facts);
}

std::vector<Inflection> parse_exceptions(std::string_view text, const std::string& name) {
  std::vector<Inflection> out;
  std::int64_t number = 0;
  for (const std::string& line : split(text, '\n')) {
    ++number;
    if (line.empty()) continue;
    const auto words = split(line, ' ');
    if (words.size() < 2) fail("{}:{}: expected an inflected form and its word, found \"{}\"", name, number, line);
    out.push_back({words[1], words[0]});
  }
  return out;
}

Sources read_sources(const SourcePaths& paths, const std::string& package_list) {
  Sources sources;
  sources.wordnet = read_wordnet(paths.wordnet);
  const std::string exceptions = paths.wordnet + "/noun.exc";
  sources.irregular_plurals = parse_exceptions(read_whole_file(exceptions), exceptions);
  sources.foldoc = read_dictd(paths.dictd, "foldoc");
  sources.gcide = read_dictd(paths.dictd, "gcide");
  sources.english_french = translations(read_dictd(paths.dictd, "freedict-eng-fra"));
  sources.french_english = translations(read_dictd(paths.dictd, "freedict-fra-eng"));
  sources.dutch_english = translations(read_dictd(paths.dictd, "freedict-nld-eng"));
  sources.spanish_english = translations(read_dictd(paths.dictd, "freedict-spa-eng"));
  sources.packages = parse_packages(package_list, "apt-cache dumpavail");
  return sources;
}

}  // namespace flanmoe::tutorial
