// A small tokenizer for tests of prompts, trained once a process on words that they use.
#pragma once

#include <string>

#include "data/tokenizer.hpp"
#include "data_fixture.hpp"

namespace flanmoe {

/// Path of the model; it goes away with the process.
inline const std::string& small_model() {
  static const TemporaryFolder folder;
  static const std::string path = [] {
    const std::string model = folder.file("small.model");
    const char* things[] = {"stone", "river", "window", "table", "garden", "letter", "winter", "summer", "mountain"};
    const char* kinds[] = {"loud", "soft", "quick", "bright", "dull", "heavy", "light", "warm", "plain", "strange"};
    int at = 0;
    TokenizerTraining training;
    training.vocabulary = 290;
    train_tokenizer(
        [&](std::string& sentence) {
          if (at == 3000) return false;
          const int i = at++;
          sentence = std::string("question ") + std::to_string(i * 37 % 1000) + " of the " + kinds[i % 10] + "er " +
                     things[i % 9] + " has the answer red, green or blue; the Reason of " + kinds[i % 7] +
                     " snow in the sky is What the " + things[i % 5] + "s name.";
          return true;
        },
        training, model);
    return model;
  }();
  return path;
}

}  // namespace flanmoe
