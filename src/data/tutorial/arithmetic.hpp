// Arithmetic with worked answers: small word problems whose reasoning is written out step by step.
#pragma once

#include <cstdint>
#include <string>

#include "data/text.hpp"

namespace flanmoe::tutorial {

/// A question about numbers. The rationale ends before "The answer is ...".
struct WordProblem {
  std::string question, rationale;
  std::int64_t answer = 0;
};

/// A two-step story (addition, subtraction, multiplication; no number below 0 or above 200).
WordProblem two_step_problem(Random& random);

/// A one-step sum, written with digits: "7 + 12".
struct Sum {
  std::string expression;
  std::int64_t answer = 0;
};
Sum one_step_sum(Random& random);

}  // namespace flanmoe::tutorial
