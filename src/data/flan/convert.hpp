// flanmoe-shards as a function: a plan, released files and a tokenizer in, token shards out.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/flan/plan.hpp"
#include "data/flan/prompts.hpp"

namespace flanmoe::flan {

constexpr std::int32_t kVocabulary = 32000;

struct ConvertOptions {
  std::string plan, data, output;
  std::string templates = "input/templates";
  std::string tokenizer;  // SentencePiece model; empty: OUTPUT/tokenizer.model, trained where it is missing
  std::int32_t vocabulary =
      0;  // of a trained tokenizer, with its sentinels; 0: kVocabulary, or that of the model at hand
  std::vector<std::string> only;  // patterns of section names; empty: all
  PromptLimits limits;
  int threads = 1;
  bool skip_bad = false;
};

/// Makes OUTPUT/SECTION/NAME.h5 for every released file that is there; files that are up to date are kept, and those
/// that the same plan made of what it no longer names are removed. Prints what came of each section.
void convert(const ConvertOptions& options);

}  // namespace flanmoe::flan
