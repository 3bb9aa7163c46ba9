// What an evaluation has measured so far, on the disk: a killed one goes on where it was.
#pragma once

#include <fstream>
#include <string>
#include <vector>

#include "evaluate/predict.hpp"

namespace flanmoe {

/// One file: a line with a fingerprint of all inputs, then one line a prediction. Rank 0 only.
class PredictionJournal {
 public:
  /// Reads the predictions that an evaluation with the same fingerprint left; a line that a killed one did not finish,
  /// and everything of another evaluation, is dropped. Throws Error naming the file and the line when it is damaged.
  PredictionJournal(std::string path, const std::string& fingerprint);
  const std::vector<Prediction>& done() const { return done_; }
  /// Adds predictions and hands them to the operating system.
  void append(const std::vector<Prediction>& predictions);
  /// The evaluation is over: removes the file.
  void remove();

 private:
  std::string path_;
  std::vector<Prediction> done_;
  std::ofstream file_;
};

}  // namespace flanmoe
