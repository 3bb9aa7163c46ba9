#include "train/resume.hpp"

#include <array>

#include "base/error.hpp"
#include "base/log.hpp"
#include "checkpoint/checkpoint.hpp"
#include "parallel/together.hpp"
#include "train/summary.hpp"

namespace flanmoe {

void Resume::pass_over(const std::string& checkpoint, const std::string& why) {
  if (world_.rank() != 0 || !damaged_.emplace(checkpoint, why).second) return;
  log_warning("{} cannot be used, the one before it is tried: {}", checkpoint, why);
}

void Resume::refuse_other_training(const Start& start, const std::string& deck) const {
  const std::vector<std::string> differences = training_differences(deck, print_deck(deck_));
  if (differences.empty()) return;
  usage_fail(
      "run.dir: {} holds a run of {} steps that was trained with another deck; go on with that deck or choose "
      "another folder. What differs:\n  {}",
      deck_.run.dir, start.steps, fmt::join(differences, "\n  "));
}

Start Resume::decide_on_root() {
  const std::int64_t summarised = steps_of_summary(paths_.summary());
  const bool complete = summarised >= deck_.run.steps;
  for (const PublishedCheckpoint& published : checkpoints_of(deck_.run.dir)) {
    if (damaged_.contains(published.folder)) continue;
    CheckpointInfo info;
    try {
      info = read_checkpoint_info(published.folder);
    } catch (const UsageError&) {  // of another version of this program
      throw;
    } catch (const Error& error) {
      pass_over(published.folder, error.what());
      continue;
    }
    const Start start{published.folder, info.step, complete};
    refuse_other_training(start, info.deck);
    if (info.tokenizer_fingerprint != tokenizer_fingerprint_) {
      usage_fail("data.train: is written with tokenizer {}, but {} was trained with tokenizer {}",
                 tokenizer_fingerprint_, published.folder, info.tokenizer_fingerprint);
    }
    return start;
  }
  if (!damaged_.empty()) {
    std::string list;
    for (const auto& [folder, why] : damaged_) list += "\n  " + why;  // which names the file
    fail(
        "run.dir: none of the {} checkpoints in {} can be used, and all are as they were; without them the run would "
        "start over, in another folder or when they are moved away:{}",
        damaged_.size(), deck_.run.dir, list);
  }
  Start start{"", 0, complete};
  if (summarised > 0) {  // a complete run that was to leave no checkpoint
    start.steps = summarised;
    refuse_other_training(start, read_file(paths_.deck()));
    start.steps = 0;
  }
  return start;
}

Start Resume::decide() {
  Start start;
  on_root(world_, [&] { start = decide_on_root(); });
  start.checkpoint = world_.broadcast(start.checkpoint, 0);
  std::array<std::int64_t, 2> numbers = {start.steps, start.complete ? 1 : 0};
  world_.broadcast(std::span<std::int64_t>(numbers), 0);
  start.steps = numbers[0];
  start.complete = numbers[1] != 0;
  return start;
}

std::vector<DamagedCheckpoint> Resume::set_damaged_aside() {
  std::vector<DamagedCheckpoint> moved;
  on_root(world_, [&] {
    for (const PublishedCheckpoint& published : checkpoints_of(deck_.run.dir)) {
      const auto damaged = damaged_.find(published.folder);
      if (damaged == damaged_.end()) continue;
      moved.push_back({damaged->second, published.step, move_damaged_checkpoint(published)});
      log_warning("the damaged checkpoint of step {} is now {}", published.step, moved.back().now_at);
    }
    damaged_.clear();
  });
  return moved;
}

}  // namespace flanmoe
