// A run as text and as a page.
#include "train/watch.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>

#include "data_fixture.hpp"
#include "evaluate/chart.hpp"
#include "train/run_folder.hpp"
#include "train/run_report.hpp"

namespace flanmoe {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

StepRecord record(std::int64_t step) {
  StepRecord r;
  r.step = step;
  r.loss = 8.0 / double(step);
  r.accuracy = 0.25;
  r.tokens = 1000;
  r.tokens_seen = 1000 * step;
  r.step_seconds = 2;
  r.moe.push_back({.layer = "encoder/layer_01", .load_E = {0.25, 0.75, 0, 0}, .drop_fraction = 0.125});
  return r;
}

class Watch : public ::testing::Test {
 protected:
  void write_run(std::int64_t steps) const {
    write_file(paths_.deck(), "[run]\nstage = pretrain\nsteps = 40\n");
    MetricsFile metrics(paths_.metrics(), 0);
    for (std::int64_t step = 1; step <= steps; ++step) metrics.append(record(step));
  }
  const TemporaryFolder folder_;
  const RunPaths paths_{folder_.path().string()};
};

TEST_F(Watch, ShowsWhereARunIs) {
  write_run(10);

  const RunView run = read_run(paths_.dir);
  const std::string text = run_text(run, 100);

  EXPECT_TRUE(is_running(run));
  EXPECT_THAT(text, HasSubstr("pretrain, running"));
  EXPECT_THAT(text, HasSubstr("step 10/40"));
  EXPECT_THAT(text, HasSubstr("25.0%"));
  EXPECT_THAT(text, HasSubstr("500 tokens/s, 2 s a step, 10000 tokens so far"));
  EXPECT_THAT(text, HasSubstr("0:00:20 in steps, 0:01:00 left"));
  EXPECT_THAT(text, HasSubstr("last step loss 0.8000, accuracy 0.250"));
  // A fair share is 0.25: once, three times, never, never.
  EXPECT_THAT(text, HasSubstr("encoder/layer_01   [-@  ] most 3.00x  dropped 12.5%"));
}

TEST_F(Watch, ARunThatIsSilentIsNotCalledRunning) {
  write_run(10);
  std::filesystem::last_write_time(paths_.metrics(),
                                   std::filesystem::file_time_type::clock::now() - std::chrono::seconds(90));
  EXPECT_THAT(run_text(read_run(paths_.dir), 100), HasSubstr("pretrain, no step for 0:01:30"));
}

TEST_F(Watch, AFinishedRunHasNoTimeLeft) {
  write_run(40);
  const std::string text = run_text(read_run(paths_.dir), 100);
  EXPECT_THAT(text, HasSubstr("pretrain, finished"));
  EXPECT_THAT(text, Not(HasSubstr("left")));
}

TEST_F(Watch, ARunWithoutAStepAndAFolderWithoutARun) {
  EXPECT_THAT(error_of([&] { read_run(paths_.dir); }), HasSubstr("found no deck.resolved in it"));
  write_run(0);
  EXPECT_THAT(run_text(read_run(paths_.dir), 100), HasSubstr("no step yet of 40"));
}

TEST_F(Watch, ManyExpertsShareColumns) {
  RunView run;
  run.dir = "r";
  run.stage = "pretrain";
  run.steps = 2;
  StepRecord r = record(1);
  r.moe.front().load_E.assign(1024, 1.0 / 1024);
  run.records.push_back(r);
  for (const int width : {80, 100, 160}) {
    const std::string text = run_text(run, width);
    EXPECT_THAT(text, HasSubstr("experts a column"));
    for (std::size_t begin = 0, end = 0; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
      EXPECT_LE(int(end - begin), width) << text.substr(begin, end - begin);
    }
  }
}

TEST_F(Watch, ALossThatIsNoNumberIsShownAsSuch) {
  write_run(3);
  RunView run = read_run(paths_.dir);
  run.records[1].loss = NAN;
  EXPECT_THAT(run_text(run, 100), HasSubstr("8.0000 ^?_ 2.6667   (from 2.6667 to 8.0000)"));
  for (StepRecord& r : run.records) r.loss = NAN;
  EXPECT_THAT(run_text(run, 100), HasSubstr("nan ??? nan"));
}

TEST_F(Watch, ADamagedDeckIsNamed) {
  for (const char* steps : {"many", "12x", "", "0", "99999999999999999999"}) {
    write_file(paths_.deck(), fmt::format("[run]\nstage = pretrain\nsteps = {}\n", steps));
    EXPECT_THAT(error_of([&] { read_run(paths_.dir); }),
                HasSubstr("deck.resolved: run.steps: expected a whole number at least 1, found "))
        << steps;
  }
  write_file(paths_.deck(), "[run]\nstage = pretrain\n");
  EXPECT_THAT(error_of([&] { read_run(paths_.dir); }), HasSubstr("deck.resolved: expected run.steps, found none"));
}

TEST_F(Watch, PageHasPlotsAndNothingFromTheNetwork) {
  write_run(40);
  write_file(paths_.summary(),
             R"({"steps": 40, "last_session": {"prediction": {"machine": "m", "predicted_step_seconds": 1.5,
                 "measured_step_seconds": 2, "predicted_over_measured": 0.75,
                 "part_seconds": {"attention": {"predicted": 0.5, "measured": 1}},
                 "collectives_of_rank_0_per_step": {"all_reduce": {"predicted_bytes": 8, "measured_bytes": 8.0}}}}})");

  const std::string html = run_report_html(paths_.dir);

  for (const char* part : {"Loss</text>", "Router entropy</text>", "Load of the experts", "Time of a step",
                           "predicted_over_measured", "0.75", "stage = pretrain", "all_reduce, bytes a step"}) {
    EXPECT_THAT(html, HasSubstr(part));
  }
  for (const char* part : {"src=", "href=", "url(", "@import", "<script"}) EXPECT_THAT(html, Not(HasSubstr(part)));
}

