// What the fuzzers run, and the replay of their corpus: a reader may refuse any bytes, but only by Error.
#pragma once

#include <string_view>

#include "data/formats/formats.hpp"

namespace flanmoe::formats {

/// Reads the bytes twice: stopping at the first malformed record, and skipping them.
inline void read_any_bytes(const Format& format, std::string_view bytes) {
  for (const bool skip : {false, true}) {
    BadRecords bad;
    bad.skip = skip;
    Input input = Input::memory("fuzz", bytes);
    try {
      for (const Record& record : read_all(format, input, bad).records) {
        const auto choices = std::int32_t(record.choices.size());
        const bool sound = record.gold < choices && record.gold >= -1 &&
                           record.labels.size() == record.choices.size() && (record.is_text || !record.answers.empty());
        bool storable = true;  // a shard separates answers by zero bytes
        for (const auto* texts : {&record.answers, &record.choices}) {
          for (const std::string& text : *texts) storable = storable && text.find('\0') == std::string::npos;
        }
        if (!sound || (!record.is_text && !storable)) __builtin_trap();
      }
    } catch (const Error&) {
    }
  }
}

}  // namespace flanmoe::formats
