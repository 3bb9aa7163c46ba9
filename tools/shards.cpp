// flanmoe-shards: released data sets in public formats into token shards.
#include <boost/program_options.hpp>
#include <filesystem>
#include <iostream>
#include <thread>

#include "base/error.hpp"
#include "base/hdf5.hpp"
#include "base/log.hpp"
#include "base/timer.hpp"
#include "base/tool.hpp"
#include "data/flan/collection.hpp"
#include "data/flan/convert.hpp"
#include "data/text.hpp"

namespace {

namespace po = boost::program_options;
using flanmoe::flan::ConvertOptions;

constexpr char kExamples[] =
    "\nExamples\n"
    "  flanmoe-shards input/shards/flan2022.ini --data DATA --output shards --tokenizer spiece.model\n"
    "  flanmoe-shards input/shards/benchmarks.ini --data DATA --output benchmarks --tokenizer spiece.model\n"
    "  flanmoe-shards input/shards/text.ini --data DATA --output text          (trains a tokenizer)\n"
    "  flanmoe-shards input/shards/flan2022.ini --data DATA --list flan_collection_info.csv\n"
    "\nPLAN names the released files, their formats and the prompts to make of them (input/shards/README.md).\n"
    "Every file becomes OUTPUT/SECTION/NAME.h5; the same command again makes only what is missing or has changed.\n";

po::options_description describe(ConvertOptions& options, std::string& list) {
  po::options_description description("flanmoe-shards PLAN --data FOLDER --output FOLDER [options]\n\nOptions");
  auto& limits = options.limits;
  description.add_options()("help", "show this text, with formats and variants")(
      "plan", po::value(&options.plan)->required(), "list of sources (also the first argument)")(
      "data", po::value(&options.data)->required(), "folder of the released files")(
      "output", po::value(&options.output), "folder to write to")(
      "tokenizer", po::value(&options.tokenizer),
      "SentencePiece model; without it OUTPUT/tokenizer.model, which is trained on the sources where it is missing")(
      "vocabulary", po::value(&options.vocabulary),
      "pieces of a trained tokenizer, with its 100 sentinels (32000); a model that is there must have as many")(
      "templates", po::value(&options.templates)->default_value(options.templates), "folder of the template files")(
      "only", po::value(&options.only)->multitoken(), "make only sections that match these patterns")(
      "input-tokens", po::value(&limits.input_tokens)->default_value(limits.input_tokens),
      "longer inputs are cut, end of sequence included")(
      "target-tokens", po::value(&limits.target_tokens)->default_value(limits.target_tokens), "the same for targets")(
      "few-shot-tokens", po::value(&limits.few_shot_tokens)->default_value(limits.few_shot_tokens),
      "exemplars are shown while the prompt has at most so many tokens")(
      "skip-bad", po::bool_switch(&options.skip_bad),
      "leave malformed records out and count them, instead of stopping")(
      "threads", po::value(&options.threads)->default_value(int(std::thread::hardware_concurrency())),
      "files made at a time")("list", po::value(&list),
                              "show the data sets of the FLAN collection, from its flan_collection_info.csv, and which "
                              "of them PLAN finds in DATA");
  return description;
}

void print_help(const po::options_description& description) {
  std::cout << description << kExamples << "\nFormats\n";
  for (const auto& format : flanmoe::formats::formats()) {
    std::cout << fmt::format("  {:22} {}\n", format.name, format.sentence);
  }
  std::cout << "\nVariants of prompts\n";
  for (const auto& variant : flanmoe::flan::variants()) {
    std::cout << fmt::format("  {:22} {}\n", variant.name, variant.sentence);
  }
}

void check(const ConvertOptions& options) {
  const auto at_least = [](const char* name, std::int64_t value, std::int64_t least) {
    if (value < least) flanmoe::usage_fail("--{}: expected at least {}, found {}", name, least, value);
  };
  at_least("threads", options.threads, 1);
  if (options.vocabulary != 0) at_least("vocabulary", options.vocabulary, 1000);
  at_least("input-tokens", options.limits.input_tokens, 8);
  at_least("target-tokens", options.limits.target_tokens, 4);
  at_least("few-shot-tokens", options.limits.few_shot_tokens, 8);
  if (options.limits.few_shot_tokens >= options.limits.input_tokens) {
    flanmoe::usage_fail("--few-shot-tokens: expected below --input-tokens = {}, found {}", options.limits.input_tokens,
                        options.limits.few_shot_tokens);
  }
  if (!std::filesystem::is_directory(options.data)) flanmoe::usage_fail("--data: {} is no folder", options.data);
}

int run(int argc, char** argv) {
  ConvertOptions options;
  std::string list;
  const po::options_description description = describe(options, list);
  po::positional_options_description positional;
  positional.add("plan", 1);
  po::variables_map values;
  po::store(po::command_line_parser(argc, argv).options(description).positional(positional).run(), values);
  if (values.contains("help")) {
    print_help(description);
    return 0;
  }
  po::notify(values);
  check(options);
  if (!list.empty()) {
    const auto plan = flanmoe::flan::parse_plan(flanmoe::read_whole_file(options.plan), options.plan);
    auto rows = flanmoe::flan::read_collection(list);
    flanmoe::flan::find_present(plan, options.data, rows);
    std::cout << flanmoe::flan::describe_collection(rows);
    return 0;
  }
  if (options.output.empty()) flanmoe::usage_fail("--output: the folder to write to is missing");
  const double start = flanmoe::seconds_now();
  flanmoe::flan::convert(options);
  flanmoe::log_info("{} is complete ({:.1f} s)", options.output, flanmoe::seconds_now() - start);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  flanmoe::silence_hdf5();
  return flanmoe::run_tool("flanmoe-shards", [&] { return run(argc, argv); });
}
