// Evaluation inside a training, every evaluate.every steps: same measurements, on the weights as they are.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "evaluate/session.hpp"
#include "kernels/kernels.hpp"
#include "model/model.hpp"
#include "parallel/communicator.hpp"
#include "tensor/arena.hpp"
#include "tensor/parameters.hpp"

namespace flanmoe {

class TrainingEvaluation {
 public:
  /// Reads the examples and measures memory; takes none yet. The training's tokenizer must be that of the examples.
  /// `context`: of the device of `kernels`. Everything is used by reference. Collective.
  TrainingEvaluation(const Deck& deck, ParameterStore& store, const Communicators& communicators,
                     const Kernels& kernels, const KernelContext& context, const std::string& tokenizer_fingerprint);

  std::vector<const Arena*> arenas() const { return {&activations_, &scratch_}; }
  void commit_memory();

  /// Whether the results of this step are there. Collective.
  bool is_done(std::int64_t step) const;
  /// Measures the weights of the store and writes RUN/evaluations/step-NNNNNNNN.json and .predictions.jsonl.
  /// Changes nothing that training looks at. False, with nothing written, when `stop` was asked before it was over.
  /// Collective.
  bool measure(std::int64_t step, std::int64_t tokens_seen, const StopRequest* stop);

 private:
  std::string path(std::int64_t step, const char* ending) const;

  const Deck& deck_;
  const Communicator& world_;
  std::optional<EvaluationSession> session_;
  PredictionTask task_;
  BatchLimits limits_;
  Arena activations_, scratch_;
  KernelContext context_;
  Model model_;
};

}  // namespace flanmoe
