#include "data/batch.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "data/text_objective.hpp"
#include "data_fixture.hpp"

namespace flanmoe {
namespace {

using testing::HasSubstr;

constexpr std::int32_t kVocabulary = 30000;

/// Tokens of a pair are its own: input tokens count up from first_token, target tokens follow.
Example pair_of(const std::string& task, std::int32_t first_token, int inputs, int targets) {
  Example e;
  for (int t = 0; t < inputs; ++t) e.input.push_back(first_token + t);
  for (int t = 0; t < targets; ++t) e.target.push_back(first_token + inputs + t);
  e.task = task;
  e.split = "train";
  return e;
}

/// Two shards of three tasks of pairs with lengths from 1 to 40, some longer than a row.
void write_pairs(const TemporaryFolder& folder) {
  std::vector<Example> shards[2];
  std::int32_t token = 200;
  for (int i = 0; i < 300; ++i) {
    const int inputs = 1 + (i * 7) % 40, targets = 1 + (i * 5) % 12;
    shards[i % 2].push_back(pair_of(i % 3 == 0 ? "a" : i % 5 == 0 ? "b" : "c", token, inputs, targets));
    token += inputs + targets;
  }
  write_shard(folder.file("pairs-0.h5"), shards[0], small_tokenizer(kVocabulary));
  write_shard(folder.file("pairs-1.h5"), shards[1], small_tokenizer(kVocabulary));
}

/// Documents of two shards; every token of the text is different, so that places can be told apart.
std::int64_t write_text(const TemporaryFolder& folder, const std::string& prefix = "text") {
  std::int32_t token = 10000;
  std::int64_t documents = 0;
  for (int s = 0; s < 2; ++s) {
    std::vector<Example> shard;
    for (int i = 0; i < 60; ++i) {
      Example e;
      for (int t = 0; t < (i * 13) % 37; ++t) e.input.push_back(token++);
      e.has_target = false;
      e.task = i % 7 == 3 ? "other_text" : "text";
      e.split = i % 6 == 5 ? "test" : "train";
      documents += e.split == "train" && e.task == "text" ? 1 : 0;
      shard.push_back(e);
    }
    write_shard(folder.file(prefix + "-" + std::to_string(s) + ".h5"), shard, small_tokenizer(kVocabulary));
  }
  return documents;
}

Deck deck_of(const TemporaryFolder& folder, const std::string& files) {
  Deck deck;
  deck.batch.rows = 12;
  deck.batch.input_length = 32;
  deck.batch.target_length = 10;
  deck.data.train = folder.file(files);
  return deck;
}

void expect_same(const PackedBatch& x, const PackedBatch& y) {
  EXPECT_EQ(x.step, y.step);
  EXPECT_EQ(x.encoder.token_T, y.encoder.token_T);
  EXPECT_EQ(x.encoder.row_first, y.encoder.row_first);
  EXPECT_EQ(x.encoder.segment_begin_S, y.encoder.segment_begin_S);
  EXPECT_EQ(x.encoder.segment_count_S, y.encoder.segment_count_S);
  EXPECT_EQ(x.decoder.token_T, y.decoder.token_T);
  EXPECT_EQ(x.decoder.row_first, y.decoder.row_first);
  EXPECT_EQ(x.decoder.segment_begin_S, y.decoder.segment_begin_S);
  EXPECT_EQ(x.decoder.segment_count_S, y.decoder.segment_count_S);
  EXPECT_EQ(x.target_T, y.target_T);
  EXPECT_EQ(x.segment_row_S, y.segment_row_S);
  EXPECT_EQ(x.segment_task_S, y.segment_task_S);
  EXPECT_EQ(x.step_encoder_tokens, y.step_encoder_tokens);
  EXPECT_EQ(x.step_target_tokens, y.step_target_tokens);
  EXPECT_EQ(x.step_segments, y.step_segments);
}

TokenIds segment(const RaggedSide& side, const TokenIds& tokens, std::size_t s) {
  const auto begin = tokens.begin() + side.segment_begin_S[s];
  return {begin, begin + side.segment_count_S[s]};
}

/// Tokens of one row of a batch on one side, segments of the row one after another.
void expect_side_is_consistent(const PackedBatch& batch, const RaggedSide& side, std::int64_t longest) {
  ASSERT_EQ(std::int64_t(side.row_first.size()), batch.rows + 1);
  EXPECT_EQ(side.row_first.front(), 0);
  EXPECT_EQ(side.row_first.back(), side.tokens());
  std::int64_t at = 0;
  for (std::size_t s = 0; s < side.segment_begin_S.size(); ++s) {
    ASSERT_EQ(side.segment_begin_S[s], at);
    const auto row = std::size_t(batch.segment_row_S[s]);
    at += side.segment_count_S[s];
    ASSERT_GE(side.segment_begin_S[s], side.row_first[row]) << "segment " << s << " begins before its row";
    ASSERT_LE(at, side.row_first[row + 1]) << "segment " << s << " crosses the end of its row";
  }
  EXPECT_EQ(at, side.tokens());
  for (std::size_t row = 0; row < std::size_t(batch.rows); ++row) {
    EXPECT_LE(side.row_first[row + 1] - side.row_first[row], longest);
    EXPECT_GT(side.row_first[row + 1], side.row_first[row]) << "row " << row << " is empty";
  }
}

class Batches : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    write_pairs(folder_);
    write_text(folder_);
    deck_ = deck_of(folder_, GetParam());
  }
  TemporaryFolder folder_;
  Deck deck_;
};

