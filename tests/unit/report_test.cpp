// The report of a small made-up tutorial folder equals values worked out by hand.
#include "evaluate/report.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <boost/property_tree/xml_parser.hpp>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/error.hpp"
#include "evaluate/svg.hpp"

namespace flanmoe {
namespace {

namespace fs = std::filesystem;

void write(const fs::path& path, const std::string& text) {
  fs::create_directories(path.parent_path());
  std::ofstream(path) << text;
}

Json score_row(double acc, double error, std::int64_t n) {
  return {
      {"n", n},        {"acc", acc}, {"acc_stderr", error}, {"exact_match", acc / 2}, {"exact_match_stderr", error / 2},
      {"chance", 0.25}};
}

Json task_row(const std::string& task, double acc) {
  Json row = score_row(acc, 0.03, 100);
  row["task"] = task;
  row["variant"] = "zero_shot";
  return row;
}

Json average_row(const std::string& set, const std::string& variant, double acc, double error) {
  Json row = score_row(acc, error, 400);
  row["set"] = set;
  row["variant"] = variant;
  return row;
}

std::string evaluation_text(const std::vector<Json>& tasks, const std::vector<Json>& averages) {
  Json j;
  j["tasks"] = Json(tasks);
  j["averages"] = Json(averages);
  return j.dump();
}

/// A folder with both models: 20 steps a stage, loss from 20 down to 1 (dense: 1 more), 4 experts in one layer.
class Folder {
 public:
  Folder() : path_(fs::temp_directory_path() / fmt::format("flanmoe_report_{}", getpid())) {
    fs::remove_all(path_);
    for (const int m : {0, 1}) {
      const fs::path model = path_ / report_models[std::size_t(m)];
      for (const char* stage : report_stages) write_training(model / stage, m);
      const double more = m == 0 ? 0.1 : 0.0;
      write_evaluation(model / "evaluate_pretrain", {task_row("t & <u>", 0.25)}, {});
      write_evaluation(model / "evaluate_direct", {task_row("t & <u>", 0.5 - more)}, {});
      write_evaluation(model / "evaluate_instructed", {task_row("t & <u>", 0.6)}, {});
      write_evaluation(
          model / "evaluate_instruct", {task_row("t & <u>", 0.3), task_row("other", 0.9)},
          {average_row("held_in", "zero_shot", 0.5 + more, 0.02), average_row("held_in", "few_shot", 0.3, 0.02),
           average_row("held_out", "zero_shot", 0.26, 0.02)});
    }
  }
  ~Folder() { fs::remove_all(path_); }
  std::string str() const { return path_.string(); }
  fs::path operator/(const std::string& name) const { return path_ / name; }

