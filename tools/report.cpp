// flanmoe-report: a page of a training, the evaluations of a run folder, or compares the MoE model and its dense twin
// of a tutorial folder.
#include "evaluate/report.hpp"

#include <fmt/format.h>

#include <cstdio>
#include <exception>
#include <filesystem>
#include <string>

#include "base/error.hpp"
#include "evaluate/evaluation_report.hpp"
#include "train/run_report.hpp"

namespace {

constexpr const char* usage =
    "usage: flanmoe-report [FOLDER]      (default: runs/tutorial)\n"
    "Reads FOLDER/{moe,dense}/{pretrain,instruct,finetune_direct,finetune_instructed}/{metrics.jsonl,summary.json} "
    "and\n"
    "FOLDER/{moe,dense}/evaluate_{pretrain,instruct,direct,instructed}/evaluation.json; prints the comparison and\n"
    "writes FOLDER/summary.json and FOLDER/report.svg.\n"
    "Where FOLDER is a run folder: of a training, writes FOLDER/report.html, a page with its plots inside; with\n"
    "evaluation.json or evaluations/, prints their tables and writes FOLDER/evaluation.svg.\n";

void run(const std::string& folder) {
  const bool training = flanmoe::has_training(folder);
  if (training) {
    flanmoe::publish_text_file(folder + "/report.html", flanmoe::run_report_html(folder));
    fmt::print("written: {}/report.html\n", folder);
  }
  if (flanmoe::has_evaluation(folder)) {
    const auto evaluation = flanmoe::read_evaluation_report(folder);
    for (const auto& line : flanmoe::evaluation_report_table(evaluation)) fmt::print("{}\n", line);
    flanmoe::publish_text_file(folder + "/evaluation.svg", flanmoe::evaluation_report_svg(evaluation));
    fmt::print("written: {}/evaluation.svg\n", folder);
    return;
  }
  if (training) return;
  if (!std::filesystem::is_directory(folder + "/moe")) {
    flanmoe::fail(
        "{}: expected metrics.jsonl, evaluation.json or evaluations/ of a run, or moe/ and dense/ of a tutorial; found "
        "none",
        folder);
  }
  const flanmoe::Report report = flanmoe::read_report(folder);
  for (const auto& line : flanmoe::report_table(report)) fmt::print("{}\n", line);
  flanmoe::publish_text_file(folder + "/summary.json", flanmoe::json_text(flanmoe::report_json(report), 2) + "\n");
  flanmoe::publish_text_file(folder + "/report.svg", flanmoe::report_svg(report));
  fmt::print("written: {0}/summary.json, {0}/report.svg\n", folder);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string argument = argc > 1 ? argv[1] : "runs/tutorial";
  if (argument == "--help" || argument == "-h") {
    fmt::print("{}", usage);
    return 0;
  }
  if (argc > 2 || argument.starts_with("-")) {
    fmt::print(stderr, "{}", usage);
    return 2;
  }
  try {
    run(argument);
    return 0;
  } catch (const std::exception& e) {
    fmt::print(stderr, "flanmoe-report: {}\n", e.what());
    return 1;
  }
}
