// flanmoe-tutorial-data: makes the data set of the tutorial from files of Debian packages, without network.
#include <boost/program_options.hpp>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <thread>

#include "base/error.hpp"
#include "base/log.hpp"
#include "base/timer.hpp"
#include "base/tool.hpp"
#include "data/tutorial/tutorial.hpp"

namespace {

namespace po = boost::program_options;
using flanmoe::tutorial::TutorialOptions;

int run(int argc, char** argv) {
  TutorialOptions options;
  po::options_description description(
      "flanmoe-tutorial-data OUTPUT [options]\n"
      "Makes tokenizer.model, pretrain/*.h5, instruct/*.h5 and manifest.json in OUTPUT; what is up to date is kept.\n\n"
      "Options");
  description.add_options()("help", "show this text")("output", po::value(&options.output)->required(),
                                                      "folder to write to (also the first argument)")(
      "templates", po::value(&options.templates)->default_value("input/templates"), "folder of the template files")(
      "wordnet", po::value(&options.sources.wordnet)->default_value(options.sources.wordnet), "folder of WordNet")(
      "dictd", po::value(&options.sources.dictd)->default_value(options.sources.dictd), "folder of the dictionaries")(
      "vocabulary", po::value(&options.vocabulary)->default_value(options.vocabulary),
      "pieces of the tokenizer, with its 100 sentinels")(
      "train-examples", po::value(&options.limits.train_examples)->default_value(options.limits.train_examples),
      "training examples of a task, at most")(
      "test-examples", po::value(&options.limits.test_examples)->default_value(options.limits.test_examples),
      "test examples of a task and variant, at most")(
      "threads", po::value(&options.threads)->default_value(int(std::thread::hardware_concurrency())),
      "threads that write shards");
  po::positional_options_description positional;
  positional.add("output", 1);
  po::variables_map values;
  po::store(po::command_line_parser(argc, argv).options(description).positional(positional).run(), values);
  if (values.contains("help")) {
    std::cout << description;
    return 0;
  }
  po::notify(values);
  if (options.threads < 1) flanmoe::usage_fail("--threads: expected at least 1, found {}", options.threads);
  if (options.vocabulary < 1000)
    flanmoe::usage_fail("--vocabulary: expected at least 1000, found {}", options.vocabulary);
  std::filesystem::create_directories(options.output);
  const double start = flanmoe::seconds_now();
  flanmoe::tutorial::make_tutorial_data(options);
  flanmoe::log_info("{} is complete ({:.1f} s)", options.output, flanmoe::seconds_now() - start);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return flanmoe::run_tool("flanmoe-tutorial-data", [&] { return run(argc, argv); });
}
