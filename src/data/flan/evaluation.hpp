// Benchmarks as evaluation examples: fixed exemplars, choices, right answers.
#pragma once

#include <functional>
#include <string>

#include "data/flan/plan.hpp"
#include "data/flan/prompts.hpp"

namespace flanmoe::flan {

/// What a benchmark's prompts are made from besides its records.
struct EvaluationParts {
  const TemplateFile& templates;
  formats::FileContent exemplars;  // in the order shown; their definition stands for the records' where those have none
  std::string prompt;              // stands before the question in place of head and exemplars, when it is not empty
};

/// Every record once in each variant of the source, through the first template of that kind. Exemplars are left out
/// from the end until the prompt fits. Direct examples of records with choices carry them, each as the target that it
/// would be; the answer of an example is what must be found in the output.
void make_evaluation(const Source& source, const EvaluationParts& parts, const formats::FileContent& content,
                     const Tokenizer& tokenizer, const PromptLimits& limits, PromptCounts& counts,
                     const std::function<void(Example&&)>& add);

}  // namespace flanmoe::flan
