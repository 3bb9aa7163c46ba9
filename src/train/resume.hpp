// Where a run goes on: which of its own checkpoints, and what becomes of damaged ones.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "deck/deck.hpp"
#include "parallel/communicator.hpp"
#include "train/run_folder.hpp"

namespace flanmoe {

/// Where the weights before the next step come from.
struct Start {
  std::string checkpoint;  // of this run; empty: none yet
  std::int64_t steps = 0;  // completed
  bool complete = false;   // nothing is left to do
};

struct DamagedCheckpoint {
  std::string why;
  std::int64_t step = 0;
  std::string now_at;  // folder
};

/// All calls are collective, and throw on all ranks or on none.
class Resume {
 public:
  /// `tokenizer_fingerprint`: of the training data.
  Resume(const Deck& deck, std::string tokenizer_fingerprint, const Communicator& world)
      : deck_(deck), paths_{deck.run.dir}, tokenizer_fingerprint_(std::move(tokenizer_fingerprint)), world_(world) {}

  /// The newest checkpoint in the run's folder that is not known to be damaged, having read its header. Throws
  /// UsageError where it was trained with another deck or other data, and Error, with a list, where there are damaged
  /// ones only.
  Start decide();
  /// This checkpoint could not be read: a warning, and decide() passes it over.
  void pass_over(const std::string& checkpoint, const std::string& why);
  /// To be called when an older checkpoint has been read: renames those that were passed over, so that they neither
  /// count nor are in the way. None is removed. Returns them, on rank 0.
  std::vector<DamagedCheckpoint> set_damaged_aside();

 private:
  Start decide_on_root();
  void refuse_other_training(const Start& start, const std::string& deck) const;

  const Deck& deck_;
  RunPaths paths_;
  std::string tokenizer_fingerprint_;
  const Communicator& world_;
  std::map<std::string, std::string> damaged_;  // folder: why; on rank 0
};

}  // namespace flanmoe
