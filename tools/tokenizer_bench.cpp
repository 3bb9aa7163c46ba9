// flanmoe-tokenizer-bench: how fast text becomes token shards, against SentencePiece alone on the same text and
// threads.
#include <sentencepiece_processor.h>
#include <unistd.h>

#include <algorithm>
#include <boost/program_options.hpp>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <thread>

#include "base/error.hpp"
#include "base/hdf5.hpp"
#include "base/timer.hpp"
#include "base/tool.hpp"
#include "data/flan/convert.hpp"
#include "data/formats/formats.hpp"
#include "data/jobs.hpp"

namespace {

namespace po = boost::program_options;
namespace fs = std::filesystem;

struct Options {
  std::string tokenizer;
  std::vector<std::string> files;
  int threads = 1, rounds = 3;
};

/// Documents of every file, in memory.
std::vector<std::vector<std::string>> read_documents(const std::vector<std::string>& files) {
  std::vector<std::vector<std::string>> all;
  for (const std::string& file : files) {
    auto input = flanmoe::formats::Input::file(file);
    flanmoe::formats::BadRecords bad;
    std::vector<std::string> documents;
    flanmoe::formats::read_text(input, bad,
                                {{}, [&](flanmoe::formats::Record&& r) { documents.push_back(r.question); }});
    all.push_back(std::move(documents));
  }
  return all;
}

/// Elapsed seconds, and those of the processor over all threads: these tell more where other programs run as well.
struct Times {
  double elapsed = 1e300, processor = 1e300;
};

template <class Body>
void keep_best(Times& best, Body&& body) {
  const double start = flanmoe::seconds_now();
  const std::clock_t clock = std::clock();
  body();
  best.elapsed = std::min(best.elapsed, flanmoe::seconds_now() - start);
  best.processor = std::min(best.processor, double(std::clock() - clock) / CLOCKS_PER_SEC);
}

/// Seconds that SentencePiece takes to encode all documents; nothing else is done.
void time_alone(const Options& options, const std::vector<std::vector<std::string>>& documents, Times& best) {
  sentencepiece::SentencePieceProcessor processor;
  if (const auto status = processor.Load(options.tokenizer); !status.ok()) {
    flanmoe::fail("{}: not a SentencePiece model: {}", options.tokenizer, status.ToString());
  }
  std::vector<std::function<void()>> jobs;
  for (const auto& file : documents) {
    jobs.emplace_back([&processor, &file] {
      std::vector<int> ids;
      for (const std::string& document : file) (void)processor.Encode(document, &ids);
    });
  }
  keep_best(best, [&] { flanmoe::run_parallel(jobs, options.threads); });
}

/// Seconds that the same files take from the disk to finished shards.
void time_shards(const Options& options, const std::string& folder, Times& best) {
  fs::remove_all(folder + "/out");
  flanmoe::flan::ConvertOptions convert;
  convert.plan = folder + "/plan.ini";
  convert.data = folder;
  convert.output = folder + "/out";
  convert.tokenizer = options.tokenizer;
  convert.threads = options.threads;
  keep_best(best, [&] { flanmoe::flan::convert(convert); });
}

int run(int argc, char** argv) {
  Options options;
  po::options_description description("flanmoe-tokenizer-bench --tokenizer MODEL FILE... [options]\n\nOptions");
  description.add_options()("help", "show this text")("tokenizer", po::value(&options.tokenizer)->required(),
                                                      "SentencePiece model with the layout of T5")(
      "files", po::value(&options.files)->required(), "text files; each is one job")(
      "threads", po::value(&options.threads)->default_value(int(std::thread::hardware_concurrency())), "threads")(
      "rounds", po::value(&options.rounds)->default_value(options.rounds), "times that both are measured, in turn");
  po::positional_options_description positional;
  positional.add("files", -1);
  po::variables_map values;
  po::store(po::command_line_parser(argc, argv).options(description).positional(positional).run(), values);
  if (values.contains("help")) {
    std::cout << description;
    return 0;
  }
  po::notify(values);
  if (options.threads < 1 || options.rounds < 1) flanmoe::usage_fail("--threads and --rounds: expected at least 1");

  const auto documents = read_documents(options.files);
  std::size_t bytes = 0;
  for (const auto& file : documents) {
    for (const std::string& document : file) bytes += document.size();
  }
  const fs::path folder = fs::temp_directory_path() / fmt::format("flanmoe-tokenizer-bench-{}", ::getpid());
  fs::create_directories(folder);
  for (std::size_t i = 0; i < options.files.size(); ++i) {
    fs::create_symlink(fs::absolute(options.files[i]), folder / fmt::format("{}.txt", i));
  }
  std::ofstream(folder / "plan.ini") << "[text]\nformat = text\nfiles = *.txt\n";
  Times alone, shards;
  for (int round = 0; round < options.rounds; ++round) {
    time_alone(options, documents, alone);
    time_shards(options, folder.string(), shards);
  }
  fs::remove_all(folder);
  const double megabytes = double(bytes) / 1e6;
  std::cout << fmt::format(
      "{:.1f} MB in {} files, {} threads, best of {}\n"
      "SentencePiece alone: {:.2f} s, {:.2f} MB/s, {:.2f} s of processor\n"
      "text to shards:      {:.2f} s, {:.2f} MB/s, {:.2f} s of processor: {:.1f}% of the speed, {:.1f}% by processor\n",
      megabytes, options.files.size(), options.threads, options.rounds, alone.elapsed, megabytes / alone.elapsed,
      alone.processor, shards.elapsed, megabytes / shards.elapsed, shards.processor,
      100 * alone.elapsed / shards.elapsed, 100 * alone.processor / shards.processor);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  flanmoe::silence_hdf5();
  return flanmoe::run_tool("flanmoe-tokenizer-bench", [&] { return run(argc, argv); });
}
