// From released files to shards: plans, restarts, what is held out, and the plans and templates of input/.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <set>

#include "data/flan/collection.hpp"
#include "data/flan/convert.hpp"
#include "data/flan/held_out.hpp"
#include "data/manifest.hpp"
#include "data/patterns.hpp"
#include "data/text.hpp"
#include "data_fixture.hpp"
#include "flan_fixture.hpp"
#include "real_data.hpp"

namespace flanmoe::flan {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

const std::string kInput = std::string(FLANMOE_SOURCE_DIR) + "/input";

TEST(Plans, SectionsBecomeSourcesWithDefaults) {
  const Plan plan = parse_plan(
      "held_out = h.txt\n[cot]\nformat = cot_tsv\nfiles = c/*_train.tsv\ntemplates = flan/reasoning\nvariants = cot "
      "zero_shot\n[mmlu]\nbenchmark = mmlu\nformat = mmlu\nfiles = m.csv\ntemplates = benchmarks/mmlu\nvariants = "
      "few_shot\nshots = 5\nexemplars = d.csv\n",
      "p.ini");
  EXPECT_EQ(plan.held_out, "h.txt");
  ASSERT_THAT(plan.sources, SizeIs(2));
  EXPECT_EQ(plan.sources[0].task, "cot_*");
  EXPECT_EQ(plan.sources[0].split, "train");
  EXPECT_THAT(plan.sources[0].variants, ElementsAre("cot", "zero_shot"));
  EXPECT_EQ(plan.sources[1].task, "mmlu");
  EXPECT_EQ(plan.sources[1].split, "test");
  EXPECT_EQ(plan.sources[1].exemplar_format, "mmlu");
  EXPECT_EQ(plan.sources[1].where, "p.ini:7");
}

TEST(Plans, WrongOnesAreNamedByLine) {
  const std::string good = "[a]\nformat = cot_tsv\nfiles = x\ntemplates = t\n";
  const std::vector<std::pair<std::string, std::string>> table = {
      {"", "p.ini: expected a [section]"},
      {"x = y\n", "p.ini:1: unknown key \"x\" before the first [section]"},
      {good + "fromat = z\n", "p.ini:5: unknown key \"fromat\"; nearest: format"},
      {"[a]\nformat = cot\n", "p.ini:2: there is no format 'cot'; nearest: "},
      {good + "variants = zero_shots\n", "p.ini:5: there is no variant 'zero_shots'; nearest: zero_shot"},
      {good + good, "p.ini:5: a second section [a]"},
      {"[a]\nfiles = x\n", "p.ini:1: [a] has no format"},
      {"[a]\nformat = cot_tsv\n", "p.ini:1: [a] has no files"},
      {"[a]\nformat = cot_tsv\nfiles = x\n", "p.ini:1: [a] needs templates"},
      {"[a]\nformat = flat\nfiles = x\ntemplates = t\n", "takes no templates"},
      {"[a]\nformat = cot_tsv\nfiles = */*.tsv\ntemplates = t\n", "p.ini:1: expected at most one *"},
      {"[a/b]\nformat = cot_tsv\n", "p.ini:1: expected a name without"},
      {good + "shots = 3\n", "need a benchmark"},
      {good + "benchmark = bbh\n", "the benchmark [a] needs variants"},
      {good + "shots = many\n", "p.ini:5: expected shots to be a number"},
      {good + "inverted_share = 0\n", "p.ini:5: expected inverted_share to be above 0 and at most 1, found \"0\""},
      {good + "inverted_share = 30%\n", "p.ini:5: expected inverted_share"},
      {good + "benchmark = bbh\nvariants = cot\ninverted_share = 0.3\n", "[a] is a benchmark"},
  };
  for (const auto& [text, message] : table) {
    EXPECT_THAT(error_of([&] { parse_plan(text, "p.ini"); }), HasSubstr(message)) << text;
  }
}

class Conversions : public testing::Test {
 protected:
  Conversions() {
    fs::create_directories(folder_.path() / "data");
    fs::create_directories(folder_.path() / "templates");
    write("templates/t.txt", "category = c\nseparator = \\n\\n\ncue = A:\n[one]\ninput = {question}{choices}\n");
    write("data/a_train.tsv", lines("a", 30));
    write("data/b_train.tsv", lines("b", 20));
    write("plan.ini", "[cot]\nformat = cot_tsv\nfiles = *_train.tsv\ntemplates = t\n");
    options_.plan = folder_.file("plan.ini");
    options_.data = folder_.file("data");
    options_.output = folder_.file("out");
    options_.templates = folder_.file("templates");
    options_.tokenizer = small_model();
    options_.threads = 2;
  }
  static std::string lines(const std::string& name, int count) {
    std::string text;
    for (int i = 0; i < count; ++i) text += fmt::format("question {} {}?\tanswer {}\treason {}\n", name, i, i, i);
    return text;
  }
  void write(const std::string& name, const std::string& text) const { std::ofstream(folder_.file(name)) << text; }
  std::map<std::string, fs::file_time_type> outputs() const {
    std::map<std::string, fs::file_time_type> times;
    for (const auto& entry : fs::recursive_directory_iterator(options_.output)) {
      if (entry.is_regular_file() && entry.path().filename() != "manifest.json") {
        times[fs::relative(entry.path(), options_.output).string()] = entry.last_write_time();
      }
    }
    return times;
  }
  TokenIds all_tokens(const std::string& name) const {
    const ShardReader shard(folder_.file(name));
    TokenIds tokens(std::size_t(shard.total_tokens()));
    shard.read_tokens(0, tokens);
    return tokens;
  }
  nlohmann::json facts(const std::string& step) const { return Manifest(options_.output).facts(step); }
  std::string failure() const {
    return error_of([&] { convert(options_); });
  }

