// The tutorial data set: tokenizer, text shards and instruction shards from files of Debian packages.
#pragma once

#include <cstdint>
#include <string>

#include "data/tutorial/examples.hpp"
#include "data/tutorial/sources.hpp"

namespace flanmoe::tutorial {

struct TutorialOptions {
  std::string output, templates;
  SourcePaths sources;
  ExampleLimits limits;
  std::int32_t vocabulary = 8000;
  int threads = 2;
};

/// Writes into `output`: tokenizer.model, pretrain/CORPUS.h5, instruct/TASK.h5 and manifest.json. A step whose sources,
/// templates and settings have not changed and whose file is whole is skipped; each file appears by rename, so the
/// command can be stopped and started again at any moment.
void make_tutorial_data(const TutorialOptions& options);

}  // namespace flanmoe::tutorial
