#include "data/batch.hpp"

#include <algorithm>
#include <limits>
#include <optional>

#include "base/error.hpp"
#include "data/block_pool.hpp"
#include "data/mixture.hpp"
#include "data/packing.hpp"
#include "data/patterns.hpp"
#include "data/text_objective.hpp"

namespace flanmoe {
namespace {

std::vector<ShardReader> open_shards(const Deck& deck, std::int64_t vocabulary) {
  const auto paths = expand_paths("data.train", deck.data.train);
  const auto pool = std::make_shared<BlockPool>(kBlockBytes);
  std::vector<ShardReader> shards;
  for (const std::string& path : paths) shards.emplace_back(path, pool);
  const TokenizerIdentity& first = shards[0].tokenizer();
  for (const ShardReader& shard : shards) {
    const TokenizerIdentity& other = shard.tokenizer();
    if (other != first) {
      usage_fail("data.train: shards disagree on the tokenizer: {} has {} ({} pieces), {} has {} ({} pieces)",
                 shards[0].path(), first.fingerprint, first.vocabulary, shard.path(), other.fingerprint,
                 other.vocabulary);
    }
  }
  if (first.vocabulary > vocabulary) {
    usage_fail("model.vocabulary: is {}, but the tokenizer of shard {} has {} pieces", vocabulary, shards[0].path(),
               first.vocabulary);
  }
  return shards;
}

/// One example of a step. What a plan holds follows from lengths alone.
struct PlannedSegment {
  std::int32_t task = 0;
  std::int64_t row = 0;
  std::int64_t draw = 0;
  std::int64_t item = 0;  // pairs: example of the task; text: piece
  SideLengths lengths;
};

struct StepPlan {
  std::int64_t step = -1;
  std::vector<PlannedSegment> segments;  // rows ascend
  std::int64_t inputs = 0, targets = 0;
};

void begin_segment(RaggedSide& side, std::int64_t tokens) {
  side.segment_begin_S.push_back(std::int32_t(side.tokens()));
  side.segment_count_S.push_back(std::int32_t(tokens));
}

}  // namespace

struct BatchSource::State {
  BatchDeck batch;
  std::vector<ShardReader> shards;
  std::vector<MixtureTask> tasks;
  std::vector<MixtureEntry> mixture;
  std::vector<std::string> notes;
  std::optional<TextObjective> objective;  // when there is text
  std::optional<TaskSampler> sampler;
  std::vector<ItemOrder> orders;
  StepPlan plan;  // of the step read last: microbatches of a step share it