  TemporaryFolder folder_;
  ConvertOptions options_;
};

TEST_F(Conversions, EveryFileBecomesAShardThatRecordsTaskTemplateAndVariant) {
  convert(options_);
  EXPECT_THAT(outputs(), testing::UnorderedElementsAre(testing::Key("cot/a.h5"), testing::Key("cot/b.h5")));
  const ShardReader shard(folder_.file("out/cot/a.h5"));
  EXPECT_EQ(shard.tokenizer(), Tokenizer(small_model()).identity());
  const auto made = facts("cot/a");
  EXPECT_EQ(made["variants"]["zero_shot"], 30);
  EXPECT_EQ(std::int64_t(made["examples"]), shard.size());
  EXPECT_EQ(int(made["variants"]["few_shot"]) + int(made["without_exemplars"]), 30);
  std::set<std::string> variants;
  for (std::int64_t i = 0; i < shard.size(); ++i) {
    EXPECT_EQ(shard.task(i), "cot_a");
    EXPECT_EQ(shard.template_name(i), "one");
    EXPECT_EQ(shard.split(i), "train");
    variants.insert(shard.variant(i));
  }
  EXPECT_THAT(variants, ElementsAre("few_shot", "zero_shot"));
}

TEST_F(Conversions, TheSameAgainMakesOnlyWhatChanged) {
  convert(options_);
  const auto first = outputs();
  const TokenIds tokens = all_tokens("out/cot/a.h5");
  convert(options_);
  EXPECT_EQ(outputs(), first);
  write("data/b_train.tsv", lines("b", 21));
  convert(options_);
  EXPECT_EQ(outputs().at("cot/a.h5"), first.at("cot/a.h5"));
  EXPECT_NE(outputs().at("cot/b.h5"), first.at("cot/b.h5"));
  EXPECT_EQ(facts("cot/b")["variants"]["zero_shot"], 21);
  // A lost file, another template and other limits are noticed, and the same inputs give the same tokens.
  fs::remove(folder_.file("out/cot/a.h5"));
  convert(options_);
  EXPECT_EQ(all_tokens("out/cot/a.h5"), tokens);
  write("templates/t.txt", "category = c\nseparator = \\n\n[two]\ninput = {question}\n");
  convert(options_);
  EXPECT_EQ(ShardReader(folder_.file("out/cot/a.h5")).template_name(0), "two");
  options_.limits.target_tokens = 4;
  convert(options_);
  EXPECT_EQ(ShardReader(folder_.file("out/cot/a.h5")).target_length(0), 3);
}

TEST_F(Conversions, AMalformedLineStopsOrIsCounted) {
  write("data/b_train.tsv", lines("b", 5) + "bad line\n" + lines("c", 5));
  EXPECT_THAT(failure(), HasSubstr("b_train.tsv:6: expected 3 columns"));
  EXPECT_FALSE(fs::exists(folder_.file("out/cot/b.h5")));
  for (const auto& [name, time] : outputs()) EXPECT_THAT(name, testing::EndsWith(".h5"));  // nothing half-written
  options_.skip_bad = true;
  convert(options_);
  EXPECT_EQ(facts("cot/b")["skipped"], 1);
  EXPECT_THAT(std::string(facts("cot/b")["first_skipped"]), HasSubstr("b_train.tsv:6"));
  EXPECT_EQ(facts("cot/b")["variants"]["zero_shot"], 10);
}

TEST_F(Conversions, HeldOutQuestionsAreLeftOutAndHeldOutTasksRefused) {
  write("held.txt", "file cot_tsv test.tsv\n");
  write("plan.ini", "held_out = held.txt\n[cot]\nformat = cot_tsv\nfiles = *_train.tsv\ntemplates = t\n");
  write("data/test.tsv", "QUESTION  a 7\tanswer 7\tr\nquestion a 8?\tother\tr\nquestion z\tx\ty\n");
  convert(options_);
  EXPECT_EQ(facts("cot/a")["contaminated"], 2);
  EXPECT_EQ(facts("cot/a")["variants"]["zero_shot"], 28);
  EXPECT_EQ(facts("cot/b")["contaminated"], 0);
  write("held.txt", "task other cot_b\n");
  EXPECT_THAT(failure(), HasSubstr("task cot_b is held out by held.txt"));
  // Ready prompts name their tasks: those are left out, and a file with no other gives no shard and no error.
  write("data/dump.jsonl",
        R"({"inputs":"question one","targets":"red","task_name":"q","template_type":"zs_opt"}
{"inputs":"question two","targets":"red","task_name":"exam","template_type":"zs_opt"})");
  write("held.txt", "task d_exam\nfile cot_tsv gone.tsv\n");
  write("plan.ini", "held_out = held.txt\n[d]\nformat = flat\nfiles = *.jsonl\n");
  convert(options_);
  EXPECT_EQ(ShardReader(folder_.file("out/d/dump.h5")).size(), 1);
  EXPECT_EQ(facts("d/dump")["contaminated"], 1);
  write("plan.ini", "held_out = held.txt\n[d]\nformat = flat\nfiles = *.jsonl\nexclude = q\n");
  convert(options_);
  EXPECT_FALSE(fs::exists(folder_.file("out/d/dump.h5")));
  write("plan.ini", "held_out = held.txt\n[cot]\nformat = cot_tsv\nfiles = *_train.tsv\ntemplates = t\n");
  write("held.txt", "hold cot_b\n");
  EXPECT_THAT(failure(), HasSubstr("held.txt:1: expected \"task PATTERN...\" or \"file FORMAT PATH\""));
}

TEST_F(Conversions, ReadyPromptsKeepTheirTasksAndVariants) {
  write("data/dump.jsonl",
        R"({"inputs":"question one","targets":"red","task_name":"q","template_type":"zs_opt","task_source":"Flan2021"}
{"inputs":"question two","targets":"blue","task_name":"r","template_type":"fs_noopt","task_source":"Flan2021"})");
  write("data/text.txt", "The sky is blue.\n\nThe snow is not.\n");
  write("plan.ini",
        "[dump]\nformat = flat\nfiles = *.jsonl\ntask = flan2021_*\n[text]\nformat = text\nfiles = text.txt\n");
  convert(options_);
  const ShardReader dump(folder_.file("out/dump/dump.h5"));
  ASSERT_EQ(dump.size(), 2);
  EXPECT_EQ(dump.task(0), "flan2021_q");
  EXPECT_EQ(dump.task(1), "flan2021_r");
  EXPECT_EQ(dump.category(1), "Flan2021");
  EXPECT_EQ(dump.variant(1), "few_shot_no_options");
  const ShardReader text(folder_.file("out/text/text.h5"));
  ASSERT_EQ(text.size(), 2);
  EXPECT_FALSE(text.has_target(0));
  EXPECT_EQ(text.task(0), "text");
}

TEST_F(Conversions, MissingFilesAreLeftOutAndNothingAtAllIsAnError) {
  write("plan.ini",
        "[cot]\nformat = cot_tsv\nfiles = *_train.tsv\ntemplates = t\n[gone]\nformat = flat\nfiles = x/*.gz\n");
  convert(options_);
  EXPECT_THAT(outputs(), SizeIs(2));
  // A list of names is asked for only where there are files; exclude leaves files out.
  write("plan.ini",
        "[cot]\nformat = cot_tsv\nfiles = *_train.tsv\ntemplates = t\nexclude = b*\n[gone]\nformat = flat\nfiles = "
        "x/*.gz\nonly_from = x/list.txt\n");
  fs::remove_all(options_.output);
  fs::create_directories(options_.output);
  convert(options_);
  EXPECT_THAT(outputs(), ElementsAre(testing::Key("cot/a.h5")));
  options_.only = {"gone"};
  EXPECT_THAT(failure(), HasSubstr("none of its files is in"));
  options_.only = {"cots"};
  EXPECT_THAT(failure(), HasSubstr("--only: 'cots' matches none"));
}

TEST_F(Conversions, ATokenizerIsTrainedWhereNoneIsNamed) {
  options_.tokenizer.clear();
  options_.vocabulary = 290;
  std::string text;
  const char* things[] = {"stone", "river", "window", "table", "garden", "letter", "winter", "summer", "mountain"};
  const char* kinds[] = {"loud", "soft", "quick", "bright", "dull", "heavy", "light", "warm", "plain", "strange"};
  for (int i = 0; i < 3000; ++i) {
    text += fmt::format("question {} of the {}er {}s near the {}\tanswer {}\treason of {} farmers\n", i, kinds[i % 10],
                        things[i % 9], things[i % 7], i * 37 % 1000, kinds[i % 3]);
  }
  write("data/a_train.tsv", text);
  convert(options_);
  EXPECT_EQ(ShardReader(folder_.file("out/cot/a.h5")).tokenizer(),
            Tokenizer(folder_.file("out/tokenizer.model")).identity());
  const auto first = outputs();
  convert(options_);
  EXPECT_EQ(outputs(), first);
  // A size is not passed over because a model is there, trained or named.
  options_.vocabulary = 300;
  EXPECT_THAT(failure(), HasSubstr("--vocabulary: expected 290, the pieces of " + folder_.file("out/tokenizer.model")));
  EXPECT_EQ(outputs(), first);
  options_.tokenizer = small_model();
  EXPECT_THAT(failure(), HasSubstr("--vocabulary: expected 290, the pieces of " + small_model()));
  options_.vocabulary = 0;
  options_.tokenizer.clear();
  convert(options_);
  EXPECT_EQ(outputs(), first);
}

TEST_F(Conversions, WhatAPlanNoLongerMakesIsRemovedAndNothingElse) {
  const auto names = [&] {
    std::set<std::string> all;
    for (const auto& [name, time] : outputs()) all.insert(name);
    return all;
  };
  write("plan.ini",
        "[cot]\nformat = cot_tsv\nfiles = *_train.tsv\ntemplates = t\n[again]\nformat = cot_tsv\nfiles = "
        "*_train.tsv\ntemplates = t\n");
  convert(options_);
  const std::string first = options_.plan;
  write("other.ini", "[theirs]\nformat = cot_tsv\nfiles = a_train.tsv\ntemplates = t\n");
  options_.plan = folder_.file("other.ini");
  convert(options_);
  EXPECT_THAT(names(), ElementsAre("again/a.h5", "again/b.h5", "cot/a.h5", "cot/b.h5", "theirs/theirs.h5"));
  // A section that has gone, whatever --only selects; other plans keep their shards.
  options_.plan = first;
  write("plan.ini",
        "[cot]\nformat = cot_tsv\nfiles = *_train.tsv\ntemplates = t\n[more]\nformat = cot_tsv\nfiles = "
        "a_train.tsv\ntemplates = t\n");
  options_.only = {"more"};
  convert(options_);
  EXPECT_THAT(names(), ElementsAre("cot/a.h5", "cot/b.h5", "more/more.h5", "theirs/theirs.h5"));
  EXPECT_ANY_THROW(facts("again/a"));
  options_.only.clear();
  // What was made of a released file that has gone stays; a file that is there but no longer taken does not.
  fs::rename(folder_.file("data/b_train.tsv"), folder_.file("data/b_train.away"));
  convert(options_);
  EXPECT_TRUE(names().contains("cot/b.h5"));
  fs::rename(folder_.file("data/b_train.away"), folder_.file("data/b_train.tsv"));
  write("plan.ini", "[cot]\nformat = cot_tsv\nfiles = *_train.tsv\ntemplates = t\nexclude = b\n");
  convert(options_);
  EXPECT_THAT(names(), ElementsAre("cot/a.h5", "theirs/theirs.h5"));
  EXPECT_EQ(facts("theirs/theirs")["variants"]["zero_shot"], 30);
  // Another folder of data adds its shards and takes none away.
  fs::create_directories(folder_.path() / "more_data");
  write("more_data/c_train.tsv", lines("c", 10));
  options_.data = folder_.file("more_data");
  convert(options_);
  EXPECT_THAT(names(), ElementsAre("cot/a.h5", "cot/c.h5", "theirs/theirs.h5"));
}

TEST_F(Conversions, InvertedVariantsAskTheirShareOfTheRecords) {
  write("templates/t.txt",
        "category = c\nseparator = \\n\\n\n[one]\nchain_of_thought = yes\ninput = {question}\ntarget = "
        "{rationale}\n[back]\n"
        "inverted = yes\ninput = {rationale}\ntarget = {question}\n");
  const std::string plan = "[cot]\nformat = cot_tsv\nfiles = a_train.tsv\ntemplates = t\nvariants = cot cot_inverted\n";
  write("plan.ini", plan);
  convert(options_);
  EXPECT_EQ(facts("cot/cot")["variants"]["cot_inverted"], 30);
  write("plan.ini", plan + "inverted_share = 0.3\n");
  convert(options_);
  EXPECT_EQ(facts("cot/cot")["variants"]["cot"], 30);
  EXPECT_EQ(facts("cot/cot")["variants"]["cot_inverted"], 9);
}

TEST_F(Conversions, EmptyOutputsOfATaskAreCounted) {
  write("data/task.json",
        R"({"Definition": ["d"], "Categories": [], "Source": [], "Positive Examples": [], "Instances": [
{"input": "question one", "output": ["", "red"]}, {"input": "question two", "output": [""]}]})");
  write(
      "plan.ini",
      "[n]\nformat = natural_instructions\nfiles = task.json\ntemplates = t\nvariants = zero_shot\n"
      "[e]\nformat = natural_instructions\nfiles = task.json\ntemplates = t\nvariants = zero_shot\nbenchmark = niv2\n");
  convert(options_);
  for (const char* step : {"n/n", "e/e"}) {
    EXPECT_EQ(facts(step)["examples"], 1) << step;
    EXPECT_EQ(facts(step)["empty"], 1) << step;
  }
  EXPECT_EQ(ShardReader(folder_.file("out/e/e.h5")).read(0).answer, "red");
  // A file with no other outputs gives no shard and no error.
  write("data/task.json",
        R"({"Definition": ["d"], "Categories": [], "Source": [], "Positive Examples": [], "Instances": [
{"input": "question two", "output": [""]}]})");
  convert(options_);
  EXPECT_THAT(outputs(), IsEmpty());
}

