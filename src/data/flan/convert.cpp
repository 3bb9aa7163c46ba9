#include "data/flan/convert.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <condition_variable>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <mutex>
#include <set>
#include <thread>

#include "base/error.hpp"
#include "base/log.hpp"
#include "base/timer.hpp"
#include "data/flan/unit.hpp"
#include "data/jobs.hpp"
#include "data/manifest.hpp"
#include "data/patterns.hpp"
#include "data/text.hpp"

namespace flanmoe::flan {
namespace {

namespace fs = std::filesystem;

/// Raise it when a change of the code changes the shards: older files are then made anew.
constexpr int kRecipe = 3;

/// Changes when the file does: its length and time.
std::string state_of(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) fail("{}: cannot be examined", path);
  return fmt::format("{}:{}:{}.{:09}", path, std::int64_t(info.st_size), std::int64_t(info.st_mtim.tv_sec),
                     std::int64_t(info.st_mtim.tv_nsec));
}

struct Job {
  const Source* source = nullptr;
  SourceFile file;
  std::string step, output, inputs;  // output: relative to the folder
};

/// A line that tells how far the work is: on a terminal it is rewritten, elsewhere it comes every ten seconds.
class ProgressLine {
 public:
  ProgressLine(const Progress& progress, std::int64_t units) : progress_(progress), units_(units) {
    if (units > 0) thread_ = std::jthread([this](const std::stop_token& stop) { run(stop); });
  }

 private:
  void run(const std::stop_token& stop) const {
    const bool terminal = ::isatty(STDERR_FILENO) != 0;
    const double start = seconds_now();
    std::mutex mutex;
    std::condition_variable_any stopped;
    for (std::unique_lock lock(mutex); !stop.stop_requested();) {
      stopped.wait_for(lock, stop, std::chrono::seconds(terminal ? 1 : 10), [] { return false; });
      if (!stop.stop_requested()) print(terminal, seconds_now() - start);
    }
    if (terminal) std::fputs("\r\x1B[K", stderr);
  }
  void print(bool terminal, double seconds) const {
    const auto tokens = progress_.tokens.load();
    const std::string line = fmt::format(
        "{} of {} files, {} examples, {:.1f} M tokens, {:.0f} k tokens/s, {} skipped", progress_.units.load(), units_,
        progress_.examples.load(), double(tokens) / 1e6, double(tokens) / 1e3 / seconds, progress_.skipped.load());
    std::fputs(fmt::format("{}{}{}", terminal ? "\r" : "", line, terminal ? "\x1B[K" : "\n").c_str(), stderr);
  }
  const Progress& progress_;
  std::int64_t units_;
  std::jthread thread_;
};

class Conversion {
 public:
  explicit Conversion(const ConvertOptions& options)
      : options_(options), plan_(parse_plan(read_whole_file(options.plan), options.plan)), manifest_(options.output) {}

  void run() {
    select_sources();
    read_held_out();
    find_jobs();
    make_tokenizer();
    const std::size_t done = run_jobs();
    remove_stale();
    print_table();
    if (done < jobs_.size()) log_info("{} of {} files were up to date", jobs_.size() - done, jobs_.size());
  }

 private:
  void select_sources() {
    std::vector<std::string> names;
    for (const Source& source : plan_.sources) names.push_back(source.name);
    sections_.insert(names.begin(), names.end());
    require_matches("--only", options_.only, names);
    if (options_.only.empty()) return;
    std::erase_if(plan_.sources, [&](const Source& source) { return !matches_any(options_.only, source.name); });
  }

  void read_held_out() {
    if (plan_.held_out.empty()) return;
    const std::string path = find_beside(plan_, plan_.held_out, options_.data, plan_.path);
    const std::string text = read_whole_file(path);
    held_out_ = parse_held_out(text, path);
    held_out_state_ = crc32_hex(text);
    for (const HeldOutList::File& file : held_out_.files) {
      Source source;
      source.files = {file.path};
      const auto files = find_files(plan_, source, options_.data);
      if (files.empty()) {
        log_info("NOT HELD OUT: {} names {}/{}, which is not there: training data is not compared with it", file.where,
                 options_.data, file.path);
      }
      for (const SourceFile& found : files) {
        formats::Input input = formats::Input::file(found.path);
        formats::BadRecords bad;
        bad.skip = options_.skip_bad;
        questions_.add(read_all(formats::find_format(file.format, file.where), input, bad).records);
        held_out_state_ = crc32_hex(held_out_state_ + state_of(found.path));
      }
    }
  }