// Invariant 1: a batch depends on (deck, seed, step) alone.
TEST_P(Batches, AreTheSameWhateverWasReadBefore) {
  BatchSource running(deck_, kVocabulary);
  for (std::int64_t step = 0; step < 30; ++step) {
    const PackedBatch batch = running.read(step, 0, 12);
    if (step % 7 != 0) continue;
    BatchSource restarted(deck_, kVocabulary);
    expect_same(restarted.read(step, 0, 12), batch);
  }
  BatchSource fresh(deck_, kVocabulary);
  expect_same(running.read(3, 0, 12), fresh.read(3, 0, 12));
}

TEST_P(Batches, OfAnyRowsAreThatPartOfTheStep) {
  BatchSource source(deck_, kVocabulary);
  for (std::int64_t step = 0; step < 5; ++step) {
    const PackedBatch whole = source.read(step, 0, 12);
    for (const std::int64_t rows : {1, 3, 4, 5, 12}) {
      BatchSource other(deck_, kVocabulary);
      TokenIds encoder, decoder, target;
      std::vector<std::int32_t> row, task, count;
      for (std::int64_t first = 0; first < 12; first += rows) {
        const PackedBatch part = other.read(step, first, std::min<std::int64_t>(rows, 12 - first));
        EXPECT_EQ(part.first_row, first);
        EXPECT_EQ(part.step_rows, 12);
        EXPECT_EQ(part.step_encoder_tokens, whole.encoder.tokens());
        EXPECT_EQ(part.step_target_tokens, whole.decoder.tokens());
        EXPECT_EQ(part.step_segments, std::int64_t(whole.segment_row_S.size()));
        expect_side_is_consistent(part, part.encoder, 32);
        encoder.insert(encoder.end(), part.encoder.token_T.begin(), part.encoder.token_T.end());
        decoder.insert(decoder.end(), part.decoder.token_T.begin(), part.decoder.token_T.end());
        target.insert(target.end(), part.target_T.begin(), part.target_T.end());
        for (const std::int32_t r : part.segment_row_S) row.push_back(r + std::int32_t(first));
        task.insert(task.end(), part.segment_task_S.begin(), part.segment_task_S.end());
        count.insert(count.end(), part.decoder.segment_count_S.begin(), part.decoder.segment_count_S.end());
      }
      EXPECT_EQ(encoder, whole.encoder.token_T);
      EXPECT_EQ(decoder, whole.decoder.token_T);
      EXPECT_EQ(target, whole.target_T);
      EXPECT_EQ(row, whole.segment_row_S);
      EXPECT_EQ(task, whole.segment_task_S);
      EXPECT_EQ(count, whole.decoder.segment_count_S);
    }
  }
}

TEST_P(Batches, DependOnSeedAndStep) {
  BatchSource source(deck_, kVocabulary);
  EXPECT_NE(source.read(0, 0, 12).encoder.token_T, source.read(1, 0, 12).encoder.token_T);
  Deck other = deck_;
  other.run.seed = 2;
  EXPECT_NE(source.read(0, 0, 12).encoder.token_T, BatchSource(other, kVocabulary).read(0, 0, 12).encoder.token_T);
}