TEST(Collection, CountsTasksAndWhatIsPresent) {
  const TemporaryFolder folder;
  std::ofstream(folder.file("info.csv"))
      << "Source,Dataset,Task\nCoT,stream_aqua,x\nCoT,stream_aqua,y\nNIv2,\"a, b\",z\n";
  std::ofstream(folder.file("aqua_train.tsv")) << "q\ta\tr\n";
  const Plan plan =
      parse_plan("[cot]\nformat = cot_tsv\nfiles = *_train.tsv\ntemplates = t\ndataset = other_* stream_*\n", "p");
  auto rows = read_collection(folder.file("info.csv"));
  find_present(plan, folder.path().string(), rows);
  ASSERT_THAT(rows, SizeIs(2));
  EXPECT_EQ(rows[0].dataset, "stream_aqua");
  EXPECT_EQ(rows[0].tasks, 2);
  EXPECT_EQ(rows[0].present, 1);
  EXPECT_EQ(rows[1].dataset, "a, b");
  EXPECT_EQ(rows[1].present, 0);
  const std::string table = describe_collection(rows);
  EXPECT_THAT(table, HasSubstr("all                        2         3                  1      1"));
}

// What input/ brings.

TEST(Templates, TenOfEachKindAndEveryFieldIsKnown) {
  formats::Record record;
  record.question = record.question_as_written = "q";
  record.choices = {"a", "b"};
  record.labels.resize(2);
  record.gold = 0;
  record.answers = {"a"};
  const OptionStyle style;
  Item item = item_of(record, &style);
  for (const char* name : {"example_input", "example_output", "example_explanation"})
    item.fields.emplace_back(name, "x");
  int files = 0;
  for (const char* folder : {"flan", "benchmarks"}) {
    for (const auto& entry : fs::directory_iterator(kInput + "/templates/" + folder)) {
      const std::string path = entry.path().string();
      const TemplateFile file = parse_templates(read_whole_file(path), path, "t", 1);
      std::map<std::string, int> kinds;
      for (const Template& each : file.templates) {
        ++kinds[each.explained          ? "explained"
                : each.inverted         ? "inverted"
                : each.chain_of_thought ? "reasoned"
                                        : "direct"];
        EXPECT_FALSE(write_prompt(file, each, item, {{&each, item}}).input.empty()) << path;
      }
      for (const auto& [kind, count] : kinds) {
        if (std::string(folder) == "flan") {
          EXPECT_EQ(count, 10) << path << " " << kind;
        }
      }
      ++files;
    }
  }
  EXPECT_GE(files, 13);
}