  std::string inputs_of(const Source& source, const SourceFile& file) const {
    std::string state =
        fmt::format("{} {} {} {} {} {} {} {} {}", kRecipe, state_of(file.path), source.format, source.exemplar_format,
                    source.task, source.split, source.category, source.benchmark, source.shots);
    if (source.inverted_share != 1) state += fmt::format(" inverted {}", source.inverted_share);
    for (const std::string& name : source.variants) state.append(" ").append(name);
    for (const std::string& pattern : source.exclude) state.append(" -").append(pattern);
    if (!source.templates.empty()) {
      state += fmt::format(" {}", crc32_hex(read_whole_file(options_.templates + "/" + source.templates + ".txt")));
    }
    for (const std::string& name : {source.exemplars, source.prompts}) {
      if (!name.empty())
        state +=
            fmt::format(" {}", state_of(find_beside(plan_, with_star(name, file.star), options_.data, source.where)));
    }
    const PromptLimits& limits = options_.limits;
    return state + fmt::format(" {} {} {} {} {}", limits.input_tokens, limits.target_tokens, limits.few_shot_tokens,
                               options_.skip_bad, source.benchmark.empty() ? held_out_state_ : "");
  }

  void find_jobs() {
    std::map<std::string, std::string> outputs;
    for (const Source& source : plan_.sources) {
      std::int64_t found = 0;
      for (const SourceFile& file : find_files(plan_, source, options_.data)) {
        Job job{&source, file, source.name + "/" + file.star, "", ""};
        job.output = job.step + ".h5";
        job.inputs = inputs_of(source, file);
        if (!outputs.emplace(job.output, file.path).second) {
          usage_fail("{}: [{}]: {} and {} would both be written to {}", source.where, source.name, outputs[job.output],
                     file.path, job.output);
        }
        jobs_.push_back(std::move(job));
        ++found;
      }
      if (found == 0) missing_.push_back(&source);
    }
    for (const Source* source : missing_)
      log_info("missing: [{}], no file {}/{}", source->name, options_.data, source->files.front());
    if (jobs_.empty()) usage_fail("{}: none of its files is in {}", plan_.path, options_.data);
  }

  void make_tokenizer() {
    std::string model = options_.tokenizer;
    if (model.empty()) {
      model = options_.output + "/tokenizer.model";
      if (!fs::exists(model)) train(model);
    }
    tokenizer_ = std::make_unique<Tokenizer>(model);
    if (options_.vocabulary != 0 && options_.vocabulary != tokenizer_->vocabulary()) {
      usage_fail("--vocabulary: expected {}, the pieces of {}, found {}; for another size {}", tokenizer_->vocabulary(),
                 model, options_.vocabulary,
                 options_.tokenizer.empty() ? "choose another --output, or remove that file and what was made with it"
                                            : "name another --tokenizer, or none to train one");
    }
    fingerprint_ = tokenizer_->identity().fingerprint;
    log_info("tokenizer {}: {} pieces, fingerprint {}", model, tokenizer_->vocabulary(), fingerprint_);
  }

  /// On the questions, answers and texts of all files, every n-th of them so that training takes minutes at most.
  void train(const std::string& model) const {
    constexpr std::size_t kMost = 400'000;
    std::vector<std::string> sentences;
    std::size_t seen = 0, every = 1;
    const auto add = [&](const std::string& text) {
      for (const std::string& line : split(text, '\n')) {
        if (trim(line).empty() || seen++ % every != 0) continue;
        sentences.push_back(line);
        if (sentences.size() < kMost) continue;
        for (std::size_t i = 0; 2 * i < sentences.size(); ++i) sentences[i] = std::move(sentences[2 * i]);
        sentences.resize((sentences.size() + 1) / 2);
        every *= 2;
      }
    };
    for (const Job& job : jobs_) {
      if (!job.source->benchmark.empty()) continue;
      formats::Input input = formats::Input::file(job.file.path);
      formats::BadRecords bad;
      bad.skip = options_.skip_bad;
      formats::find_format(job.source->format, job.source->where)
          .read(input, bad,
                {[&](const formats::FileFacts& facts) { add(facts.definition); },
                 [&](formats::Record&& record) {
                   add(record.context);
                   add(record.question_as_written);
                   if (!record.answers.empty()) add(record.answers.front());
                   add(record.rationale);
                 }});
    }
    if (sentences.empty()) usage_fail("--tokenizer: there is no training text to train one on; name a model");
    const std::int32_t vocabulary = options_.vocabulary == 0 ? kVocabulary : options_.vocabulary;
    log_info("training a tokenizer of {} pieces on {} lines", vocabulary, sentences.size());
    std::size_t at = 0;
    TokenizerTraining training;
    training.vocabulary = vocabulary;
    train_tokenizer(
        [&](std::string& sentence) {
          if (at == sentences.size()) return false;
          sentence = sentences[at++];
          return true;
        },
        training, model);
  }

