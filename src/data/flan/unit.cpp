#include "data/flan/unit.hpp"

#include <algorithm>
#include <memory>

#include "base/error.hpp"
#include "data/flan/evaluation.hpp"
#include "data/formats/json_text.hpp"
#include "data/patterns.hpp"
#include "data/task_info.hpp"
#include "data/text.hpp"

namespace flanmoe::flan {
namespace {

using formats::FileContent;
using formats::Input;
using formats::Record;

class Unit {
 public:
  Unit(const Workshop& shop, const Source& source, const SourceFile& file, const std::string& output,
       Progress& progress)
      : shop_(shop),
        source_(source),
        file_(file),
        progress_(progress),
        task_(with_star(source.task, file.star)),
        writer_(output, shop.tokenizer.identity()) {
    bad_.skip = shop.options.skip_bad;
    if (source.format != "flat") refuse_held_out(task_);  // a dump names the task of every example
  }

  nlohmann::json make() {
    if (source_.templates.empty()) {
      make_ready();
    } else {
      make_prompts();
    }
    if (examples_ > 0) writer_.finish();
    progress_.skipped += bad_.skipped;
    return {{"examples", examples_},        {"tokens", tokens_},
            {"variants", counts_.examples}, {"skipped", bad_.skipped},
            {"first_skipped", bad_.first},  {"contaminated", contaminated_},
            {"cut", counts_.cut},           {"without_exemplars", counts_.without_exemplars},
            {"empty", counts_.empty},       {"sources", sources_}};
  }

 private:
  bool evaluates() const { return !source_.benchmark.empty(); }

  void refuse_held_out(const std::string& task) const {
    if (evaluates() || !matches_any(shop_.held_out.tasks, task)) return;
    usage_fail("{}: task {} is held out by {} and may not be made into training data", source_.where, task,
               shop_.plan.held_out);
  }

  bool is_contaminated(const Record& record) {
    if (evaluates() || !shop_.questions.contains(record)) return false;
    ++contaminated_;
    return true;
  }

  void add(Example&& example, const std::string& task, const std::string& category) {
    example.task = task;
    example.category = category;
    example.split = source_.split;
    const auto tokens = std::int64_t(example.input.size() + example.target.size());
    writer_.add(example);
    ++examples_;
    tokens_ += tokens;
    ++progress_.examples;
    progress_.tokens += tokens;
  }

  std::string category_of(const std::string& from_file) const {
    if (!source_.category.empty()) return source_.category;
    return from_file.empty() ? source_.name : from_file;
  }

  /// Text and prompts that were made elsewhere: a stream, whatever the length of the file.
  void make_ready() {
    Input input = Input::file(file_.path);
    formats::find_format(source_.format, source_.where)
        .read(input, bad_,
              {[](const formats::FileFacts&) {},
               [&](Record&& record) {
                 if (!is_contaminated(record)) add_ready(record);
               }});
  }

  void add_ready(const Record& record) {
    // A dump names the task of every example; the plan's name stands before it.
    const std::string task = record.is_text ? task_ : with_star(source_.task, record.task);
    if (matches_any(source_.exclude, record.task) || matches_any(shop_.held_out.tasks, task)) {
      ++contaminated_;
      return;
    }
    Example example;
    example.input = shop_.tokenizer.encode(trim(record.question));
    example.has_target = !record.is_text;
    example.variant = example.template_name = record.is_text ? "text" : record.variant;
    if (example.has_target) {
      example.target = shop_.tokenizer.encode(record.answers.front());
      example.answer = record.answers.front();
      cut(example);
    }
    if (example.input.empty() || (example.has_target && example.target.empty())) {
      ++counts_.empty;
      return;
    }
    ++counts_.examples[example.variant];
    add(std::move(example), task, category_of(record.is_text ? "text" : record.category));
  }

  void cut(Example& example) {
    const auto most_input = std::size_t(shop_.options.limits.input_tokens - 1);
    const auto most_target = std::size_t(shop_.options.limits.target_tokens - 1);
    if (example.input.size() <= most_input && example.target.size() <= most_target) return;
    ++counts_.cut;
    example.input.resize(std::min(example.input.size(), most_input));
    example.target.resize(std::min(example.target.size(), most_target));
  }

  FileContent read(const std::string& format, const std::string& path) {
    Input input = Input::file(path);
    return read_all(formats::find_format(format, source_.where), input, bad_);
  }

  void make_prompts() {
    const std::string path = shop_.options.templates + "/" + source_.templates + ".txt";
    const TemplateFile templates = parse_templates(read_whole_file(path), path, task_, 1);
    FileContent content = read(source_.format, file_.path);
    sources_ = content.facts.sources;
    std::erase_if(content.records, [&](const Record& record) { return is_contaminated(record); });
    for (Record& record : content.records) record.task = file_.star;
    const std::string category =
        category_of(content.facts.category.empty() ? templates.category : content.facts.category);
    const auto keep = [&](Example&& example) { add(std::move(example), task_, category); };
    if (evaluates()) {
      describe();
      make_evaluation(source_, parts(templates, content), content, shop_.tokenizer, shop_.options.limits, counts_,
                      keep);
      return;
    }
    PromptMaker maker(templates, content, task_, shop_.tokenizer, shop_.options.limits);
    for (const Variant& variant : variants()) {
      const auto& wanted = source_.variants;
      const bool made = wanted.empty() || std::find(wanted.begin(), wanted.end(), variant.name) != wanted.end();
      const bool inverted = variant.kind == Variant::Kind::inverted;
      if (made) maker.make(variant, keep, inverted ? source_.inverted_share : 1);
    }
    counts_ = maker.counts();
  }

  void describe() {
    const auto info = published_task(source_.benchmark, file_.star);
    if (!info) {
      usage_fail("{}: benchmark {} has no task {}", source_.where, source_.benchmark, file_.star);
    }
    writer_.describe_task(task_, *info);
  }

  EvaluationParts parts(const TemplateFile& templates, const FileContent& content) {
    EvaluationParts parts{templates, {}, {}};
    if (!source_.prompts.empty()) {
      const std::string path = find_beside(shop_.plan, source_.prompts, shop_.options.data, source_.where);
      Input input = Input::file(path);
      const auto json = formats::parse_json_file(input, "").value;
      parts.prompt = std::string(trim(formats::text_member(json, file_.star.c_str(), path)));
    } else if (!source_.exemplars.empty()) {
      const std::string name = with_star(source_.exemplars, file_.star);
      parts.exemplars = read(source_.exemplar_format, find_beside(shop_.plan, name, shop_.options.data, source_.where));
      for (Record& record : parts.exemplars.records) record.task = file_.star;
    } else {
      for (const formats::Demonstration& shown : content.facts.demonstrations) {
        Record record;
        record.question = record.question_as_written = shown.input;
        record.answers = {shown.output};
        parts.exemplars.records.push_back(std::move(record));
      }
    }
    return parts;
  }

  const Workshop& shop_;
  const Source& source_;
  const SourceFile& file_;
  Progress& progress_;
  std::string task_;
  ShardWriter writer_;
  formats::BadRecords bad_;
  PromptCounts counts_;
  std::vector<std::string> sources_;
  std::int64_t examples_ = 0, tokens_ = 0, contaminated_ = 0;
};

}  // namespace

nlohmann::json make_unit(const Workshop& shop, const Source& source, const SourceFile& file, const std::string& output,
                         Progress& progress) {
  auto facts = Unit(shop, source, file, output, progress).make();
  ++progress.units;
  return facts;
}

}  // namespace flanmoe::flan
