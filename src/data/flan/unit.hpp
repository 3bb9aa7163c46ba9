// One released file made into one shard.
#pragma once

#include <atomic>
#include <nlohmann/json.hpp>
#include <string>

#include "data/flan/convert.hpp"
#include "data/flan/held_out.hpp"

namespace flanmoe::flan {

/// What all units share; read only.
struct Workshop {
  const ConvertOptions& options;
  const Plan& plan;
  const Tokenizer& tokenizer;
  const HeldOutList& held_out;
  const HeldOutQuestions& questions;
};

struct Progress {
  std::atomic<std::int64_t> units = 0, examples = 0, tokens = 0, skipped = 0;
};

/// Writes the shard and gives counts for people: examples per variant, skipped, contaminated, cut, ... A file that
/// gives no example writes nothing and has "examples" 0.
nlohmann::json make_unit(const Workshop& shop, const Source& source, const SourceFile& file, const std::string& output,
                         Progress& progress);

}  // namespace flanmoe::flan