  /// Gives the number of files that were made.
  std::size_t run_jobs() {
    const Workshop shop{options_, plan_, *tokenizer_, held_out_, questions_};
    std::vector<std::function<void()>> work;
    Progress progress;
    for (Job& job : jobs_) {
      job.inputs = fmt::format("{} {}", crc32_hex(job.inputs), fingerprint_);
      if (manifest_.is_done(job.step, job.inputs)) continue;
      fs::create_directories(fs::path(options_.output) / job.source->name);
      work.emplace_back([this, &shop, &job, &progress] { run_job(shop, job, progress); });
    }
    const ProgressLine line(progress, std::int64_t(work.size()));
    run_parallel(work, options_.threads);
    return work.size();
  }

  void run_job(const Workshop& shop, const Job& job, Progress& progress) {
    const std::string path = options_.output + "/" + job.output;
    auto facts = make_unit(shop, *job.source, job.file, path, progress);
    if (facts["examples"] == 0) {
      if (facts["contaminated"] == 0 && facts["skipped"] == 0 && facts["empty"] == 0) {
        fail("{}: gave no example for [{}]", job.file.path, job.source->name);
      }
      log_info("{}: every example is held out, skipped or empty; there is no {}", job.file.path, job.output);
      fs::remove(path);  // of an earlier run
      const std::lock_guard lock(mutex_);
      empty_[job.step] = std::move(facts);
      return;
    }
    facts["released_file"] = job.file.path;
    facts["data_folder"] = data_folder();
    manifest_.record(job.step, job.inputs, job.output, std::move(facts), owner());
  }

  /// Whose steps these are: several plans may write to one folder.
  std::string owner() const { return fs::weakly_canonical(options_.plan).string(); }

  std::string data_folder() const { return fs::weakly_canonical(options_.data).string(); }

  /// Shards of sections that the plan no longer has, and of files that it no longer takes or that give nothing any
  /// more. What was made of a file that has gone stays, and so does what was made of another folder of data.
  void remove_stale() {
    std::set<std::string> steps;
    for (const Job& job : jobs_) {
      if (!empty_.contains(job.step)) steps.insert(job.step);
    }
    const auto stale = [&](const std::string& step, const nlohmann::json& facts) {
      const std::string section = step.substr(0, step.find('/'));
      if (!sections_.contains(section) || empty_.contains(step)) return true;
      if (!options_.only.empty() && !matches_any(options_.only, section)) return false;
      return facts.value("data_folder", "") == data_folder() && fs::exists(facts.value("released_file", ""));
    };
    for (const std::string& file : manifest_.own(owner(), steps, stale)) {
      log_info("removed: {}/{}, which {} no longer makes", options_.output, file, options_.plan);
    }
  }

  void print_table() const {
    log_info("{:24} {:>6} {:>10} {:>12} {:>8} {:>8} {:>8} {:>8} {:>8}", "source", "files", "examples", "tokens",
             "skipped", "held out", "cut", "no shots", "empty");
    for (const Source& source : plan_.sources) {
      std::int64_t files = 0;
      std::map<std::string, std::int64_t> sum;
      std::string first;
      for (const Job& job : jobs_) {
        if (job.source != &source) continue;
        const auto none = empty_.find(job.step);
        const auto facts = none == empty_.end() ? manifest_.facts(job.step) : none->second;
        ++files;
        for (const char* key : {"examples", "tokens", "skipped", "contaminated", "cut", "without_exemplars", "empty"})
          sum[key] += facts.value(key, std::int64_t(0));
        if (first.empty()) first = facts.value("first_skipped", std::string());
      }
      if (files == 0) continue;
      log_info("{:24} {:>6} {:>10} {:>12} {:>8} {:>8} {:>8} {:>8} {:>8}", source.name, files, sum["examples"],
               sum["tokens"], sum["skipped"], sum["contaminated"], sum["cut"], sum["without_exemplars"], sum["empty"]);
      if (!first.empty()) log_info("  skipped first: {}", first);
    }
  }

  const ConvertOptions& options_;
  Plan plan_;
  Manifest manifest_;
  HeldOutList held_out_;
  HeldOutQuestions questions_;
  std::string held_out_state_, fingerprint_;
  std::set<std::string> sections_;  // of the whole plan
  std::vector<Job> jobs_;
  std::vector<const Source*> missing_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::mutex mutex_;
  std::map<std::string, nlohmann::json> empty_;  // facts of steps that gave no example; guarded by mutex_
};

}  // namespace

void convert(const ConvertOptions& options) {
  fs::create_directories(options.output);
  Conversion(options).run();
}

}  // namespace flanmoe::flan
