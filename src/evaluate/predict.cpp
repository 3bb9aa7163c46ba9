#include "evaluate/predict.hpp"

#include <algorithm>
#include <numeric>

#include "base/log.hpp"
#include "base/timer.hpp"
#include "data/patterns.hpp"
#include "evaluate/answer.hpp"
#include "parallel/together.hpp"

namespace flanmoe {
namespace {

constexpr double kSecondsBetweenReports = 5.0;

/// Targets to score for one example: the choices (when ranked), then the right target unless it is one of them.
struct Candidates {
  std::vector<TokenIds> targets;
  std::size_t choices = 0;
  std::size_t right = 0;  // index of the right target
};

Candidates candidates_of(const Example& example, bool rank) {
  Candidates c;
  if (rank) c.targets = example.choices;
  c.choices = c.targets.size();
  c.right = std::size_t(std::find(c.targets.begin(), c.targets.end(), example.target) - c.targets.begin());
  if (c.right == c.targets.size()) c.targets.push_back(example.target);
  return c;
}

void check_example(const Example& e, std::int64_t ordinal) {
  if (e.choices.empty()) return;
  if (e.gold < 0 || e.gold >= std::int64_t(e.choices.size()) || e.choice_bytes.size() != e.choices.size()) {
    fail("evaluation example {} (task {}, template {}): {} choices, {} choice lengths, right choice {}", ordinal,
         e.task, e.template_name, e.choices.size(), e.choice_bytes.size(), e.gold);
  }
}

void record_generation(Prediction& p, const Example& e, const Generated& output, const PredictionTask& task) {
  const Extraction rule = p.outcome.info.extraction;
  const bool chain_of_thought = e.variant.starts_with("cot") && rule != Extraction::whole;
  std::vector<std::string> golds = {e.answer};
  // Without a stored answer the target is the answer, or holds rationale and answer.
  if (e.answer.empty()) {
    const std::string target = task.decode(e.target);
    golds[0] = chain_of_thought ? extract_answer(target, AnswerKind::text, true) : target;
  }
  golds.insert(golds.end(), e.more_answers.begin(), e.more_answers.end());
  const AnswerKind kind = kind_of_answer(rule, golds[0]);
  const std::string text = cut_at_stop(task.decode(output.tokens), task.stop);
  const std::string answer = extract_answer(text, kind, chain_of_thought);
  p.outcome.generated = true;
  p.outcome.exact_match = matches_any_answer(answer, golds, kind);
  p.outcome.generated_tokens = std::int64_t(output.tokens.size());
  p.outcome.unfinished = !output.ended;
  p.record["output"] = text;
  p.record["answer"] = answer;
  p.record["gold"] = golds[0];
  if (golds.size() > 1) p.record["golds"] = golds;
  p.record["exact_match"] = p.outcome.exact_match;
  p.record["unfinished"] = p.outcome.unfinished;
  if (p.outcome.info.score != ScoreRule::rouge_l) return;
  for (const auto& gold : golds) p.outcome.rouge_l = std::max(p.outcome.rouge_l, rouge_l(text, gold));
  p.record["rouge_l"] = p.outcome.rouge_l;
}

void record_scores(Prediction& p, const Example& e, const Candidates& candidates, const std::vector<double>& scores,
                   const PredictionTask& task) {
  FLANMOE_EXPECT(scores.size() == candidates.targets.size(), "{} scores for {} targets", scores.size(),
                 candidates.targets.size());
  p.outcome.target_nll = -scores[candidates.right];
  p.outcome.target_tokens = std::int64_t(e.target.size()) + 1;  // with EOS
  p.record["target"] = task.decode(e.target);
  p.record["target_nll"] = p.outcome.target_nll;
  p.record["target_tokens"] = p.outcome.target_tokens;
  if (candidates.choices == 0) return;
  const std::vector<double> log_likelihoods(scores.begin(), scores.begin() + std::ptrdiff_t(candidates.choices));
  const auto best = best_choice(log_likelihoods), best_norm = best_choice(per_byte(log_likelihoods, e.choice_bytes));
  p.outcome.choices = std::int64_t(candidates.choices);
  p.outcome.acc = best == e.gold;
  p.outcome.acc_norm = best_norm == e.gold;
  Json texts = Json::array();
  for (const auto& choice : e.choices) texts.push_back(task.decode(choice));
  p.record["choices"] = texts;
  p.record["choice_bytes"] = e.choice_bytes;
  p.record["log_likelihoods"] = log_likelihoods;
  p.record["gold_choice"] = e.gold;
  p.record["acc"] = p.outcome.acc;
  p.record["acc_norm"] = p.outcome.acc_norm;
}

Prediction start_record(const PredictionTask& task, std::size_t i) {
  const Example& e = task.examples[i];
  Prediction p;
  p.ordinal = task.ordinals[i];
  p.outcome.info = task.infos[i];
  p.outcome.task = e.task;
  p.outcome.category = e.category;
  p.outcome.variant = e.variant;
  p.outcome.held_out = matches_any(task.held_out, e.task);
  p.outcome.trimmed = std::int64_t(e.input.size()) + 1 > task.longest_input;
  p.record["example"] = p.ordinal;
  p.record["task"] = e.task;
  p.record["category"] = e.category;
  p.record["variant"] = e.variant;
  p.record["template"] = e.template_name;
  p.record["held_out"] = p.outcome.held_out;
  if (!p.outcome.info.benchmark.empty()) p.record["benchmark"] = p.outcome.info.benchmark;
  p.record["input_tokens"] = e.input.size();
  p.record["trimmed"] = p.outcome.trimmed;
  p.record["prompt"] = task.decode(e.input);
  return p;
}

/// One round on this rank: the examples [first, first+count).
std::vector<Prediction> predict_round(const PredictionTask& task, const EvaluateDeck& deck, const Predictor& predictor,
                                      std::size_t first, std::size_t count) {
  std::vector<GenerateRequest> inputs(count);
  std::vector<ScoreRequest> requests(count);
  std::vector<Candidates> candidates(count);
  for (std::size_t i = 0; i < count; ++i) {
    const Example& e = task.examples[first + i];
    candidates[i] = candidates_of(e, deck.rank);
    inputs[i] = {e.input, task.ids[first + i]};
    TokenIds& input = inputs[i].input;
    // What asks stands at the end of a prompt: an input over the limit loses its beginning.
    const std::int64_t over = std::int64_t(input.size()) + 1 - task.longest_input;
    if (over > 0) input.erase(input.begin(), input.begin() + over);
    requests[i] = {input, candidates[i].targets};
  }
  std::vector<Generated> outputs;
  if (deck.generate) {
    outputs = predictor.generate(inputs);
    FLANMOE_EXPECT(outputs.size() == count, "{} outputs for {} inputs", outputs.size(), count);
  }
  const auto scores = predictor.score(requests);
  FLANMOE_EXPECT(scores.size() == count, "{} results for {} requests", scores.size(), count);
  std::vector<Prediction> predictions;
  for (std::size_t i = 0; i < count; ++i) {
    const Example& e = task.examples[first + i];
    Prediction p = start_record(task, first + i);
    if (deck.generate) record_generation(p, e, outputs[i], task);
    record_scores(p, e, candidates[i], scores[i], task);
    predictions.push_back(std::move(p));
  }
  return predictions;
}

/// Every rank's predictions on rank 0. Ranks take turns, so that no rank holds more than one other rank's text.
std::vector<Prediction> gather(const std::vector<Prediction>& mine, const Communicator& world) {
  Json packed = Json::array();
  for (const auto& p : mine) packed.push_back(to_json(p));
  const std::string text = json_text(packed, -1);
  std::vector<Prediction> all;
  for (int rank = 0; rank < world.size(); ++rank) {
    const std::string theirs = world.broadcast(rank == world.rank() ? text : std::string(), rank);
    if (world.rank() != 0) continue;
    for (const Json& j : Json::parse(theirs)) all.push_back(prediction_from_json(j));
  }
  return all;
}

/// One line when inputs are too long. Collective.
void log_trimmed(const PredictionTask& task, const Communicator& world) {
  const auto mine = std::count_if(task.examples.begin(), task.examples.end(), [&](const Example& e) {
    return std::int64_t(e.input.size()) + 1 > task.longest_input;
  });
  const std::int64_t all = world.all_reduce(std::int64_t(mine), ReduceOp::sum);
  if (all == 0) return;
  log_info("{} of {} inputs are longer than {} tokens and lose their beginning", all, task.total, task.longest_input);
}

}  // namespace

void sort_by_example(std::vector<Prediction>& predictions) {
  std::sort(predictions.begin(), predictions.end(),
            [](const Prediction& a, const Prediction& b) { return a.ordinal < b.ordinal; });
}

Predictor predictor_of(Model& model, KernelContext& context, const DecodingOptions& options) {
  return {[&model, &context, options](const std::vector<GenerateRequest>& requests) {
            return generate(model, context, requests, options);
          },
          [&model, &context](const std::vector<ScoreRequest>& requests) {
            return score_targets(model, context, requests);
          }};
}

Json to_json(const Prediction& p) {
  const ExampleOutcome& o = p.outcome;
  const TaskInfo& i = o.info;
  return {p.ordinal,
          o.task,
          o.category,
          o.variant,
          {i.benchmark, i.group, i.part_of, int(i.extraction), int(i.score), i.chance},
          o.held_out,
          o.trimmed,
          o.generated,
          o.exact_match,
          o.rouge_l,
          o.unfinished,
          o.generated_tokens,
          o.choices,
          o.acc,
          o.acc_norm,
          o.target_nll,
          o.target_tokens,
          p.record};
}

Prediction prediction_from_json(const Json& j) {
  Prediction p;
  ExampleOutcome& o = p.outcome;
  std::size_t i = 0;
  const auto next = [&](auto& value) { value = j.at(i++).get<std::decay_t<decltype(value)>>(); };
  next(p.ordinal), next(o.task), next(o.category), next(o.variant);
  const Json& info = j.at(i++);
  o.info = {info.at(0), info.at(1), info.at(2), Extraction(info.at(3).get<int>()), ScoreRule(info.at(4).get<int>()),
            info.at(5)};
  next(o.held_out), next(o.trimmed), next(o.generated), next(o.exact_match), next(o.rouge_l), next(o.unfinished);
  next(o.generated_tokens), next(o.choices), next(o.acc), next(o.acc_norm), next(o.target_nll), next(o.target_tokens);
  next(p.record);
  return p;
}

std::string cut_at_stop(const std::string& text, const std::vector<std::string>& stop) {
  std::size_t end = text.size();
  for (const std::string& s : stop) end = std::min(end, text.find(s));
  return text.substr(0, end);
}

BatchLimits prediction_limits(const PredictionTask& task, const EvaluateDeck& deck) {
  BatchLimits limits;
  limits.longest_input = 1;
  limits.longest_target = deck.max_new_tokens + 1;
  std::int64_t most_choices = 1;
  for (const Example& e : task.examples) {
    limits.longest_input = std::max(limits.longest_input, std::int64_t(e.input.size()) + 1);
    limits.longest_target = std::max(limits.longest_target, std::int64_t(e.target.size()) + 1);
    if (!deck.rank) continue;
    most_choices = std::max(most_choices, std::int64_t(e.choices.size()) + 1);
    for (const auto& choice : e.choices) {
      limits.longest_target = std::max(limits.longest_target, std::int64_t(choice.size()) + 1);
    }
  }
  limits.longest_input = std::min(limits.longest_input, task.longest_input);
  // One input with all its targets must fit; more than that is cut into microbatches.
  const std::int64_t scored_rows = std::max(deck.batch_rows, most_choices);
  limits.rows = std::max(scored_rows, deck.batch_rows * deck.beams);
  limits.encoder_tokens = deck.batch_rows * limits.longest_input;
  limits.decoder_tokens = std::max(scored_rows * limits.longest_target, limits.rows);
  return limits;
}

std::optional<std::vector<Prediction>> predict(const PredictionTask& task, const EvaluateDeck& deck,
                                               const Predictor& predictor, const Communicator& world,
                                               const KeepRound& keep, const StopRequest* stop) {
  FLANMOE_EXPECT(
      std::accumulate(task.rounds.begin(), task.rounds.end(), std::int64_t(0)) == std::int64_t(task.examples.size()) &&
          task.ordinals.size() == task.examples.size() && task.ids.size() == task.examples.size() &&
          task.infos.size() == task.examples.size(),
      "the rounds do not cover the {} examples of this rank", task.examples.size());
  together(world, [&] {
    for (std::size_t i = 0; i < task.examples.size(); ++i) check_example(task.examples[i], task.ordinals[i]);
  });
  log_trimmed(task, world);
  std::vector<Prediction> all;
  const double start = seconds_now();
  double reported = 0;  // seconds after the start
  std::size_t first = 0;
  for (std::size_t round = 0; round < task.rounds.size(); ++round) {
    const auto count = std::size_t(task.rounds[round]);
    auto predictions = gather(predict_round(task, deck, predictor, first, count), world);
    if (keep) on_root(world, [&] { keep(predictions); });
    std::move(predictions.begin(), predictions.end(), std::back_inserter(all));
    first += count;
    const double seconds = seconds_now() - start;
    const bool last = round + 1 == task.rounds.size();
    if (!last && stop != nullptr && stop->made_anywhere(world)) return std::nullopt;
    if (!last && seconds - reported < kSecondsBetweenReports) continue;
    reported = seconds;
    const double share = double(round + 1) / double(task.rounds.size());
    log_progress(
        fmt::format("evaluate {:3.0f}% of {} examples | {:.1f} examples/s | {:.1f} min left", 100 * share, task.total,
                    share * double(task.total) / std::max(seconds, 1e-9), seconds * (1 - share) / share / 60),
        last);
  }
  sort_by_example(all);
  return all;
}

}  // namespace flanmoe
