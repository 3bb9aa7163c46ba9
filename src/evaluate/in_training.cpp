#include "evaluate/in_training.hpp"

#include <filesystem>

#include "base/error.hpp"
#include "base/log.hpp"
#include "base/timer.hpp"
#include "evaluate/scoreboard.hpp"
#include "parallel/together.hpp"

namespace flanmoe {

TrainingEvaluation::TrainingEvaluation(const Deck& deck, ParameterStore& store, const Communicators& communicators,
                                       const Kernels& kernels, const KernelContext& context,
                                       const std::string& tokenizer_fingerprint)
    : deck_(deck),
      world_(communicators.world),
      activations_("evaluation", *kernels.transfer.memory),
      scratch_("evaluation scratch", *kernels.transfer.memory),
      context_{&scratch_, context.stream, context.staging},
      model_(deck, store, communicators, kernels) {
  context_.tf32 = deck.run.tf32();
  together(world_, [&] {
    session_.emplace(deck);
    session_->check_weights(tokenizer_fingerprint, "data.train");
    task_ = session_->task(world_, {});
  });
  limits_ = same_on_all_ranks(prediction_limits(task_, deck.evaluate), world_);
  model_.lay(activations_, scratch_, limits_, /*training=*/false);
}

void TrainingEvaluation::commit_memory() {
  for (Arena* arena : {&activations_, &scratch_}) {
    arena->commit();
    arena->rewind();
  }
  model_.lay(activations_, scratch_, limits_, /*training=*/false);
}

std::string TrainingEvaluation::path(std::int64_t step, const char* ending) const {
  return fmt::format("{}/evaluations/step-{:08}{}", deck_.run.dir, step, ending);
}

bool TrainingEvaluation::is_done(std::int64_t step) const {
  std::int32_t done = 0;
  on_root(world_, [&] { done = std::filesystem::exists(path(step, ".json")); });
  return world_.all_reduce(done, ReduceOp::max) != 0;
}

bool TrainingEvaluation::measure(std::int64_t step, std::int64_t tokens_seen, const StopRequest* stop) {
  const double start = seconds_now();
  const auto predictions =
      predict(task_, deck_.evaluate, predictor_of(model_, context_, session_->decoding()), world_, {}, stop);
  if (!predictions) return false;
  on_root(world_, [&] {
    const MeasuredWeights weights{"", step, tokens_seen};
    const Json evaluation = evaluation_json(deck_, weights, *predictions, seconds_now() - start);
    const std::string folder = deck_.run.dir + "/evaluations";
    std::error_code code;
    std::filesystem::create_directory(folder, code);  // a run folder that was taken away is not made anew
    if (code) fail("cannot make the folder {}: {}", folder, code.message());
    publish_text_file(path(step, ".predictions.jsonl"), prediction_lines(*predictions));
    publish_text_file(path(step, ".json"), json_text(evaluation, 2) + "\n");
    for (const auto& line : average_lines(evaluation)) log_info("evaluation after step {}: {}", step, line);
  });
  return true;
}

}  // namespace flanmoe