TEST(InputPlans, AllParseAndTheirFilesOfTheProjectAreThere) {
  for (const char* name : {"flan2022", "benchmarks", "text"}) {
    const std::string path = kInput + "/shards/" + name + ".ini";
    const Plan plan = parse_plan(read_whole_file(path), path);
    for (const Source& source : plan.sources) {
      if (!source.templates.empty()) {
        EXPECT_TRUE(fs::exists(kInput + "/templates/" + source.templates + ".txt")) << source.where;
      }
      if (source.exemplars.starts_with("exemplars/")) {
        formats::Input input = formats::Input::file(kInput + "/shards/" + source.exemplars);
        formats::BadRecords bad;
        const auto content = read_all(formats::find_format(source.exemplar_format, "test"), input, bad);
        EXPECT_EQ(std::int64_t(content.records.size()), source.shots) << source.where;
      }
    }
  }
  const std::string list = kInput + "/shards/held_out.txt";
  EXPECT_THAT(parse_held_out(read_whole_file(list), list).files, SizeIs(9));
}

TEST(InputPlans, TasksMadeOfBenchmarksAreNoTrainingData) {
  const std::string path = kInput + "/shards/flan2022.ini", list = kInput + "/shards/held_out.txt";
  const auto held = parse_held_out(read_whole_file(list), list).tasks;
  const Plan plan = parse_plan(read_whole_file(path), path);
  for (const char* task :
       {"task667_mmmlu_answer_generation_business_ethics", "task864_asdiv_singleop_question_answering",
        "task751_svamp_subtraction_question_answering"}) {
    EXPECT_TRUE(matches_any(held, std::string("niv2_") + task)) << task;
    for (const Source& source : plan.sources) {
      if (source.name.starts_with("niv2")) {
        EXPECT_TRUE(matches_any(source.exclude, task)) << source.name;
      }
    }
  }
  EXPECT_FALSE(matches_any(held, "cot_strategyqa"));  // chain of thought is trained on; its test questions are held out
}

