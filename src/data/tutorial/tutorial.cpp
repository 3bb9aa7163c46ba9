#include "data/tutorial/tutorial.hpp"

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>

#include "base/error.hpp"
#include "base/log.hpp"
#include "base/timer.hpp"
#include "data/jobs.hpp"
#include "data/manifest.hpp"
#include "data/tutorial/documents.hpp"

namespace flanmoe::tutorial {

namespace {

namespace fs = std::filesystem;

/// Raise it when a change of the code changes the data: older files are then made anew.
constexpr int kRecipe = 1;

struct Step {
  std::string name, inputs, file;
  std::function<nlohmann::json(const std::string& path)> make;  // writes the file; gives facts about it
};

nlohmann::json write_text_shard(const std::string& path, const Corpus& corpus, const Sources& sources,
                                const Tokenizer& tokenizer) {
  ShardWriter writer(path, tokenizer.identity());
  std::int64_t documents = 0, tokens = 0, tested = 0;
  for (const std::string& document : corpus.documents(sources)) {
    Example example;
    example.input = tokenizer.encode(document);
    example.has_target = false;
    example.task = std::string("text_") + corpus.name;
    example.category = "text";
    example.template_name = "text";
    example.variant = "text";
    // One document in a hundred is kept from training, to measure the loss on text not seen.
    example.split = hash_text(document, 11) % 100 == 0 ? "test" : "train";
    tested += example.split == "test";
    ++documents;
    tokens += std::int64_t(example.input.size());
    writer.add(example);
  }
  writer.finish();
  return {{"documents", documents}, {"test_documents", tested}, {"tokens", tokens}};
}

void print_tables(const Manifest& manifest, const std::vector<TemplateFile>& files) {
  log_info("{:10} {:>9} {:>9} {:>10}", "text", "documents", "tested", "tokens");
  for (const auto& corpus : corpora()) {
    const auto facts = manifest.facts(std::string("pretrain/") + corpus.name);
    log_info("{:10} {:>9} {:>9} {:>10}", corpus.name, facts["documents"].get<std::int64_t>(),
             facts["test_documents"].get<std::int64_t>(), facts["tokens"].get<std::int64_t>());
  }
  log_info("{:25} {:12} {:>6} {:>5} {:>6} {:>6} {:>6} {:>6} {:>5} {:>8} {:>7}  {}", "task", "category", "items", "ways",
           "zero", "few", "cot", "cotfew", "test", "in tok", "out tok", "recommended");
  std::int64_t train = 0;
  for (const auto& file : files) {
    const TaskSummary s = summary_from_json(manifest.facts("instruct/" + file.task));
    const auto count = [](const auto& counts, const char* variant) {
      const auto at = counts.find(variant);
      return at == counts.end() ? 0 : at->second;
    };
    std::int64_t tested = 0;
    for (const auto& [variant, n] : s.test) tested += n;
    for (const auto& [variant, n] : s.train) train += n;
    log_info("{:25} {:12} {:>6} {:>5} {:>6} {:>6} {:>6} {:>6} {:>5} {:>8.1f} {:>7.1f}  {}{}", s.task, s.category,
             s.items, s.templates, count(s.train, "zero_shot"), count(s.train, "few_shot"), count(s.train, "cot"),
             count(s.train, "cot_few_shot"), tested, s.mean_input_tokens, s.mean_target_tokens,
             s.held_out ? "held out " : "", s.finetune ? "finetune" : "");
  }
  log_info("{} tasks, {} training examples", files.size(), train);
}

class Run {
 public:
  explicit Run(const TutorialOptions& options) : options_(options), manifest_(options.output) {}

  void all() {
    // 1. What there is to work from.
    check_sources(options_.sources);
    package_list_ = dump_package_list();
    source_state_ = sources_fingerprint(options_.sources, package_list_);
    read_templates();

    // 2. The tokenizer, which every other step depends on.
    const std::string model = options_.output + "/tokenizer.model";
    fs::create_directories(options_.output + "/pretrain");
    fs::create_directories(options_.output + "/instruct");
    run_steps({{"tokenizer", fmt::format("{} {} {}", kRecipe, source_state_, options_.vocabulary), "tokenizer.model",
                [this](const std::string& path) { return make_tokenizer(path); }}});
    tokenizer_ = std::make_unique<Tokenizer>(model);

    // 3. Text and tasks, side by side.
    std::vector<Step> steps = text_steps();
    for (auto& step : task_steps()) steps.push_back(std::move(step));
    std::map<std::string, std::string> files = {{"tokenizer", "tokenizer.model"}};
    for (const auto& step : steps) files[step.name] = step.file;
    manifest_.keep_only(files);
    run_steps(steps);

    // 4. What came of it.
    describe();
    print_tables(manifest_, templates_);
  }