TEST_F(Watch, PageShowsMemoryWherePredictionsAreMissing) {
  write_run(40);
  write_file(paths_.summary(), R"({"steps": 40, "memory": {"peak_resident_mib_per_rank": [1234.5]}})");
  const std::string html = run_report_html(paths_.dir);
  EXPECT_THAT(html, HasSubstr("peak_resident_mib_per_rank"));
  EXPECT_THAT(html, HasSubstr("1234.5"));
}

TEST(Chart, CurvesThatAreFlat) {
  CurveChart chart{.title = "t", .x_label = "x", .y_label = "y", .curves = {}, .low_y = 0, .high_y = {}};
  chart.curves.push_back({"zero", {{0, 0}, {2, 0}}, false});
  EXPECT_THAT(curve_chart(chart), HasSubstr("points=\"70.0,320.0 740.0,320.0 \"")) << "0 is the bottom of the axis";
  EXPECT_THAT(curve_chart(chart), HasSubstr(">1</text>"));
  chart.curves = {{"constant", {{0, 5}, {2, 5}}, false}};
  chart.low_y.reset();
  EXPECT_THAT(curve_chart(chart), HasSubstr("points=\"70.0,190.0 740.0,190.0 \""));
}

TEST(Chart, CurvesKeepTheirRangeAndLeaveOutWhatIsNotFinite) {
  CurveChart chart{.title = "t", .x_label = "x", .y_label = "y", .curves = {}, .low_y = {}, .high_y = {}};
  chart.curves.push_back({"a", {{0, 1}, {1, std::nan("")}, {2, 3}}, false});
  EXPECT_THAT(curve_chart(chart), HasSubstr("points=\"70.0,320.0 740.0,60.0 \""));
  chart.curves = {{"none", {}, false}};
  EXPECT_THAT(curve_chart(chart), HasSubstr("nothing to draw"));
}

TEST(Chart, LongCurvesAreThinned) {
  CurveChart chart{
      .title = "t", .x_label = "x", .y_label = "y", .curves = {{"a", {}, false}}, .low_y = {}, .high_y = {}};
  for (int i = 0; i < 100000; ++i) chart.curves[0].points.emplace_back(i, i % 2);
  EXPECT_LT(curve_chart(chart).size(), 20000U);
}

}  // namespace
}  // namespace flanmoe