TEST(ReleasedFiles, BenchmarksBecomeEvaluationShards) {
  FLANMOE_NEED_DATA("bbh/bbh");
  const TemporaryFolder folder;
  ConvertOptions options;
  options.plan = kInput + "/shards/benchmarks.ini";
  options.data = real_data();
  options.output = folder.path().string();
  options.templates = kInput + "/templates";
  options.tokenizer = real_data() + "/tokenizers/seqio_sentencepiece.model";
  options.only = {"gsm8k", "asdiv", "svamp", "strategyqa", "arc_*", "boolq", "niv2"};
  options.threads = 2;
  convert(options);
  const std::map<std::string, std::int64_t> counts = {{"gsm8k", 660},      {"asdiv", 1153},    {"svamp", 500},
                                                      {"strategyqa", 115}, {"arc_easy", 1188}, {"arc_challenge", 586},
                                                      {"boolq", 1635}};
  for (const auto& [name, count] : counts) {
    const ShardReader shard(folder.file(name + "/" + name + ".h5"));
    EXPECT_EQ(shard.size(), count) << name;
    const bool direct = shard.variant(0) == "zero_shot";
    const Example example = shard.read(0);
    EXPECT_EQ(example.split, "test");
    EXPECT_EQ(example.gold >= 0, direct) << name;
    EXPECT_FALSE(example.answer.empty());
    EXPECT_EQ(shard.task_info(0).benchmark, direct ? "qa" : "reasoning");
  }
  const ShardReader niv2(folder.file("niv2/task640_esnli_classification.h5"));
  EXPECT_EQ(niv2.task_info(0).score, ScoreRule::rouge_l);
  EXPECT_EQ(niv2.task(0), "niv2_task640_esnli_classification");
}

}  // namespace
}  // namespace flanmoe::flan
