// Decoding with a KV cache and scoring of targets, against the plain forward pass.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

#include "base/error.hpp"
#include "model/model_state.hpp"
#include "model_fixture.hpp"

namespace flanmoe {
namespace {

using Ids = std::vector<std::int32_t>;
using testing::TestModel;
using testing::tiny_deck;

Deck with_room(Deck deck) {
  deck.moe.top_k = 2;
  deck.batch.target_length = 10;
  if (deck.model.decoder_only()) {
    // An untrained decoder with tied logits repeats its newest token, the EOS of the input, and what it writes hardly
    // depends on the input while its layers add little to the embeddings.
    deck.model.tied_logits = false;
    deck.model.init_scale = 4.0;
  }
  return deck;
}
Deck deck_for(bool sparse) { return with_room(tiny_deck(sparse)); }
/// Both families, dense and sparse.
std::vector<Deck> all_decks() {
  return {deck_for(false), deck_for(true), with_room(testing::tiny_palm(false)),
          with_room(testing::tiny_palm(false, "prefix")), with_room(testing::tiny_palm(true, "prefix"))};
}

/// Room for two rows at a time, so that a handful of inputs needs several batches.
BatchLimits small_limits(const Deck& deck) { return testing::limits_of(deck, 2); }

std::vector<Ids> some_inputs(const Deck& deck, std::size_t count) {
  std::mt19937 random(77);
  std::vector<Ids> inputs;
  for (std::size_t i = 0; i < count; ++i) {
    Ids ids = testing::random_ids(random, 3 + std::int64_t(i % 6), deck.model.vocabulary);
    ids.pop_back();
    inputs.push_back(ids);
  }
  return inputs;
}

/// The share of positions at which `target` (with its EOS when it ended early) is what the model finds most likely.
double hit_share(TestModel& test, const Ids& input, const Ids& target, bool ended) {
  PackedBatch batch;
  Ids encoder = input;
  encoder.push_back(1);
  Ids wanted = target;
  if (ended) wanted.push_back(1);
  Ids shifted(wanted.size(), 0);
  std::copy(wanted.begin(), wanted.end() - 1, shifted.begin() + 1);
  const auto fill = [](RaggedSide& side, const Ids& ids) {
    side.token_T = ids;
    side.row_first = {0, std::int64_t(ids.size())};
    side.segment_begin_S = {0};
    side.segment_count_S = {std::int32_t(ids.size())};
  };
  fill(batch.encoder, encoder);
  fill(batch.decoder, shifted);
  batch.target_T = wanted;
  StepStatistics statistics;
  test.model->evaluate(test.context, batch, {}, statistics);
  return statistics.hits / statistics.targets;
}

TEST(Generate, EveryTokenIsTheMostLikelyOneOfThePlainForward) {
  const Communicator world = Communicator::world();
  const Communicator self = world.split(world.rank(), 0, "alone");
  std::vector<Deck> decks = all_decks();
  for (const Deck& sparse : {deck_for(true), with_room(testing::tiny_palm(true, "prefix"))}) {
    Deck everything = sparse;
    everything.model.multiplicative_bias = true;
    everything.moe.router = "expert_choice";  // in the encoder
    everything.moe.shared_experts = 1;
    everything.moe.extra_feed_forward = true;
    everything.moe.bias_rate = 0.1;
    decks.push_back(everything);
  }
  for (Deck deck : decks) {
    // A whole target is a routing group and may overflow; single tokens never do. With slots for all both agree.
    deck.moe.capacity_factor_eval = deck.moe.router == "expert_choice" ? double(deck.moe.experts) : 0.0;
    TestModel test(deck, self, 1, "reference", DType::f64, small_limits(deck), false);
    const auto inputs = some_inputs(deck, 5);
    const auto outputs = generate_greedy(*test.model, test.context, inputs, 9);
    ASSERT_EQ(outputs.size(), inputs.size());
    std::size_t tokens = 0;
    for (const Ids& output : outputs) tokens += output.size();
    EXPECT_GT(tokens, 9U) << deck.model.family;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (outputs[i].empty()) continue;
      EXPECT_EQ(hit_share(test, inputs[i], outputs[i], outputs[i].size() < 9), 1.0)
          << i << " " << deck.model.family << " " << deck.model.attention;
    }
  }
}

TEST(Generate, LogitsOfADecoderOnlyModelAreThoseOfThePlainForward) {
  const Communicator world = Communicator::world();
  const Communicator self = world.split(world.rank(), 0, "alone");
  for (Deck deck :
       {testing::tiny_palm(false), testing::tiny_palm(false, "prefix"), testing::tiny_palm(true, "prefix")}) {
    deck.moe.capacity_factor_eval = 0.0;
    TestModel test(deck, self, 1, "reference", DType::f64, small_limits(deck), false);
    Model::State& s = test.model->state();
    const LayerContext c = s.context(test.context, false, 0);
    StepStatistics statistics;
    s.prepare(statistics);
    // One sequence is read in pieces, an input of five tokens first; row 1 of the cache.
    const Ids sequence{0, 7, 9, 4, 1, 12, 15, 3};
    std::vector<double> logits;
    s.decoder->expand_positions(c);
    for (std::size_t at = 0; at < sequence.size(); at += at == 0 ? 5 : 1) {
      const auto begin = sequence.begin() + std::ptrdiff_t(at);
      extend_rows(c, s, {{1, std::int32_t(at), Ids(begin, begin + (at == 0 ? 5 : 1))}}, statistics);
      const double* row = s.cache.logits_BV.row<double>(0);
      logits.insert(logits.end(), row, row + deck.model.vocabulary);
    }
    // The plain forward predicts the targets 12, 15, 3 and 1 from the same sequence.
    PackedBatch batch;
    append_row(batch.encoder, {7, 9, 4, 1});
    append_row(batch.decoder, {0, 12, 15, 3});
    batch.target_T = {12, 15, 3, 1};
    const std::vector<float> nll = test.model->evaluate(test.context, batch, {}, statistics);
    const double scale = s.cross_entropy_shape(0.0).logit_scale;
    for (std::size_t t = 0; t < 4; ++t) {
      const double* row = logits.data() + t * std::size_t(deck.model.vocabulary);
      double sum = 0;
      for (std::int64_t v = 0; v < deck.model.vocabulary; ++v) sum += std::exp(scale * row[v]);
      EXPECT_NEAR(nll[t], std::log(sum) - scale * row[batch.target_T[t]], 1e-6) << t << " " << deck.model.attention;
    }
  }
}

TEST(Generate, DoesNotDependOnRanksOrOnTheOtherRows) {
  const Communicator world = Communicator::world();
  const Communicator self = world.split(world.rank(), 0, "alone");
  for (const Deck& deck : {deck_for(true), with_room(testing::tiny_palm(true, "prefix"))}) {
    const auto inputs = some_inputs(deck, 7);
    TestModel one(deck, self, 1, "cpu", DType::f32, small_limits(deck), false);
    const auto expected = generate_greedy(*one.model, one.context, inputs, 8);
    for (int degree = 1; degree <= world.size(); ++degree) {
      if (world.size() % degree != 0 || deck.moe.experts % degree != 0) continue;
      TestModel test(deck, world, degree, "cpu", DType::f32, small_limits(deck), false);
      std::vector<Ids> mine;
      std::vector<std::size_t> index;
      for (std::size_t i = std::size_t(world.rank()); i < inputs.size(); i += std::size_t(world.size())) {
        mine.push_back(inputs[i]);
        index.push_back(i);
      }
      const auto outputs = generate_greedy(*test.model, test.context, mine, 8);
      for (std::size_t i = 0; i < index.size(); ++i) EXPECT_EQ(outputs[i], expected[index[i]]) << "degree " << degree;
    }
  }
}

/// Rows of this rank when requests are dealt one by one; the others' stay away.
std::vector<GenerateRequest> dealt(const std::vector<GenerateRequest>& all, const Communicator& world) {
  std::vector<GenerateRequest> mine;
  for (std::size_t i = std::size_t(world.rank()); i < all.size(); i += std::size_t(world.size()))
    mine.push_back(all[i]);
  return mine;
}

std::vector<GenerateRequest> some_requests(const Deck& deck, std::size_t count) {
  std::vector<GenerateRequest> requests;
  for (const Ids& input : some_inputs(deck, count)) requests.push_back({input, 1000 + requests.size() * 17});
  return requests;
}

TEST(Generate, BeamsAndSamplesDoNotDependOnRanksOrOnTheOtherRows) {
  const Communicator world = Communicator::world();
  const Communicator self = world.split(world.rank(), 0, "alone");
  for (const auto& [palm, beams] : {std::pair{false, true}, {false, false}, {true, true}}) {
    Deck deck = palm ? with_room(testing::tiny_palm(true, "prefix")) : deck_for(true);
    deck.evaluate.beams = beams ? 3 : 1;
    deck.evaluate.temperature = beams ? 0 : 1.3;
    const DecodingOptions options{.max_new_tokens = 8,
                                  .beams = deck.evaluate.beams,
                                  .length_penalty = palm ? 4.0 : 0.6,  // or its beams are content with the shortest
                                  .temperature = deck.evaluate.temperature,
                                  .top_p = 0.95};
    const auto requests = some_requests(deck, 7);
    TestModel one(deck, self, 1, "cpu", DType::f32, testing::limits_of(deck, 3), false);
    const auto expected = generate(*one.model, one.context, requests, options);
    std::set<Ids> different;
    for (const Generated& g : expected) different.insert(g.tokens);
    EXPECT_GT(different.size(), 2U);
    for (int degree = 1; degree <= world.size(); ++degree) {
      if (world.size() % degree != 0 || deck.moe.experts % degree != 0) continue;
      TestModel test(deck, world, degree, "cpu", DType::f32, testing::limits_of(deck, 7), false);
      const auto outputs = generate(*test.model, test.context, dealt(requests, world), options);
      for (std::size_t i = 0; i < outputs.size(); ++i) {
        const Generated& e = expected[i * std::size_t(world.size()) + std::size_t(world.rank())];
        EXPECT_EQ(outputs[i].tokens, e.tokens) << "degree " << degree;
        EXPECT_EQ(outputs[i].ended, e.ended);
      }
    }
  }
}

/// T5 with and without tied logits, and a decoder-only model.
std::vector<Deck> five_word_decks() {
  std::vector<Deck> decks{deck_for(true), deck_for(true), with_room(testing::tiny_palm(true, "prefix"))};
  decks[1].model.tied_logits = true;
  for (Deck& deck : decks) {
    deck.model.vocabulary = 5;
    deck.moe.capacity_factor_eval = 0.0;  // as above: whole targets must not overflow where single tokens do not
  }
  return decks;
}

/// Every continuation of at most two tokens that ends, with its log-likelihood by the plain forward.
std::vector<std::pair<Ids, double>> all_continuations(TestModel& test, const Ids& input) {
  ScoreRequest request{input, {{}}};
  for (const std::int32_t a : {0, 2, 3, 4}) {
    request.targets.push_back({a});
    for (const std::int32_t b : {0, 2, 3, 4}) request.targets.push_back({a, b});
  }
  const auto scores = score_targets(*test.model, test.context, {request})[0];
  std::vector<std::pair<Ids, double>> all;
  for (std::size_t i = 0; i < scores.size(); ++i) all.emplace_back(request.targets[i], scores[i]);
  return all;
}

TEST(Generate, BeamSearchEqualsExhaustiveSearch) {
  const Communicator world = Communicator::world();
  const Communicator self = world.split(world.rank(), 0, "alone");
  std::set<std::size_t> lengths;
  for (Deck deck : five_word_decks()) {
    deck.evaluate.beams = 16;
    TestModel test(deck, self, 1, "reference", DType::f64, testing::limits_of(deck, 40), false);
    for (const GenerateRequest& request : some_requests(deck, 6)) {
      const auto all = all_continuations(test, request.input);
      for (const double alpha : {0.0, 0.6, 8.0}) {
        const auto score = [&](const auto& text) {
          return text.second / length_penalty(alpha, std::int64_t(text.first.size()) + 1);
        };
        const auto best =
            std::max_element(all.begin(), all.end(), [&](const auto& a, const auto& b) { return score(a) < score(b); });
        const DecodingOptions options{.max_new_tokens = 3, .beams = 16, .length_penalty = alpha};
        const auto found = generate(*test.model, test.context, {request, request}, options);
        EXPECT_TRUE(found[1].ended);
        EXPECT_EQ(found[1].tokens, best->first)
            << deck.model.family << " tied " << deck.model.tied_logits << " alpha " << alpha;
        EXPECT_EQ(found[0].tokens, found[1].tokens);
        lengths.insert(best->first.size());
      }
    }
  }
  EXPECT_GE(lengths.size(), 2U);
}

TEST(Generate, SampledTextsComeAsOftenAsTheyAreLikely) {
  const Communicator world = Communicator::world();
  const Communicator self = world.split(world.rank(), 0, "alone");
  for (Deck deck : five_word_decks()) {
    deck.evaluate.temperature = 1.0;
    TestModel test(deck, self, 1, "reference", DType::f64, testing::limits_of(deck, 100), false);
    const Ids input = {4, 2, 3};
    constexpr int draws = 3000;
    std::vector<GenerateRequest> requests;
    for (std::uint64_t id = 0; id < draws; ++id) requests.push_back({input, id});
    const DecodingOptions options{.max_new_tokens = 3, .temperature = 1.0};
    std::map<Ids, int> count;
    for (const Generated& g : generate(*test.model, test.context, requests, options)) {
      if (g.ended) ++count[g.tokens];
    }
    for (const auto& [text, log_likelihood] : all_continuations(test, input)) {
      const double p = std::exp(log_likelihood), error = std::sqrt(p * (1 - p) / draws);
      EXPECT_NEAR(double(count[text]) / draws, p, 4 * error)
          << deck.model.family << " tied " << deck.model.tied_logits << ", " << text.size() << " tokens";
    }
  }
}

TEST(Generate, StopsBehindTheTokenThatCompletesAStopString) {
  const Communicator world = Communicator::world();
  const Communicator self = world.split(world.rank(), 0, "alone");
  const Deck deck = deck_for(true);
  TestModel test(deck, self, 1, "cpu", DType::f32, small_limits(deck), false);
  const auto requests = some_requests(deck, 7);
  DecodingOptions options{.max_new_tokens = 8};
  const auto open = generate(*test.model, test.context, requests, options);
  options.ends = [](const Ids& ids) { return ids.size() >= 2 && ids.back() % 2 == 0; };
  const auto stopped = generate(*test.model, test.context, requests, options);
  for (std::size_t i = 0; i < open.size(); ++i) {
    Ids expected;
    bool over = false;
    for (const std::int32_t id : open[i].tokens) {
      expected.push_back(id);
      over = options.ends(expected);
      if (over) break;
    }
    EXPECT_EQ(stopped[i].tokens, expected);
    EXPECT_EQ(stopped[i].ended, over || open[i].ended);
  }
}

TEST(Generate, RefusesBeamsAndSamplesWithoutTheirMemory) {
  const Communicator world = Communicator::world();
  const Communicator self = world.split(world.rank(), 0, "alone");
  const Deck deck = deck_for(false);
  TestModel test(deck, self, 1, "cpu", DType::f32, small_limits(deck), false);
  EXPECT_THROW(generate(*test.model, test.context, {}, {.max_new_tokens = 4, .beams = 2}), LogicError);
  EXPECT_THROW(generate(*test.model, test.context, {}, {.max_new_tokens = 4, .temperature = 1}), LogicError);
  EXPECT_THROW(generate(*test.model, test.context, {}, {.max_new_tokens = 4, .beams = 3}), LogicError);
}

TEST(Score, SharedInputsGiveTheSameAsOneTargetAtATime) {
  const Communicator world = Communicator::world();
  for (const Deck& deck :
       {deck_for(true), with_room(testing::tiny_palm(true)), with_room(testing::tiny_palm(true, "prefix"))}) {
    const int degree = deck.moe.experts % world.size() == 0 ? world.size() : 1;
    TestModel test(deck, world, degree, "reference", DType::f64, small_limits(deck), false);
    std::mt19937 random(5);
    std::vector<ScoreRequest> together;
    for (const Ids& input : some_inputs(deck, world.rank() == 0 ? 3 : 1)) {
      ScoreRequest request{input, {}};
      for (int t = 0; t < 3; ++t) request.targets.push_back(testing::random_ids(random, 2 + t, deck.model.vocabulary));
      together.push_back(request);
    }
    std::vector<ScoreRequest> apart;
    for (const ScoreRequest& request : together) {
      for (const Ids& target : request.targets) apart.push_back({request.input, {target}});
    }
    const auto a = score_targets(*test.model, test.context, together);
    const auto b = score_targets(*test.model, test.context, apart);
    std::size_t next = 0;
    for (const auto& scores : a) {
      for (const double score : scores) {
        EXPECT_LT(score, 0.0);
        EXPECT_NEAR(score, b[next++][0], 1e-5 * std::abs(score));
      }
    }
    EXPECT_EQ(next, b.size());
  }
}

TEST(Score, IsTheLogLikelihoodOfEveryTokenAndItsEnd) {
  const Communicator world = Communicator::world();
  const Communicator self = world.split(world.rank(), 0, "alone");
  const Deck deck = deck_for(false);
  TestModel test(deck, self, 1, "reference", DType::f64, small_limits(deck), false);
  // Probabilities of all one-token continuations and of stopping at once sum to one.
  ScoreRequest request{{4, 5, 6}, {}};
  double total = std::exp(score_targets(*test.model, test.context, {{request.input, {{}}}})[0][0]);
  for (std::int32_t v = 0; v < deck.model.vocabulary; ++v) {
    if (v == 1) continue;
    const double first_and_end = score_targets(*test.model, test.context, {{request.input, {{v}}}})[0][0];
    EXPECT_LT(first_and_end, 0.0);
    total += std::exp(first_and_end);
  }
  EXPECT_LT(total, 1.0);  // longer continuations hold the rest
  EXPECT_GT(total, 0.0);
}

}  // namespace
}  // namespace flanmoe
