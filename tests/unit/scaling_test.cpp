// Scaling studies: which layouts, and what is made of their results.
#include "train/scaling.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <set>

#include "data/batch.hpp"
#include "data_fixture.hpp"
#include "train/metrics.hpp"
#include "train/run_folder.hpp"

namespace flanmoe {
namespace {

using ::testing::HasSubstr;

Deck deck_of(std::int64_t rows, std::int64_t experts) {
  Deck deck;
  deck.batch.rows = rows;
  deck.moe.router = experts > 0 ? "top_k" : "none";
  if (experts > 0) deck.moe.experts = experts;
  return deck;
}

std::vector<std::string> names(const std::vector<ScalingPoint>& points) {
  std::vector<std::string> all;
  for (const ScalingPoint& point : points) {
    all.push_back(point.name() + (point.strong ? " strong" : "") + (point.weak ? " weak" : ""));
  }
  return all;
}

TEST(Scaling, LayoutsOfBothStudies) {
  EXPECT_EQ(names(scaling_points(deck_of(8, 4), {2, 1}, {}, true, true)),
            (std::vector<std::string>{"1x1_rows8 strong weak", "2x1_rows8 strong", "1x2_rows8 strong",
                                      "2x1_rows16 weak", "1x2_rows16 weak"}));
  EXPECT_EQ(names(scaling_points(deck_of(12, 6), {4}, {2, 4}, true, false)),
            (std::vector<std::string>{"2x2_rows12 strong"}));
  EXPECT_EQ(names(scaling_points(deck_of(8, 0), {1, 4}, {}, false, true)),
            (std::vector<std::string>{"1x1_rows8 weak", "4x1_rows32 weak"}));
}

TEST(Scaling, RowsThatCannotBeSharedOutAreRefused) {
  EXPECT_THAT(error_of([] { scaling_points(deck_of(8, 4), {3}, {}, true, false); }),
              HasSubstr("batch.rows = 8 does not divide by 3 ranks"));
  EXPECT_THAT(error_of([] { scaling_points(deck_of(8, 4), {2}, {3}, true, false); }), HasSubstr("no split"));
  EXPECT_THAT(error_of([] { scaling_points(deck_of(8, 4), {}, {}, true, false); }), HasSubstr("at least one"));
}

ScalingResult result(int ranks, int expert, std::int64_t rows, double seconds, double loss) {
  ScalingResult r;
  r.point = {ranks, expert, rows, rows == 8, ranks == 1 || rows > 8};
  r.step_seconds = seconds;
  r.predicted_seconds = 1.5;
  r.tokens_per_second = 100 / seconds;
  r.measured_parts = {{"attention", seconds / 2}, {"experts", seconds / 2}};
  r.predicted_parts = {{"attention", 1.0}, {"experts", 0.5}};
  r.losses = {5, loss};
  return r;
}

std::vector<ScalingResult> results() {
  return {result(1, 1, 8, 2.0, 4), result(2, 1, 8, 1.25, 4), result(2, 2, 8, 1.0, 4.002), result(2, 2, 16, 2.5, 3)};
}

TEST(Scaling, EfficienciesByHand) {
  const auto all = results();
  EXPECT_DOUBLE_EQ(strong_efficiency(all, all[0]), 1.0);
  EXPECT_DOUBLE_EQ(strong_efficiency(all, all[1]), 0.8);
  EXPECT_DOUBLE_EQ(strong_efficiency(all, all[2]), 1.0);
  EXPECT_DOUBLE_EQ(weak_efficiency(all, all[3]), 0.8);
}

TEST(Scaling, LossesAreComparedWithinABatch) {
  auto all = results();
  EXPECT_EQ(loss_difference(all, all[1]), 0.0);
  EXPECT_NEAR(loss_difference(all, all[2]), 5e-4, 1e-9);
  EXPECT_EQ(loss_difference(all, all[3]), 0.0);
  all[2].losses[1] = std::nan("");
  EXPECT_FALSE(loss_difference(all, all[2]) <= 1);
  all[1].losses.pop_back();
  EXPECT_TRUE(std::isinf(loss_difference(all, all[1])));
}

TEST(Scaling, TablesAndPictures) {
  const auto all = results();
  const std::string csv = scaling_csv(all);
  EXPECT_THAT(csv, HasSubstr("peak_mib,attention_seconds,predicted_attention_seconds,experts_seconds"));
  EXPECT_THAT(csv, HasSubstr("\n2,1,2,8,1.25,1.5,80,0.8000,,0,0.0,0.0,0.625,1,0.625,0.5\n"));
  EXPECT_THAT(scaling_table(all), HasSubstr("80.0%"));
  EXPECT_THAT(scaling_time_svg(all), HasSubstr("1 x 2, 16 rows, experts: 1.25 s"));
  EXPECT_THAT(scaling_efficiency_svg(all), HasSubstr("strong: 2, 1"));
  EXPECT_THAT(scaling_efficiency_svg(all), HasSubstr("weak: 2, 0.8"));
  EXPECT_THAT(scaling_prediction_svg(all), HasSubstr("predicted: 2.5, 1.5"));
}

TEST(Scaling, ReadsTheMedianWithoutTheFirstStep) {
  const TemporaryFolder folder;
  const std::string dir = folder.path().string();
  EXPECT_FALSE(read_scaling_result(dir, {}).has_value());
  MetricsFile metrics(dir + "/metrics.jsonl", 0);
  const std::vector<double> seconds = {9, 1, 3, 2};
  for (std::size_t i = 0; i < seconds.size(); ++i) {
    StepRecord record;
    record.step = std::int64_t(i) + 1;
    record.step_seconds = seconds[i];
    record.tokens = 100;
    metrics.append(record);
  }
  write_file(dir + "/summary.json", R"({"memory": {"announced_mib_per_rank": [5, 7], "peak_resident_mib_per_rank": [6]},
      "last_session": {"prediction": {"predicted_step_seconds": 1.5,
                                      "part_seconds": {"experts": {"predicted": 1, "measured": 2}}}}})");
  const auto result = read_scaling_result(dir, {});
  ASSERT_TRUE(result.has_value());
  EXPECT_EQ(result->step_seconds, 2);
  EXPECT_EQ(result->tokens_per_second, 50);
  EXPECT_EQ(result->announced_mib, 7);
  EXPECT_EQ(result->predicted_seconds, 1.5);
  EXPECT_EQ(result->measured_parts.at("experts"), 2);
  EXPECT_EQ(result->losses.size(), 4U);
}

TEST(Scaling, RandomPairsOfAnotherDeckHaveAnotherName) {
  const Deck deck = deck_of(4, 0);
  std::set<std::string> names = {random_pairs_name(deck)};
  for (const auto& change : std::vector<std::function<void(Deck&)>>{
           [](Deck& d) { ++d.batch.input_length; }, [](Deck& d) { ++d.batch.target_length; },
           [](Deck& d) { ++d.model.vocabulary; }, [](Deck& d) { d.data.split = "another/split"; }}) {
    Deck other = deck;
    change(other);
    EXPECT_TRUE(names.insert(random_pairs_name(other)).second) << random_pairs_name(other);
    EXPECT_EQ(random_pairs_name(other).find('/'), std::string::npos);
  }
  Deck rows = deck;
  rows.batch.rows = 99;  // pairs fill any number of rows
  EXPECT_EQ(random_pairs_name(rows), random_pairs_name(deck));
}

TEST(Scaling, RandomPairsFillTheRows) {
  const TemporaryFolder folder;
  Deck deck = deck_of(4, 0);
  deck.batch.input_length = 12;
  deck.batch.target_length = 8;
  deck.data.train = folder.file("random.h5");
  write_random_pairs(deck.data.train, deck, 16);
  BatchSource source(deck, deck.model.vocabulary);
  const PackedBatch batch = source.read(0, 0, 4);
  EXPECT_EQ(batch.encoder.tokens(), 4 * 12);
  EXPECT_EQ(batch.decoder.tokens(), 4 * 8);
}

}  // namespace
}  // namespace flanmoe
