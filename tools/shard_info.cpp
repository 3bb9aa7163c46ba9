// flanmoe-shard-info: what is in a token shard, and what its examples say.
#include <boost/program_options.hpp>
#include <cstdio>
#include <iostream>
#include <map>
#include <memory>
#include <tuple>

#include "base/error.hpp"
#include "base/hdf5.hpp"
#include "base/log.hpp"
#include "base/tool.hpp"
#include "data/shard.hpp"
#include "data/tokenizer.hpp"

namespace {

namespace po = boost::program_options;
using flanmoe::log_info;

struct Count {
  std::int64_t examples = 0, input = 0, target = 0, longest_input = 0, longest_target = 0;
};

void print_header(const flanmoe::ShardReader& shard) {
  const auto& tokenizer = shard.tokenizer();
  log_info("{}", shard.path());
  log_info("{} examples, {} tokens", shard.size(), shard.total_tokens());
  log_info("tokenizer {}: vocabulary {} with {} sentinels, pad {}, end {}, unknown {}", tokenizer.fingerprint,
           tokenizer.vocabulary, tokenizer.sentinels, tokenizer.pad, tokenizer.eos, tokenizer.unknown);
}

/// How tasks are measured, where the shard says so.
void print_rules(const flanmoe::ShardReader& shard) {
  std::map<std::string, flanmoe::TaskInfo> infos;
  for (std::size_t g = 0; g < shard.groups().size(); ++g) {
    const std::int64_t first = shard.group_example(std::int64_t(g), 0);
    infos.emplace(shard.task(first), shard.task_info(first));
  }
  std::erase_if(infos, [](const auto& task) { return task.second == flanmoe::TaskInfo(); });
  if (infos.empty()) return;
  log_info("\n{:40} {:10} {:16} {:10} {:12} {:>7}  {}", "task", "benchmark", "group", "extraction", "score", "chance",
           "part of");
  for (const auto& [task, info] : infos) {
    log_info("{:40} {:10} {:16} {:10} {:12} {:>7}  {}", task, info.benchmark, info.group, name_of(info.extraction),
             name_of(info.score), info.chance < 0 ? "choices" : fmt::format("{:.3f}", info.chance), info.part_of);
  }
}

void print_tasks(const flanmoe::ShardReader& shard) {
  std::map<std::tuple<std::string, std::string, std::string, std::string>, Count> counts;
  for (std::int64_t i = 0; i < shard.size(); ++i) {
    Count& count = counts[{shard.task(i), shard.category(i), shard.variant(i), shard.split(i)}];
    ++count.examples;
    count.input += shard.input_length(i);
    count.target += shard.target_length(i);
    count.longest_input = std::max(count.longest_input, shard.input_length(i));
    count.longest_target = std::max(count.longest_target, shard.target_length(i));
  }
  log_info("{:25} {:12} {:13} {:6} {:>9} {:>10} {:>8} {:>11} {:>8}", "task", "category", "variant", "split", "examples",
           "mean input", "longest", "mean target", "longest");
  for (const auto& [names, count] : counts) {
    const auto& [task, category, variant, split] = names;
    log_info("{:25} {:12} {:13} {:6} {:>9} {:>10.1f} {:>8} {:>11.1f} {:>8}", task, category, variant, split,
             count.examples, double(count.input) / double(count.examples), count.longest_input,
             double(count.target) / double(count.examples), count.longest_target);
  }
}

void print_example(const flanmoe::ShardReader& shard, const flanmoe::Tokenizer& tokenizer, std::int64_t i) {
  const flanmoe::Example example = shard.read(i);
  log_info("\n#{} {} / {} / {} / {}", i, example.task, example.variant, example.template_name, example.split);
  log_info("  input  ({} tokens): {}", example.input.size(), tokenizer.decode(example.input));
  if (!example.has_target) return;
  log_info("  target ({} tokens): {}", example.target.size(), tokenizer.decode(example.target));
  if (!example.answer.empty()) log_info("  answer: {}", example.answer);
  for (const auto& answer : example.more_answers) log_info("  or:     {}", answer);
  for (std::size_t c = 0; c < example.choices.size(); ++c) {
    log_info("  choice{} {}", std::int32_t(c) == example.gold ? " *" : "  ", tokenizer.decode(example.choices[c]));
  }
}

int run(int argc, char** argv) {
  std::string file, model, split;
  std::int64_t examples = 0;
  po::options_description description("flanmoe-shard-info FILE [options]\n\nOptions");
  description.add_options()("help", "show this text")("file", po::value(&file)->required(), "the shard")(
      "examples", po::value(&examples)->default_value(0), "show so many examples, evenly spread over the shard")(
      "split", po::value(&split), "show only examples of this split")(
      "tokenizer", po::value(&model), "SentencePiece model that the shard was made with; needed to show examples");
  po::positional_options_description positional;
  positional.add("file", 1);
  po::variables_map values;
  po::store(po::command_line_parser(argc, argv).options(description).positional(positional).run(), values);
  if (values.contains("help")) {
    std::cout << description;
    return 0;
  }
  po::notify(values);
  if (examples < 0) flanmoe::usage_fail("--examples: expected 0 or more, found {}", examples);
  if (examples > 0 && model.empty()) flanmoe::usage_fail("--examples needs --tokenizer MODEL");
  const flanmoe::ShardReader shard(file);
  print_header(shard);
  print_tasks(shard);
  print_rules(shard);
  if (examples == 0) return 0;
  const flanmoe::Tokenizer tokenizer(model);
  if (const auto own = tokenizer.identity().fingerprint; own != shard.tokenizer().fingerprint) {
    flanmoe::fail("{} was made with tokenizer {}, but {} is {}", file, shard.tokenizer().fingerprint, model, own);
  }
  std::vector<std::int64_t> shown;
  for (std::int64_t i = 0; i < shard.size(); ++i) {
    if (split.empty() || shard.split(i) == split) shown.push_back(i);
  }
  const auto n = std::int64_t(shown.size());
  const std::int64_t count = std::min(examples, n);
  for (std::int64_t k = 0; k < count; ++k) print_example(shard, tokenizer, shown[std::size_t(k * n / count)]);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  flanmoe::silence_hdf5();
  return flanmoe::run_tool("flanmoe-shard-info", [&] { return run(argc, argv); });
}