  State(const Deck& deck, std::int64_t vocabulary);
  std::int64_t piece_length() const { return objective ? objective->piece_length() : 1; }
  double draws_per_step(std::uint64_t seed) const;
  std::pair<const ShardReader*, std::int64_t> pair(const MixtureTask& task, std::int64_t item) const;
  SideLengths lengths(const MixtureTask& task, std::int64_t item, std::uint32_t step, std::uint64_t draw) const;
  void make_plan(std::int64_t step);
  void append(const PlannedSegment& segment, PackedBatch& out) const;
};

BatchSource::State::State(const Deck& deck, std::int64_t vocabulary)
    : batch(deck.batch), shards(open_shards(deck, vocabulary)), tasks(select_tasks(deck.data, shards)) {
  const auto is_text = [](const MixtureTask& task) { return task.is_text; };
  if (std::any_of(tasks.begin(), tasks.end(), is_text)) objective.emplace(deck, shards[0].tokenizer());
  notes = set_rates(deck.data, piece_length(), tasks);
  const auto seed = std::uint64_t(deck.run.seed);
  sampler.emplace(seed, tasks);
  // A text piece has a row of its own, so text alone makes exactly one draw a row.
  const bool only_text = std::all_of(tasks.begin(), tasks.end(), is_text);
  const double draws = only_text ? double(batch.rows) : draws_per_step(seed);
  const std::int64_t most = only_text ? batch.rows : std::numeric_limits<std::int64_t>::max();
  for (const MixtureTask& task : tasks) {
    orders.emplace_back(seed, task, draws, most);
    mixture.push_back({task.name, task.items, task.rate, task.is_text});
  }
}

/// Expected draws of a step, from packing a few rows of random items; it only sets the stride of the orders.
double BatchSource::State::draws_per_step(std::uint64_t seed) const {
  constexpr std::int64_t kRows = 128;
  const RandomKey key{seed, RandomPurpose::data_order, 0, 0xffffffffU};
  RowPacker packer(kRows, batch.input_length, batch.target_length);
  for (std::uint64_t draw = 0;; ++draw) {
    const MixtureTask& task = tasks[sampler->draw(0, draw)];
    const auto item = std::int64_t(key.below(std::uint64_t(task.items), draw, 0));
    const SideLengths sides = lengths(task, item, 0, draw);
    if (packer.place(sides.inputs, sides.targets, task.is_text) < 0) {
      return double(draw) / double(kRows) * double(batch.rows);
    }
  }
}

/// Shard and number of an example of a pair task.
std::pair<const ShardReader*, std::int64_t> BatchSource::State::pair(const MixtureTask& task, std::int64_t item) const {
  const auto part = std::upper_bound(task.parts.begin(), task.parts.end(), item,
                                     [](std::int64_t x, const TaskPart& p) { return x < p.first; }) -
                    1;
  const ShardReader& shard = shards[part->shard];
  return {&shard, shard.group_example(part->group, item - part->first)};
}

SideLengths BatchSource::State::lengths(const MixtureTask& task, std::int64_t item, std::uint32_t step,
                                        std::uint64_t draw) const {
  if (task.is_text) return objective->lengths(length_of_piece(task, item, piece_length()), step, draw);
  const auto [shard, example] = pair(task, item);
  return {std::min(shard->input_length(example), batch.input_length - 1) + 1,
          std::min(shard->target_length(example), batch.target_length - 1) + 1};
}

void BatchSource::State::make_plan(std::int64_t step) {
  if (plan.step == step) return;
  plan = StepPlan();
  RowPacker packer(batch.rows, batch.input_length, batch.target_length);
  std::vector<std::int64_t> drawn(tasks.size(), 0);
  for (std::int64_t draw = 0;; ++draw) {
    const std::size_t t = sampler->draw(std::uint32_t(step), std::uint64_t(draw));
    PlannedSegment segment{std::int32_t(t), 0, draw, orders[t].item(step, drawn[t]++), {}};
    segment.lengths = lengths(tasks[t], segment.item, std::uint32_t(step), std::uint64_t(draw));
    segment.row = packer.place(segment.lengths.inputs, segment.lengths.targets, tasks[t].is_text);
    if (segment.row < 0) break;
    plan.inputs += segment.lengths.inputs;
    plan.targets += segment.lengths.targets;
    plan.segments.push_back(segment);
  }
  plan.step = step;
}

/// Reads the tokens of a segment and appends it to both sides.
void BatchSource::State::append(const PlannedSegment& segment, PackedBatch& out) const {
  const MixtureTask& task = tasks[std::size_t(segment.task)];
  begin_segment(out.encoder, segment.lengths.inputs);
  begin_segment(out.decoder, segment.lengths.targets);
  out.segment_row_S.push_back(std::int32_t(segment.row - out.first_row));
  out.segment_task_S.push_back(segment.task);
  const std::size_t inputs_before = out.encoder.token_T.size(), targets_before = out.target_T.size();
  if (task.is_text) {
    objective->apply(read_piece(shards, task, segment.item, piece_length()), std::uint32_t(out.step),
                     std::uint64_t(segment.draw), out.encoder.token_T, out.target_T);
  } else {
    const auto [shard, example] = pair(task, segment.item);
    const std::int64_t first = shard->token_offset(example);
    const auto side = [reader = shard](TokenIds& tokens, std::int64_t from, std::int64_t count) {
      tokens.resize(tokens.size() + std::size_t(count), reader->tokenizer().eos);
      reader->read_tokens(from, std::span(tokens).last(std::size_t(count)).first(std::size_t(count - 1)));
    };
    side(out.encoder.token_T, first, segment.lengths.inputs);
    side(out.target_T, first + shard->input_length(example), segment.lengths.targets);
  }
  FLANMOE_EXPECT(std::int64_t(out.encoder.token_T.size() - inputs_before) == segment.lengths.inputs &&
                     std::int64_t(out.target_T.size() - targets_before) == segment.lengths.targets,
                 "a segment differs from its plan");
  out.decoder.token_T.push_back(0);
  out.decoder.token_T.insert(out.decoder.token_T.end(), out.target_T.begin() + std::ptrdiff_t(targets_before),
                             out.target_T.end() - 1);
}

BatchSource::BatchSource(const Deck& deck, std::int64_t vocabulary)
    : state_(std::make_unique<State>(deck, vocabulary)) {}
BatchSource::~BatchSource() = default;

PackedBatch BatchSource::read(std::int64_t step, std::int64_t first_row, std::int64_t rows) {
  State& s = *state_;
  FLANMOE_EXPECT(step >= 0 && step <= std::numeric_limits<std::uint32_t>::max(), "step {}", step);
  FLANMOE_EXPECT(first_row >= 0 && rows >= 0 && first_row + rows <= s.batch.rows, "rows [{}, {}) of {}", first_row,
                 first_row + rows, s.batch.rows);
  s.make_plan(step);
  PackedBatch out;
  out.step = step;
  out.first_row = first_row;
  out.rows = rows;
  out.step_rows = s.batch.rows;
  out.step_encoder_tokens = s.plan.inputs;
  out.step_target_tokens = s.plan.targets;
  out.step_segments = std::int64_t(s.plan.segments.size());
  auto segment = std::lower_bound(s.plan.segments.begin(), s.plan.segments.end(), first_row,
                                  [](const PlannedSegment& x, std::int64_t row) { return x.row < row; });
  for (std::int64_t row = first_row; row < first_row + rows; ++row) {
    out.encoder.row_first.push_back(out.encoder.tokens());
    out.decoder.row_first.push_back(out.decoder.tokens());
    for (; segment != s.plan.segments.end() && segment->row == row; ++segment) s.append(*segment, out);
  }
  out.encoder.row_first.push_back(out.encoder.tokens());
  out.decoder.row_first.push_back(out.decoder.tokens());
  return out;
}

const std::vector<MixtureEntry>& BatchSource::mixture() const { return state_->mixture; }
const std::vector<std::string>& BatchSource::mixture_notes() const { return state_->notes; }
const std::string& BatchSource::tokenizer_fingerprint() const { return state_->shards[0].tokenizer().fingerprint; }

}  // namespace flanmoe
