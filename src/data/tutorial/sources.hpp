// Everything the tutorial data is made of, as read from the files of the Debian packages.
#pragma once

#include <string>
#include <vector>

#include "data/tutorial/dictd.hpp"
#include "data/tutorial/packages.hpp"
#include "data/tutorial/wordnet.hpp"

namespace flanmoe::tutorial {

struct SourcePaths {
  std::string wordnet = "/usr/share/wordnet", dictd = "/usr/share/dictd";
};

struct Sources {
  WordNet wordnet;
  std::vector<Inflection> irregular_plurals;  // WordNet's list of exceptions
  std::vector<DictEntry> foldoc, gcide;
  std::vector<Translation> english_french, french_english, dutch_english, spanish_english;
  std::vector<Package> packages;
};

/// Throws Error that names every missing file and the packages to install.
void check_sources(const SourcePaths& paths);
/// Changes when a source file does (length and time) or when apt's list does (its text).
std::string sources_fingerprint(const SourcePaths& paths, const std::string& package_list);
Sources read_sources(const SourcePaths& paths, const std::string& package_list);

/// "mice mouse" lines: the inflected form, then its word.
std::vector<Inflection> parse_exceptions(std::string_view text, const std::string& name);

}  // namespace flanmoe::tutorial