 private:
  void read_templates() {
    std::map<std::string, bool> used;
    for (const Task& task : tasks()) {
      const std::string path = options_.templates + "/" + task.name + ".txt";
      const std::string text = read_whole_file(path);
      templates_.push_back(parse_templates(text, path, task.name));
      for (const Template& each : templates_.back().templates) {
        if (each.head.empty() && !each.inverted && !each.explained) continue;
        fail("{}:{}: template \"{}\" has a head, or is inverted or explained: not in the tutorial", path, each.line,
             each.name);
      }
      template_state_.push_back(crc32_hex(text));
      used[std::string(task.name) + ".txt"] = true;
    }
    for (const auto& entry : fs::directory_iterator(options_.templates)) {
      const std::string name = entry.path().filename();
      if (entry.path().extension() == ".txt" && !used.contains(name)) {
        fail("{}: there is no task of this name", entry.path().string());
      }
    }
  }

  const Sources& sources() {
    if (!sources_) {
      const double start = seconds_now();
      sources_ = std::make_unique<Sources>(read_sources(options_.sources, package_list_));
      log_info("read the sources in {:.1f} s: {} synsets, {} packages", seconds_now() - start,
               sources_->wordnet.synsets.size(), sources_->packages.size());
    }
    return *sources_;
  }

  nlohmann::json make_tokenizer(const std::string& path) {
    const auto sentences = tokenizer_sentences(sources());
    std::size_t at = 0;
    TokenizerTraining training;
    training.vocabulary = options_.vocabulary;
    train_tokenizer(
        [&](std::string& sentence) {
          if (at == sentences.size()) return false;
          sentence = sentences[at++];
          return true;
        },
        training, path);
    return {{"sentences", sentences.size()}};
  }

  std::string inputs_of(const std::string& rest) const {
    return fmt::format("{} {} {} {}", kRecipe, source_state_, tokenizer_->identity().fingerprint, rest);
  }

  std::vector<Step> text_steps() {
    std::vector<Step> steps;
    for (const Corpus& corpus : corpora()) {
      steps.push_back({std::string("pretrain/") + corpus.name, inputs_of("text"),
                       fmt::format("pretrain/{}.h5", corpus.name), [this, &corpus](const std::string& path) {
                         return write_text_shard(path, corpus, *sources_, *tokenizer_);
                       }});
    }
    return steps;
  }

  std::vector<Step> task_steps() {
    const auto& l = options_.limits;
    const std::string limits = fmt::format("{} {} {} {} {}", l.train_examples, l.test_examples, l.zero_shot_tokens,
                                           l.few_shot_tokens, l.target_tokens);
    std::vector<Step> steps;
    for (std::size_t i = 0; i < tasks().size(); ++i) {
      const std::string name = tasks()[i].name;
      steps.push_back({"instruct/" + name, inputs_of(template_state_[i] + " " + limits),
                       fmt::format("instruct/{}.h5", name),
                       [this, i](const std::string& path) { return write_task_shard(path, i); }});
    }
    return steps;
  }

  nlohmann::json write_task_shard(const std::string& path, std::size_t i) {
    TaskSummary summary;
    const Items items = tasks()[i].build(*sources_);
    const auto examples = make_examples(templates_[i], items, *tokenizer_, options_.limits, summary);
    ShardWriter writer(path, tokenizer_->identity());
    for (const auto& example : examples) writer.add(example);
    writer.finish();
    return to_json(summary);
  }

  /// Makes the steps that are not done. The sources are read only when there is such a step.
  void run_steps(const std::vector<Step>& steps) {
    std::vector<std::function<void()>> jobs;
    for (const Step& step : steps) {
      if (manifest_.is_done(step.name, step.inputs)) continue;
      jobs.emplace_back([this, &step] {
        const double start = seconds_now();
        auto facts = step.make(options_.output + "/" + step.file);
        manifest_.record(step.name, step.inputs, step.file, std::move(facts));
        const std::lock_guard lock(print_);
        log_info("made {} in {:.1f} s", step.file, seconds_now() - start);
      });
    }
    if (jobs.size() < steps.size()) log_info("{} of {} files are up to date", steps.size() - jobs.size(), steps.size());
    if (jobs.empty()) return;
    sources();
    run_parallel(jobs, options_.threads);
  }

  void describe() {
    nlohmann::json held_out = nlohmann::json::array();
    std::string finetune;
    for (const auto& file : templates_) {
      if (file.held_out) held_out.push_back(file.task);
      if (file.finetune) finetune = file.task;
    }
    manifest_.set("held_out_tasks", held_out);
    manifest_.set("finetune_task", finetune);
    manifest_.set("tokenizer", {{"file", "tokenizer.model"},
                                {"fingerprint", tokenizer_->identity().fingerprint},
                                {"vocabulary", tokenizer_->vocabulary()}});
  }

  const TutorialOptions& options_;
  Manifest manifest_;
  std::string package_list_, source_state_;
  std::vector<TemplateFile> templates_;
  std::vector<std::string> template_state_;
  std::unique_ptr<Sources> sources_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::mutex print_;
};

}  // namespace

void make_tutorial_data(const TutorialOptions& options) { Run(options).all(); }

}  // namespace flanmoe::tutorial