TEST_P(Batches, HaveWholeSegmentsInRowsAndShiftedDecoderInputs) {
  BatchSource source(deck_, kVocabulary);
  for (std::int64_t step = 0; step < 40; ++step) {
    const PackedBatch batch = source.read(step, 0, 12);
    expect_side_is_consistent(batch, batch.encoder, 32);
    expect_side_is_consistent(batch, batch.decoder, 10);
    EXPECT_EQ(batch.segment_row_S.size(), batch.encoder.segment_begin_S.size());
    EXPECT_EQ(batch.segment_row_S.size(), batch.decoder.segment_begin_S.size());
    ASSERT_EQ(batch.target_T.size(), batch.decoder.token_T.size());
    for (std::size_t s = 0; s < batch.segment_row_S.size(); ++s) {
      const TokenIds target = segment(batch.decoder, batch.target_T, s);
      TokenIds shifted = {0};
      shifted.insert(shifted.end(), target.begin(), target.end() - 1);
      ASSERT_EQ(segment(batch.decoder, batch.decoder.token_T, s), shifted);
      ASSERT_EQ(target.back(), kEos);
      ASSERT_EQ(segment(batch.encoder, batch.encoder.token_T, s).back(), kEos);
    }
  }
}

TEST_P(Batches, ArePackedNextFit) {
  BatchSource source(deck_, kVocabulary);
  const auto is_text = [&](std::int32_t task) {
    return source.mixture()[std::size_t(task)].task.find("text") != std::string::npos;
  };
  for (std::int64_t step = 0; step < 40; ++step) {
    const PackedBatch batch = source.read(step, 0, 12);
    for (std::size_t s = 1; s < batch.segment_row_S.size(); ++s) {
      const auto row = std::size_t(batch.segment_row_S[s]);
      const auto before = std::size_t(batch.segment_row_S[s - 1]);
      if (row == before) {
        ASSERT_FALSE(is_text(batch.segment_task_S[s]) || is_text(batch.segment_task_S[s - 1]));
        continue;
      }
      ASSERT_EQ(row, before + 1);
      if (is_text(batch.segment_task_S[s]) || is_text(batch.segment_task_S[s - 1])) continue;
      const auto filled = [&](const RaggedSide& side) { return side.row_first[before + 1] - side.row_first[before]; };
      ASSERT_TRUE(filled(batch.encoder) + batch.encoder.segment_count_S[s] > 32 ||
                  filled(batch.decoder) + batch.decoder.segment_count_S[s] > 10)
          << "step " << step << ", segment " << s << " had room in the row before";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shards, Batches, testing::Values("pairs-*.h5", "text-*.h5", "*.h5"),
                         [](const auto& info) -> std::string {
                           return info.index == 0 ? "pairs" : info.index == 1 ? "text" : "both";
                         });

TEST(PairBatches, HoldExamplesTrimmedToTheRow) {
  const TemporaryFolder folder;
  write_pairs(folder);
  std::map<std::int32_t, Example> by_first;
  for (const char* name : {"pairs-0.h5", "pairs-1.h5"}) {
    const ShardReader shard(folder.file(name));
    for (std::int64_t i = 0; i < shard.size(); ++i) by_first[shard.read(i).input[0]] = shard.read(i);
  }
  BatchSource source(deck_of(folder, "pairs-*.h5"), kVocabulary);
  std::set<std::int32_t> seen;
  for (std::int64_t step = 0; step < 200; ++step) {
    const PackedBatch batch = source.read(step, 0, 12);
    for (std::size_t s = 0; s < batch.segment_row_S.size(); ++s) {
      const TokenIds input = segment(batch.encoder, batch.encoder.token_T, s);
      const Example& e = by_first.at(input[0]);
      seen.insert(input[0]);
      TokenIds expected = e.input, target = e.target;
      expected.resize(std::min<std::size_t>(expected.size(), 31));
      expected.push_back(kEos);
      target.resize(std::min<std::size_t>(target.size(), 9));
      target.push_back(kEos);
      ASSERT_EQ(input, expected);
      ASSERT_EQ(segment(batch.decoder, batch.target_T, s), target);
      ASSERT_EQ(source.mixture()[std::size_t(batch.segment_task_S[s])].task, e.task);
    }
  }
  EXPECT_EQ(seen.size(), 300U) << "200 steps draw each of 300 examples about nine times";
}

TEST(PairBatches, NeverHoldExcludedTasks) {
  const TemporaryFolder folder;
  write_pairs(folder);
  Deck deck = deck_of(folder, "pairs-*.h5");
  deck.data.exclude_tasks = "b";
  BatchSource source(deck, kVocabulary);
  std::set<std::int32_t> excluded;
  for (const char* name : {"pairs-0.h5", "pairs-1.h5"}) {
    const ShardReader shard(folder.file(name));
    for (std::int64_t i = 0; i < shard.size(); ++i) {
      const Example e = shard.read(i);
      if (e.task != "b") continue;
      excluded.insert(e.input.begin(), e.input.end());
      excluded.insert(e.target.begin(), e.target.end());
    }
  }
  ASSERT_GT(excluded.size(), 100U);
  ASSERT_EQ(source.mixture().size(), 2U);
  for (std::int64_t step = 0; step < 100; ++step) {
    const PackedBatch batch = source.read(step, 0, 12);
    for (const TokenIds* tokens : {&batch.encoder.token_T, &batch.target_T}) {
      for (const std::int32_t token : *tokens) ASSERT_FALSE(excluded.contains(token));
    }
  }
}

TEST(PairBatches, FollowTheRatesOfTheMixture) {
  const TemporaryFolder folder;
  std::vector<Example> examples;
  for (int i = 0; i < 700; ++i) {
    examples.push_back(pair_of(i < 400 ? "x" : i < 600 ? "y" : "z", 200 + i, 5, 2));
  }
  write_shard(folder.file("p.h5"), examples, small_tokenizer(kVocabulary));
  Deck deck = deck_of(folder, "p.h5");
  deck.data.weights = "z=3";
  BatchSource source(deck, kVocabulary);
  std::map<std::string, double> counts;
  double n = 0;
  for (std::int64_t step = 0; step < 1000; ++step) {
    const PackedBatch batch = source.read(step, 0, 12);
    for (const std::int32_t t : batch.segment_task_S) ++counts[source.mixture()[std::size_t(t)].task];
    n += double(batch.segment_task_S.size());
  }
  for (const auto& [task, rate] : std::map<std::string, double>{{"x", 4.0 / 9}, {"y", 2.0 / 9}, {"z", 3.0 / 9}}) {
    EXPECT_LE(std::abs(counts[task] / n - rate), 3 * std::sqrt(rate * (1 - rate) / n)) << task;
  }
}

/// Joins inputs and targets of a corrupted piece again.
TokenIds uncorrupted(const TokenIds& inputs, const TokenIds& targets, std::int32_t first_sentinel) {
  TokenIds piece;
  std::int32_t sentinel = first_sentinel;
  for (std::size_t i = 0; i + 1 < inputs.size(); ++i) {
    if (inputs[i] != sentinel) {
      piece.push_back(inputs[i]);
      continue;
    }
    auto at = std::find(targets.begin(), targets.end(), sentinel);
    if (at == targets.end()) throw Error("a sentinel of the inputs is missing in the targets");
    for (++at; at + 1 != targets.end() && *at != sentinel - 1; ++at) piece.push_back(*at);
    --sentinel;
  }
  return piece;
}

/// Objective and family.
class TextBatches : public testing::TestWithParam<std::pair<const char*, const char*>> {};

TEST_P(TextBatches, OfAnEpochHoldEveryTokenExactlyOnce) {
  const TemporaryFolder folder;
  const std::int64_t documents = write_text(folder);
  Deck deck = deck_of(folder, "text-*.h5");
  deck.data.tasks = "text";
  deck.data.objective = GetParam().first;
  deck.model.family = GetParam().second;
  const std::int64_t both = deck.batch.input_length + deck.batch.target_length;
  std::int64_t longest = 0;
  std::multiset<std::int32_t> expected;
  for (const char* name : {"text-0.h5", "text-1.h5"}) {
    const ShardReader shard(folder.file(name));
    for (std::int64_t i = 0; i < shard.size(); ++i) {
      const Example e = shard.read(i);
      if (e.split == "train" && e.task == "text") expected.insert(e.input.begin(), e.input.end());
    }
  }
  BatchSource source(deck, kVocabulary);
  ASSERT_EQ(source.mixture().size(), 1U);
  const std::int64_t pieces = source.mixture()[0].examples;
  for (std::int64_t epoch = 0; epoch < 2; ++epoch) {
    std::multiset<std::int32_t> tokens;
    std::int64_t eos = 0;
    for (std::int64_t p = epoch * pieces; p < (epoch + 1) * pieces; ++p) {
      const PackedBatch row = source.read(p / 12, p % 12, 1);
      ASSERT_EQ(row.segment_row_S.size(), 1U);
      TokenIds piece;
      longest = std::max(longest, row.encoder.tokens() + row.decoder.tokens());
      if (deck.data.objective == "causal_lm") {
        EXPECT_EQ(row.encoder.segment_count_S[0], 0);
        piece = row.target_T;
      } else if (deck.data.objective == "prefix_lm") {
        piece.assign(row.encoder.token_T.begin(), row.encoder.token_T.end() - 1);
        piece.insert(piece.end(), row.target_T.begin(), row.target_T.end() - 1);
      } else {
        piece = uncorrupted(row.encoder.token_T, row.target_T, kVocabulary - 1);
      }
      for (const std::int32_t token : piece) {
        if (token == kEos) {
          ++eos;
        } else {
          tokens.insert(token);
        }
      }
    }
    EXPECT_EQ(eos, documents);
    EXPECT_EQ(tokens, expected);
  }
  EXPECT_LE(longest, both);
  // A decoder-only model has both sides in one row and fills it.
  const bool fills = deck.model.decoder_only() && deck.data.objective != "span_corruption";
  EXPECT_TRUE(longest == both || !fills) << longest;
}

INSTANTIATE_TEST_SUITE_P(Objectives, TextBatches,
                         testing::Values(std::pair{"span_corruption", "t5"}, std::pair{"prefix_lm", "t5"},
                                         std::pair{"span_corruption", "palm"}, std::pair{"prefix_lm", "palm"},
                                         std::pair{"causal_lm", "palm"}),
                         [](const auto& info) {
                           return std::string(info.param.first) + "_" + std::string(info.param.second);
                         });

TEST(TextPieces, AreTheStreamOfDocumentsInShardOrder) {
  const TemporaryFolder folder;
  write_text(folder);
  std::vector<ShardReader> shards;
  TokenIds stream;
  for (const char* name : {"text-0.h5", "text-1.h5"}) {
    shards.emplace_back(folder.file(name));
    for (std::int64_t i = 0; i < shards.back().size(); ++i) {
      const Example e = shards.back().read(i);
      if (e.split != "train" || e.task != "text") continue;
      stream.insert(stream.end(), e.input.begin(), e.input.end());
      stream.push_back(kEos);
    }
  }
  DataDeck deck;
  deck.tasks = "text";
  for (const std::int64_t length : {2, 7, 33, 500}) {
    std::vector<MixtureTask> tasks = select_tasks(deck, shards);
    set_rates(deck, length, tasks);
    TokenIds joined;
    for (std::int64_t p = 0; p < tasks[0].items; ++p) {
      const TokenIds piece = read_piece(shards, tasks[0], p, length);
      ASSERT_EQ(std::int64_t(piece.size()), length_of_piece(tasks[0], p, length));
      joined.insert(joined.end(), piece.begin(), piece.end());
    }
    EXPECT_EQ(joined, stream) << "pieces of " << length;
  }
}

TEST(TextObjective, PrefixIsCutAnywhereWithEqualProbability) {
  Deck deck;
  deck.batch.input_length = deck.batch.target_length = 9;
  deck.data.objective = "prefix_lm";
  const TextObjective objective(deck, small_tokenizer());
  ASSERT_EQ(objective.piece_length(), 9);
  std::vector<double> counts(9, 0);
  for (std::uint32_t step = 0; step < 8000; ++step) ++counts.at(std::size_t(objective.lengths(9, step, 4).inputs - 2));
  EXPECT_EQ(counts[8], 0);
  for (std::size_t at = 0; at < 8; ++at) EXPECT_NEAR(counts[at], 1000, 3 * std::sqrt(1000 * 7.0 / 8));
}

TEST(BatchSource, WrongDecksAreUsageErrors) {
  const TemporaryFolder folder;
  write_pairs(folder);
  write_text(folder);
  const auto message = [&](auto&& change, std::int64_t vocabulary = kVocabulary) {
    Deck deck = deck_of(folder, "*.h5");
    change(deck);
    EXPECT_THROW(BatchSource(deck, vocabulary), UsageError);
    return error_of([&] { BatchSource(deck, vocabulary); });
  };
  EXPECT_THAT(message([](Deck& d) { d.data.tasks = "c textt"; }), HasSubstr("'textt' matches none of the 5 tasks"));
  EXPECT_THAT(message([](Deck& d) { d.data.objective = "gpt"; }), HasSubstr("found 'gpt'"));
  EXPECT_THAT(message([](Deck& d) { d.batch.input_length = 2; }), HasSubstr("too short"));
  EXPECT_THAT(message([](Deck& d) { d.batch.input_length = d.batch.target_length = 3000; }),
              HasSubstr("the tokenizer has 100"));
  EXPECT_THAT(message([](Deck&) {}, kVocabulary - 1), HasSubstr("model.vocabulary: is 29999"));
  EXPECT_THAT(message([&](Deck& d) { d.data.train += folder.file(" none.h5"); }), HasSubstr("no file matches"));
  auto tokenizer = small_tokenizer(kVocabulary);
  tokenizer.fingerprint = "other";
  write_shard(folder.file("z.h5"), {pair_of("a", 300, 2, 2)}, tokenizer);
  EXPECT_THAT(message([](Deck&) {}), HasSubstr("disagree on the tokenizer"));
}

}  // namespace
}  // namespace flanmoe