 private:
  static void write_training(const fs::path& folder, int m) {
    std::string lines;
    for (int step = 1; step <= 20; ++step) {
      Json line = {{"step", step}, {"loss", 21.0 - step + m}, {"moe", Json::object()}};
      if (m == 0)
        line["moe"]["encoder/layer_01"]["load"] = {0.5, 0.25, step == 20 ? 0.25 : 0.05, step == 20 ? 0.0 : 0.2};
      lines += line.dump() + "\n";
    }
    write(folder / "metrics.jsonl", lines + "{\"step\": 21, \"lo");  // killed while writing
    Json summary = {{"tokens_per_second", 1000.0 + m}, {"parameters", 5e6}, {"flops_per_token", 1e6}};
    if (m == 0) summary["share_of_roof"] = 0.4;
    write(folder / "summary.json", summary.dump());
  }
  static void write_evaluation(const fs::path& folder, const std::vector<Json>& tasks,
                               const std::vector<Json>& averages) {
    write(folder / "evaluation.json", evaluation_text(tasks, averages));
  }
  fs::path path_;
};

TEST(Report, NumbersEqualHandValues) {
  const Folder folder;
  const Report report = read_report(folder.str());
  const Json j = report_json(report);
  const Json& pretrain = j.at("training").at("moe").at("pretrain");
  EXPECT_EQ(pretrain.at("steps"), 20);
  EXPECT_EQ(pretrain.at("loss_first_tenth"), 19.5);  // (20 + 19) / 2
  EXPECT_EQ(pretrain.at("loss_last_tenth"), 1.5);    // (2 + 1) / 2
  EXPECT_EQ(pretrain.at("loss_first_step"), 20.0);
  EXPECT_EQ(pretrain.at("loss_last_step"), 1.0);
  EXPECT_EQ(pretrain.at("tokens_per_second"), 1000.0);
  EXPECT_EQ(pretrain.at("share_of_roof"), 0.4);
  EXPECT_TRUE(j.at("training").at("dense").at("finetune_direct").at("share_of_roof").is_null());
  EXPECT_EQ(j.at("training").at("dense").at("finetune_direct").at("loss_last_tenth"), 2.5);
  EXPECT_EQ(j.at("finetune_task"), "t & <u>");
  // Mean over the last two steps of share * 4 experts.
  const auto load = j.at("expert_load").at("encoder/layer_01").get<std::vector<double>>();
  ASSERT_EQ(load.size(), 4U);
  EXPECT_DOUBLE_EQ(load[0], 2.0);
  EXPECT_DOUBLE_EQ(load[2], 0.6);
  EXPECT_DOUBLE_EQ(load[3], 0.4);
}

TEST(Report, TheWinnerIsTheOneMoreThanTwoStandardErrorsAhead) {
  const Folder folder;
  const Report report = read_report(folder.str());
  std::map<std::string, std::string> winner;
  for (const auto& row : report.comparisons) winner[row.name] = row.winner();
  EXPECT_EQ(winner.at("held_in_zero_shot"), "moe");  // 0.1 apart, 2 * hypot(0.02, 0.02) = 0.057
  EXPECT_EQ(winner.at("finetune_direct"), "dense");  // 0.1 apart, 2 * hypot(0.03, 0.03) = 0.085
  EXPECT_EQ(winner.at("finetune_instructed"), "even");
  EXPECT_FALSE(winner.contains("held_in_cot")) << "not measured, so not shown";
  const Json j = report_json(report);
  const auto& rows = j.at("scores");
  const auto row =
      std::find_if(rows.begin(), rows.end(), [](const Json& r) { return r.at("name") == "finetune_direct"; });
  ASSERT_NE(row, rows.end());
  EXPECT_EQ(row->at("ahead"), "dense");
  EXPECT_EQ(row->at("setup"), "i");
  EXPECT_EQ(row->at("moe").at("acc").at("value"), 0.4);
  EXPECT_EQ(row->at("dense").at("acc").at("stderr"), 0.03);
  EXPECT_EQ(row->at("dense").at("exact_match").at("value"), 0.25);
}

TEST(Report, ChecksFailWhenTheyMust) {
  const Folder folder;
  const Report report = read_report(folder.str());
  std::map<std::string, bool> passed;
  for (const auto& check : report.checks) passed[check.name] = check.passed;
  EXPECT_EQ(passed.size(), 8U);
  EXPECT_TRUE(passed.at("moe: loss of pretrain fell"));
  EXPECT_TRUE(passed.at("dense: accuracy above chance on held-in tasks, zero-shot"));
  // 0.30 is above 0.25 by less than three standard errors of 0.02.
  EXPECT_FALSE(passed.at("moe: accuracy above chance on held-in tasks, few-shot"));
  EXPECT_FALSE(report.passed());
  EXPECT_EQ(report_json(report).at("passed"), false);
  EXPECT_NE(report_table(report).back().find("NOT all"), std::string::npos);

  std::string rising;
  for (int step = 1; step <= 20; ++step) rising += Json{{"step", step}, {"loss", 2.0 + step}}.dump() + "\n";
  write(folder / "dense/instruct/metrics.jsonl", rising);
  for (const auto& check : read_report(folder.str()).checks) {
    if (check.name == "dense: loss of instruct fell") {
      EXPECT_FALSE(check.passed);
    }
  }
}

TEST(Report, MissingAndDamagedFilesAreNamed) {
  const auto message = [](const Folder& folder) {
    try {
      read_report(folder.str());
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("no error");
  };
  for (const char* file : {"moe/pretrain/metrics.jsonl", "dense/finetune_instructed/summary.json",
                           "dense/evaluate_direct/evaluation.json", "moe/evaluate_pretrain/evaluation.json"}) {
    const Folder folder;
    fs::remove(folder / file);
    EXPECT_NE(message(folder).find(file), std::string::npos) << message(folder);
    write(folder / file, "{\"broken\n");
    EXPECT_NE(message(folder).find(file), std::string::npos) << message(folder);
  }
  const Folder folder;
  write(folder / "moe/instruct/summary.json", "{\"parameters\": 1}");
  EXPECT_NE(message(folder).find("\"tokens_per_second\" is missing"), std::string::npos) << message(folder);
  const Folder other;
  write(other / "dense/evaluate_direct/evaluation.json", evaluation_text({task_row("elsewhere", 0.5)}, {}));
  EXPECT_NE(message(other).find("was not measured"), std::string::npos) << message(other);
}

TEST(Report, ThePictureIsWellFormedAndShowsEveryScore) {
  const Folder folder;
  const Report report = read_report(folder.str());
  const std::string svg = report_svg(report);
  std::istringstream stream(svg);
  boost::property_tree::ptree tree;
  ASSERT_NO_THROW(boost::property_tree::read_xml(stream, tree)) << svg.substr(0, 2000);
  std::size_t curves = 0, titled = 0;
  for (const auto& [name, node] : tree.get_child("svg")) {
    curves += name == "polyline";
    titled += name == "rect" && node.get_child_optional("title").has_value();
  }
  EXPECT_EQ(curves, 2U * 2 * 4);  // raw and smoothed, two models, four stages
  EXPECT_EQ(titled, 2 * report.comparisons.size() + 4);
  EXPECT_NE(svg.find("one task: t &amp; &lt;u&gt;"), std::string::npos);
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_EQ(svg.find("inf"), std::string::npos);
  EXPECT_EQ(svg.find("href"), std::string::npos) << "the picture must not need other files";
}

TEST(Report, TableLinesAreOfOneWidthPerBlock) {
  const Folder folder;
  const auto lines = report_table(read_report(folder.str()));
  const auto at = std::find_if(lines.begin(), lines.end(), [](const auto& l) { return l.starts_with("scores"); });
  ASSERT_NE(at, lines.end());
  const auto columns = [](const std::string& line) {
    return std::count_if(line.begin(), line.end(), [](char c) { return (c & 0xC0) != 0x80; });
  };
  const auto head = columns(at->substr(0, at->rfind("ahead")));
  const auto row = *(at + 1);
  EXPECT_EQ(columns(row.substr(0, row.rfind("moe"))), head) << *at << "\n" << row;
}

TEST(Svg, TicksCoverTheRangeInRoundSteps) {
  EXPECT_EQ(axis_ticks(0, 100, 5), (std::vector<double>{0, 20, 40, 60, 80, 100}));
  EXPECT_EQ(axis_ticks(1.2, 4.7, 4), (std::vector<double>{1, 2, 3, 4, 5}));
  EXPECT_EQ(axis_ticks(5, 5, 4).size() > 1, true) << "a constant still has an axis";
  for (const double low : {-3.7, 0.0, 0.001, 12.0}) {
    for (const double span : {1e-3, 0.4, 7.0, 12345.0}) {
      const auto ticks = axis_ticks(low, low + span, 6);
      EXPECT_LE(ticks.front(), low);
      EXPECT_GE(ticks.back(), (low + span) * (1 - 1e-9));
      EXPECT_LE(ticks.size(), 9U);
    }
  }
}

TEST(Svg, ShortNumbersAreShort) {
  EXPECT_EQ(short_number(0.5), "0.5");
  EXPECT_EQ(short_number(40), "40");
  EXPECT_EQ(short_number(1500), "1.5k");
}

}  // namespace
}  // namespace flanmoe
