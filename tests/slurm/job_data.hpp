// What the jobs of the tests train on and are measured by.
#pragma once

#include <array>
#include <filesystem>
#include <string>

#include "data/shard.hpp"
#include "data/tokenizer.hpp"
#include "regression/program.hpp"

namespace flanmoe::slurm {

/// Sentences about things; false after 2000 of them.
inline bool next_sentence(int& at, std::string& sentence) {
  constexpr std::array things = {"stone", "river", "window", "table", "garden", "letter", "winter", "mountain"};
  sentence = fmt::format("what is the {} number {} that moves plus {} and {}", things[std::size_t(at % 8)],
                         at * 37 % 1000, at % 91, at);
  return at++ < 2000;
}

inline void write_sums(const std::string& file, const Tokenizer& tokenizer, const std::string& task) {
  ShardWriter writer(file, tokenizer.identity());
  for (int i = 0; i < 200; ++i) {
    Example e;
    e.task = task;
    e.variant = "zero_shot";
    e.split = i < 190 ? "train" : "test";
    e.input = tokenizer.encode(fmt::format("what is {} plus {}", i, i % 7));
    e.target = tokenizer.encode(std::to_string(i + i % 7));
    writer.add(e);
  }
  writer.finish();
}

inline void write_sentences(const std::string& file, const Tokenizer& tokenizer) {
  ShardWriter writer(file, tokenizer.identity());
  int at = 0;
  for (std::string sentence; at < 400 && next_sentence(at, sentence);) {
    Example e;
    e.task = e.variant = "text";
    e.split = "train";
    e.has_target = false;
    e.input = tokenizer.encode(sentence);
    writer.add(e);
  }
  writer.finish();
}

/// tokenizer.model, text.h5, sums.h5, and tasks/ with sums under names of tasks of the tutorial.
inline void write_data(const regression::Workplace& workplace) {
  int at = 0;
  const std::string model = workplace.path("tokenizer.model");
  train_tokenizer([&](std::string& sentence) { return next_sentence(at, sentence); }, {.vocabulary = 270}, model);
  const Tokenizer tokenizer(model);
  write_sentences(workplace.path("text.h5"), tokenizer);
  write_sums(workplace.path("sums.h5"), tokenizer, "sum");
  std::filesystem::create_directory(workplace.path("tasks"));
  for (const char* task : {"sum", "antonym", "package_section"}) {
    write_sums(workplace.path(fmt::format("tasks/{}.h5", task)), tokenizer, task);
  }
}

}  // namespace flanmoe::slurm
