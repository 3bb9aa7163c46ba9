// Readers of released data sets, on small texts written here and on the released files.
#include "data/formats/formats.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zlib.h>

#include <algorithm>
#include <fstream>
#include <set>
#include <sstream>

#include "data/text.hpp"
#include "data_fixture.hpp"
#include "real_data.hpp"

namespace flanmoe::formats {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

FileContent read(const std::string& format, const std::string& text, BadRecords bad = {}) {
  Input input = Input::memory("file", text);
  return read_all(find_format(format, "test"), input, bad);
}

std::vector<Record> records(const std::string& format, const std::string& text) { return read(format, text).records; }

std::vector<std::string> real_files(const std::string& folder, const std::string& end) {
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(real_data() + "/" + folder)) {
    const std::string path = entry.path().string();
    if (path.ends_with(end)) files.push_back(path);
  }
  std::sort(files.begin(), files.end());
  return files;
}

FileContent read_real(const std::string& format, const std::string& path) {
  Input input = Input::file(path);
  BadRecords bad;
  return read_all(find_format(format, "test"), input, bad);
}

std::size_t count_real(const std::string& format, const std::string& name) {
  return read_real(format, real_data() + "/" + name).records.size();
}

TEST(Formats, FlatDumpsKeepPromptTaskAndVariant) {
  const auto all = records(
      "flat",
      R"({"inputs":"Is it?\nyes or no","targets":"yes","task_source":"Flan2021","task_name":"q","template_type":"zs_opt"}
{"inputs":"b","targets":"c","task_name":"r","template_type":"fs_noopt"})");
  ASSERT_THAT(all, SizeIs(2));
  EXPECT_EQ(all[0].question, "Is it?\nyes or no");
  EXPECT_THAT(all[0].answers, ElementsAre("yes"));
  EXPECT_EQ(all[0].task, "q");
  EXPECT_EQ(all[0].category, "Flan2021");
  EXPECT_EQ(all[0].variant, "zero_shot");
  EXPECT_EQ(all[1].variant, "few_shot_no_options");
}

TEST(Formats, ReadsGzipAsTheSameLines) {
  const TemporaryFolder folder;
  const std::string text =
      "\xEF\xBB\xBF{\"inputs\":\"a\",\"targets\":\"b\",\"task_name\":\"t\",\"template_type\":\"zs_opt\"}\r\n";
  gzFile file = gzopen(folder.file("a.gz").c_str(), "wb");
  gzwrite(file, text.data(), unsigned(text.size()));
  gzclose(file);
  const auto all = read_real("flat", folder.file("a.gz")).records;
  ASSERT_THAT(all, SizeIs(1));
  EXPECT_EQ(all[0].question, "a");

  auto bytes = file_bytes(folder.file("a.gz"));
  bytes.resize(bytes.size() - 6);
  write_bytes(folder.file("cut.gz"), bytes);
  EXPECT_THAT(error_of([&] { read_real("flat", folder.file("cut.gz")); }), HasSubstr("cut.gz: damaged after line"));
}

TEST(Formats, CotSeparatesOptionsFromTheQuestion) {
  const auto all = records("cot_tsv",
                           "How much?\\nOptions:\\n(A) 3\\n(B) 4\t(B)\t2+2\\nis 4\n"
                           "Is it so?\\nOptions:\\n- yes\\n- no\tno\tbecause\n"
                           "Which?\\nOptions:\\n- (A) red sky\\n- (B) sea\t(A)\t.\n"
                           "Plain question?\tanswer\t\n"
                           "Absurd?\\nOptions:\\n- Sentence A: \"x\"\\n- Sentence B: \"y\"\tSentence B\tr\n");
  ASSERT_THAT(all, SizeIs(5));
  EXPECT_EQ(all[4].gold, 1);
  EXPECT_THAT(all[4].choices, ElementsAre("Sentence A: \"x\"", "Sentence B: \"y\""));
  EXPECT_EQ(all[0].question, "How much?");
  EXPECT_THAT(all[0].choices, ElementsAre("3", "4"));
  EXPECT_THAT(all[0].labels, ElementsAre("(A)", "(B)"));
  EXPECT_EQ(all[0].gold, 1);
  EXPECT_EQ(all[0].rationale, "2+2\nis 4");
  EXPECT_EQ(all[0].question_as_written, "How much?\nOptions:\n(A) 3\n(B) 4");
  EXPECT_THAT(all[1].choices, ElementsAre("yes", "no"));
  EXPECT_EQ(all[1].gold, 1);
  EXPECT_THAT(all[2].choices, ElementsAre("red sky", "sea"));
  EXPECT_EQ(all[2].gold, 0);
  EXPECT_THAT(all[3].choices, IsEmpty());
  EXPECT_EQ(all[3].question, "Plain question?");
}

TEST(Formats, AListWithoutTheAnswerStaysInTheQuestion) {
  const auto all = records("cot_tsv", "How?\\nOptions:\\n(A) 3\\n(B) 4\tfive\tr\n");
  EXPECT_EQ(all.at(0).question, "How?\nOptions:\n(A) 3\n(B) 4");
  EXPECT_THAT(all[0].choices, IsEmpty());
  EXPECT_EQ(all[0].gold, -1);
}

const char kTask[] = R"({
  "Source": ["s"], "Categories": ["C"], "Definition": ["Do it."],
  "Positive Examples": [{"input": "i", "output": "o", "explanation": "e"}],
  "Negative Examples": [{"input": "n", "output": "p"}],
  "Instances": [
    {"id": "x-1", "input": "one", "output": ["1", "I"]},
    {"id": "x-2", "input": "two", "output": ["2"]}
  ]
})";

TEST(Formats, NaturalInstructionsBringDefinitionAndExemplars) {
  const FileContent content = read("natural_instructions", kTask);
  EXPECT_EQ(content.facts.definition, "Do it.");
  EXPECT_EQ(content.facts.category, "C");
  EXPECT_THAT(content.facts.sources, ElementsAre("s"));
  ASSERT_THAT(content.facts.demonstrations, SizeIs(1));
  EXPECT_EQ(content.facts.demonstrations[0].explanation, "e");
  ASSERT_THAT(content.records, SizeIs(2));
  EXPECT_EQ(content.records[0].key, "x-1");
  EXPECT_THAT(content.records[0].answers, ElementsAre("1", "I"));
  EXPECT_EQ(content.records[1].question, "two");
  EXPECT_EQ(content.records[1].definition, "Do it.");
}

TEST(Formats, EmptyOutputsCountOnlyWhereThereAreNoOthers) {
  const auto all =
      records("natural_instructions",
              R"({"Definition": ["d"], "Categories": [], "Source": [], "Positive Examples": [], "Instances": [
    {"input": "i", "output": ["", " ", "a", "b"]}, {"input": "i", "output": ["", " "]}]})");
  ASSERT_THAT(all, SizeIs(2));
  EXPECT_THAT(all[0].answers, ElementsAre("a", "b"));
  EXPECT_THAT(all[1].answers, ElementsAre(""));
}

TEST(Formats, BareNaNOutsideOfTextsIsNoError) {
  std::string text = kTask;
  text.replace(text.find("[\"s\"]"), 5, "[\"NaN\"], \"URL\": [NaN, -Infinity]");
  const FileContent content = read("natural_instructions", text);
  EXPECT_THAT(content.facts.sources, ElementsAre("NaN"));
  EXPECT_THAT(content.records, SizeIs(2));
}

TEST(Formats, Gsm8kSplitsStepsFromTheResult) {
  const auto all = records("gsm8k", R"({"question":"q","answer":"48/2 = <<48/2=24>>24.\nSo 24.\n#### 1,024"})");
  EXPECT_THAT(all.at(0).answers, ElementsAre("1024"));
  EXPECT_EQ(all[0].rationale, "48/2 = 24.\nSo 24.");
}

TEST(Formats, MultipleChoiceTakesPassageLettersAndContextsApart) {
  const auto all = records("multiple_choice",
                           R"({"query":"Passage: Long ago.\nQuestion: is it?","choices":["no","yes"],"gold":1}
{"query":"Context: He slept.\nQuestion: Why?\nChoices:\nA. tired\nB. a bed: soft\nAnswer:","choices":["A","B"],"gold":0}
{"context_options":["The cup because the cup","The cup because the box"],"continuation":"is big.","gold":1}
{"query":"The tap was on, therefore","choices":["a","water ran."],"gold":1})");
  ASSERT_THAT(all, SizeIs(4));
  EXPECT_EQ(all[0].context, "Long ago.");
  EXPECT_EQ(all[0].question, "is it?");
  EXPECT_THAT(all[0].answers, ElementsAre("yes"));
  EXPECT_EQ(all[1].context, "He slept.");
  EXPECT_EQ(all[1].question, "Why?");
  EXPECT_THAT(all[1].choices, ElementsAre("tired", "a bed: soft"));
  EXPECT_THAT(all[1].answers, ElementsAre("tired"));
  EXPECT_THAT(all[2].choices, ElementsAre("The cup because the cup is big.", "The cup because the box is big."));
  EXPECT_EQ(all[2].question, "");
  EXPECT_EQ(all[2].gold, 1);
  EXPECT_EQ(all[3].question, "The tap was on, therefore");
}

TEST(Formats, CommonsenseQaAndStrategyQa) {
  const auto choice = records(
      "commonsense_qa",
      R"({"answerKey":"B","id":"7","question":{"question_concept":"c","choices":[{"label":"A","text":"x"},{"label":"B","text":"y"}],"stem":"s"}})");
  EXPECT_EQ(choice.at(0).gold, 1);
  EXPECT_EQ(choice[0].question, "s");
  EXPECT_THAT(choice[0].answers, ElementsAre("y"));
  const auto yes_no =
      records("strategyqa", R"([{"qid":"a","question":"q?","answer":false,"facts":["F one."," F two. "]}])");
  EXPECT_THAT(yes_no.at(0).answers, ElementsAre("no"));
  EXPECT_EQ(yes_no[0].rationale, "F one. F two.");
}

TEST(Formats, WordProblemsJoinBodyAndQuestion) {
  const auto svamp = records("svamp", R"([{"ID":"c-1","Body":"Two cups","Question":"How many?","Answer":51.0},
                   {"ID":"c-2","Body":"B.","Question":"Q?","Answer":-0.5}])");
  EXPECT_EQ(svamp.at(0).question, "Two cups How many?");
  EXPECT_THAT(svamp[0].answers, ElementsAre("51"));
  EXPECT_THAT(svamp.at(1).answers, ElementsAre("-0.5"));
  const auto asdiv = records("asdiv", R"(<?xml version="1.0"?><Machine-Reading-Corpus-File><ProblemSet>
<Problem ID="n1"><Body>A &amp; B.</Body><Question>How many?</Question><Answer>9 (apples)</Answer></Problem>
<Problem ID="n2"><Body>C.</Body><Question>Who?</Question><Answer>3:4</Answer></Problem>
<Problem ID="n3"><Body>C.</Body><Question>Who?</Question><Answer>2 (a); 3 (b)</Answer></Problem>
</ProblemSet></Machine-Reading-Corpus-File>)");
  EXPECT_EQ(asdiv.at(0).question, "A & B. How many?");
  EXPECT_THAT(asdiv[0].answers, ElementsAre("9"));
  EXPECT_THAT(asdiv.at(1).answers, ElementsAre("3:4"));
  EXPECT_THAT(asdiv.at(2).answers, ElementsAre("2 (a); 3 (b)"));
}

TEST(Formats, BbhHasChoicesFromItsOptionsOrFromTwoTargets) {
  const auto listed =
      records("bbh", R"x({"canary":"c","examples":[{"input":"Q?\nOptions:\n(A) x\n(B) y","target":"(B)"}]})x");
  EXPECT_EQ(listed.at(0).gold, 1);
  EXPECT_EQ(listed[0].question_as_written, "Q?\nOptions:\n(A) x\n(B) y");
  const auto two =
      records("bbh", R"({"examples":[{"input":"not True is","target":"False"},{"input":"True is","target":"True"}]})");
  EXPECT_THAT(two.at(0).choices, ElementsAre("False", "True"));
  EXPECT_EQ(two[0].gold, 0);
  EXPECT_EQ(two.at(1).gold, 1);
  const auto open = records(
      "bbh", R"({"examples":[{"input":"1+1","target":"2"},{"input":"1+2","target":"3"},{"input":"0","target":"0"}]})");
  EXPECT_THAT(open.at(0).choices, IsEmpty());
}

TEST(Formats, BbhPromptsSplitIntoInstructionAndExemplars) {
  const FileContent content =
      read("bbh_prompt",
           "canary\n-----\nDo the sum.\n\nWell.\n\nQ: 1+1 is\nA: Let's think step by step.\n1+1 = "
           "2. So the answer is 2.\n\nQ: Which?\nOptions:\n(A) x\n(B) y\nA: Let's think step by "
           "step.\nFirst.\n\nThen. So the answer is (B).");
  EXPECT_EQ(content.facts.definition, "Do the sum.\n\nWell.");
  ASSERT_THAT(content.records, SizeIs(2));
  EXPECT_EQ(content.records[0].question, "1+1 is");
  EXPECT_EQ(content.records[0].rationale, "1+1 = 2.");
  EXPECT_THAT(content.records[0].answers, ElementsAre("2"));
  EXPECT_EQ(content.records[1].rationale, "First.\n\nThen.");
  EXPECT_THAT(content.records[1].answers, ElementsAre("(B)"));
  EXPECT_EQ(content.records[1].gold, 1);
}

TEST(Formats, MmluReadsQuotesCommasAndLineEnds) {
  const auto all = records("mmlu", "\"one, \"\"two\"\"\nthree\",a,\"b,b\",c,d,C\nq,1,2,3,4,A\n");
  ASSERT_THAT(all, SizeIs(2));
  EXPECT_EQ(all[0].question, "one, \"two\"\nthree");
  EXPECT_THAT(all[0].choices, ElementsAre("a", "b,b", "c", "d"));
  EXPECT_EQ(all[0].gold, 2);
  EXPECT_THAT(all[0].answers, ElementsAre("C"));
}

TEST(Formats, TextIsParagraphsOrLines) {
  const auto paragraphs = records("text", "a b\nc\n\n \n d\n");
  ASSERT_THAT(paragraphs, SizeIs(2));
  EXPECT_EQ(paragraphs[0].question, "a b\nc");
  EXPECT_EQ(paragraphs[1].question, "d");
  EXPECT_TRUE(paragraphs[0].is_text);
  EXPECT_THAT(records("text_lines", "a\n\nb"), SizeIs(2));
  // A paragraph without an end is cut into parts of bounded length, nothing is lost.
  std::string endless;
  for (int i = 0; i < 300'000; ++i) endless += "word\n";
  std::size_t words = 0;
  const auto parts = records("text", endless);
  for (const Record& part : parts) words += split(part.question, '\n').size();
  EXPECT_EQ(words, 300'000U);
  EXPECT_GT(parts.size(), 1U);
}

struct Malformed {
  const char *format, *text, *message;
};

TEST(Formats, AMalformedRecordIsNamedByFileAndLine) {
  const std::vector<Malformed> table = {
      {"flat", "{\"inputs\":\"a\",\"targets\":\"b\",\"task_name\":\"t\",\"template_type\":\"z\"}\n{\"inputs\":1}",
       "file:2: expected \"inputs\" to be text, found 1"},
      {"flat", "not json", "file:1: expected a JSON object, found \"not json\""},
      {"flat", "[1]", "file:1: expected a JSON object"},
      {"flat", "{\"inputs\":\"a\",\"targets\":\"b\",\"template_type\":\"z\"}",
       "file:1: expected the key \"task_name\""},
      {"flat", "{\"inputs\":\"a\",\"targets\":\"b\",\"task_name\":\"\",\"template_type\":\"z\"}",
       "file:1: expected \"task_name\" to be a name"},
      {"cot_tsv", "a\tb\tc\na\tb", "file:2: expected 3 columns separated by tabs, found 2 in \"a?b\""},
      {"cot_tsv", "\tb\tc", "file:1: expected a question and an answer"},
      {"cot_tsv", "a\xFF\tb\tc", "file:1: expected UTF-8"},
      {"gsm8k", R"({"question":"q","answer":"no mark"})", "file:1: expected \"answer\" to end with \"#### NUMBER\""},
      {"gsm8k", R"({"question":"q","answer":"#### many"})", "file:1: expected \"answer\" to end with \"#### NUMBER\""},
      {"multiple_choice", R"({"query":"q","choices":["a","b"],"gold":2})", "file:1: expected \"gold\" to be one of 2"},
      {"multiple_choice", R"({"query":"q","choices":["a"],"gold":0})", "file:1: expected at least 2 choices, found 1"},
      {"multiple_choice", R"({"query":"q","choices":["A","B"],"gold":0})", "file:1: expected a line \"A. ...\""},
      {"commonsense_qa",
       R"({"answerKey":"C","id":"7","question":{"choices":[{"label":"A","text":"x"},{"label":"B","text":"y"}],"stem":"s"}})",
       "file:1: expected \"answerKey\" to be a label"},
      {"natural_instructions",
       "{\"Definition\": [\"d\"], \"Categories\": [], \"Source\": [], \"Positive Examples\": [],\n\"Instances\": "
       "[\n{\"input\": \"i\", \"output\": []}]}",
       "file:3: expected \"output\" to hold a text"},
      {"natural_instructions", "{\"Definition\": \"d\"}", "file: expected \"Definition\" to be a list of texts"},
      {"natural_instructions",
       "{\"Definition\": [\"d\"], \"Categories\": [], \"Source\": [], \"Positive Examples\": [],\n\"Instances\": "
       "[\n{\"input\": \"i\", \"output\": [\"a\", \"b\\u0000c\"]}]}",
       "file:3: expected answers without zero bytes, found \"b?c\""},
      {"flat", R"({"inputs":"a","targets":"b\u0000","task_name":"t","template_type":"z"})",
       "file:1: expected answers without zero bytes"},
      {"multiple_choice", R"({"query":"q","choices":["a","b\u0000"],"gold":0})",
       "file:1: expected answers without zero bytes"},
      {"bbh", R"({"examples":[{"input":"i","target":"\u0000"}]})", "file:1: expected answers without zero bytes"},
      {"strategyqa",
       "[\n{\"qid\": \"1\", \"question\": \"q\", \"answer\": true, \"facts\": []},\n{\"qid\": \"1\", \"question\": "
       "\"q\", \"answer\": \"yes\", \"facts\": []}]",
       "file:3: expected \"answer\" to be true or false, found \"yes\""},
      {"strategyqa", "[\n{\"qid\"", "file:2: expected JSON"},
      {"svamp", "[{\"ID\":\"1\",\"Body\":\"b\",\"Question\":\"q\",\"Answer\":\"x\"}]",
       "file:1: expected \"Answer\" to be a number"},
      {"svamp", "{}", "file: expected a list of objects"},
      {"asdiv", "<a>", "file:1: expected XML"},
      {"asdiv", "<a/>", "file: expected <Machine-Reading-Corpus-File>"},
      {"asdiv",
       "<Machine-Reading-Corpus-File><ProblemSet>\n<Problem "
       "ID=\"1\"><Body>b</Body></Problem></ProblemSet></Machine-Reading-Corpus-File>",
       "file:2: expected <Question> with a text"},
      {"bbh", "{\"examples\":[{\"input\":\"i\"}]}", "file:1: expected the key \"target\""},
      {"bbh_prompt", "no line", "file: expected a line \"-----\""},
      {"bbh_prompt", "c\n-----\nDo.\n\nQ: q\nA: because.", "file:5: expected the exemplar to end with"},
      {"mmlu", "q,1,2,3,4,A\nq,1,2,3,A", "file:2: expected 6 fields separated by commas, found 5"},
      {"mmlu", "q,1,2,3,4,E", "file:1: expected the last field to be A, B, C or D, found \"E\""},
      {"mmlu", "\"q,1", "file:1: expected a quote that closes the field"},
      {"text", "good\n\nbad \xC3", "file:3: expected UTF-8"},
      {"text_lines", "a\n\xFF", "file:2: expected UTF-8"},
  };
  for (const Malformed& each : table) {
    EXPECT_THAT(error_of([&] { read(each.format, each.text); }), HasSubstr(each.message))
        << each.format << ": " << each.text;
  }
}

TEST(Formats, SkippedRecordsAreCounted) {
  BadRecords bad;
  bad.skip = true;
  const std::string text = "a\tb\tc\nbad\n\nd\te\tf\n";
  Input input = Input::memory("file", text);
  EXPECT_THAT(read_all(find_format("cot_tsv", "test"), input, bad).records, SizeIs(2));
  EXPECT_EQ(bad.skipped, 2);
  EXPECT_THAT(bad.first, HasSubstr("file:2: expected 3 columns"));
}

TEST(Formats, AnUnknownFormatNamesTheNearest) {
  EXPECT_THAT(error_of([] { find_format("gsm8", "deck.ini:3"); }),
              HasSubstr("deck.ini:3: there is no format 'gsm8'; nearest: gsm8k"));
}

// What follows are the released files, with the counts of their README.

TEST(ReleasedFiles, CotCounts) {
  FLANMOE_NEED_DATA("cot");
  const std::vector<std::pair<std::string, std::size_t>> counts = {
      {"aqua", 2728}, {"creak", 6915},       {"ecqa", 7112},      {"gsm8k", 7473},
      {"qasc", 1084}, {"sensemaking", 6070}, {"strategyqa", 2061}};
  for (const auto& [name, count] : counts) {
    const auto all = read_real("cot_tsv", real_data() + "/cot/" + name + "_train.tsv").records;
    EXPECT_EQ(all.size(), count) << name;
    const auto with_choices = std::count_if(all.begin(), all.end(), [](const Record& r) { return r.gold >= 0; });
    const bool plain = name == "gsm8k" || name == "strategyqa";
    EXPECT_EQ(plain, with_choices == 0) << name;
    if (!plain) {
      // A third of creak asks without a list.
      EXPECT_GT(double(with_choices), (name == "creak" ? 0.7 : 0.98) * double(count)) << name;
    }
  }
}

TEST(ReleasedFiles, NaturalInstructionsCounts) {
  FLANMOE_NEED_DATA("niv2/tasks");
  std::set<std::string> tested;
  std::ifstream list(real_data() + "/niv2/splits/default/test_tasks.txt");
  for (std::string name; list >> name;) tested.insert(name);
  std::size_t train_tasks = 0, train = 0, test_tasks = 0, test = 0;
  for (const std::string& path : real_files("niv2/tasks", ".json")) {
    const std::size_t count = read_real("natural_instructions", path).records.size();
    const bool is_test = tested.contains(std::filesystem::path(path).stem().string());
    ++(is_test ? test_tasks : train_tasks);
    (is_test ? test : train) += count;
  }
  EXPECT_EQ(train_tasks, 172U);
  EXPECT_EQ(train, 49'685U);
  EXPECT_EQ(test_tasks, 12U);
  EXPECT_EQ(test, 1'184U);  // some have fewer than 100
}

TEST(ReleasedFiles, ReasoningCounts) {
  FLANMOE_NEED_DATA("gsm8k");
  EXPECT_EQ(count_real("gsm8k", "gsm8k/train.jsonl"), 7473U);
  EXPECT_EQ(count_real("gsm8k", "gsm8k/test.jsonl"), 660U);
  EXPECT_EQ(count_real("svamp", "svamp/SVAMP.json"), 500U);
  EXPECT_EQ(count_real("asdiv", "asdiv/ASDiv.xml"), 1153U);
  EXPECT_EQ(count_real("strategyqa", "strategyqa/train.json"), 2061U);
  EXPECT_EQ(count_real("strategyqa", "strategyqa/dev.json"), 115U);
}

TEST(ReleasedFiles, BbhAndMmluCounts) {
  FLANMOE_NEED_DATA("bbh/bbh");
  std::size_t examples = 0, prompts = 0;
  const auto files = real_files("bbh/bbh", ".json");
  EXPECT_THAT(files, SizeIs(14));
  for (const std::string& path : files) examples += read_real("bbh", path).records.size();
  EXPECT_EQ(examples, 3365U);
  for (const std::string& path : real_files("bbh/cot-prompts", ".txt")) {
    const FileContent content = read_real("bbh_prompt", path);
    EXPECT_THAT(content.records, SizeIs(3)) << path;
    EXPECT_FALSE(content.facts.definition.empty());
    ++prompts;
  }
  EXPECT_EQ(prompts, 14U);
  const auto dev = real_files("mmlu/data/dev", ".csv"), test = real_files("mmlu/data/test", ".csv");
  EXPECT_THAT(dev, SizeIs(29));
  EXPECT_THAT(test, SizeIs(29));
  std::size_t rows = 0;
  for (const std::string& path : dev) EXPECT_THAT(read_real("mmlu", path).records, SizeIs(5)) << path;
  for (const std::string& path : test) rows += read_real("mmlu", path).records.size();
  EXPECT_EQ(rows, 5'978U);
}

TEST(ReleasedFiles, MultipleChoiceCounts) {
  FLANMOE_NEED_DATA("qa");
  const std::vector<std::pair<std::string, std::size_t>> counts = {
      {"qa/arc_easy", 1188},         {"qa/arc_challenge", 586},     {"qa/boolq", 1635},
      {"flan2021/openbook_qa", 500}, {"flan2021/piqa", 1838},       {"flan2021/siqa", 1954},
      {"flan2021/copa", 100},        {"flan2021/math_qa", 2983},    {"flan2021/commonsense_qa", 1221},
      {"flan2021/winogrande", 1267}, {"flan2021/winograd_wsc", 273}};
  for (const auto& [name, count] : counts) EXPECT_EQ(count_real("multiple_choice", name + ".jsonl"), count) << name;
  EXPECT_EQ(count_real("commonsense_qa", "flan2021/commonsenseqa_original/train_rand_split.jsonl"), 9741U);
  EXPECT_EQ(count_real("commonsense_qa", "flan2021/commonsenseqa_original/dev_rand_split.jsonl"), 1221U);
}

TEST(ReleasedFiles, EveryWordOfTheTextIsThere) {
  FLANMOE_NEED_DATA("lm_text");
  const auto words = [](const std::string& name) {
    std::size_t count = 0;
    for (const Record& record : read_real("text", real_data() + "/lm_text/" + name).records) {
      std::istringstream text(record.question);
      for (std::string word; text >> word;) ++count;
    }
    return count;
  };
  EXPECT_EQ(words("wikitext-2/valid.txt"), 213'886U);
  EXPECT_EQ(words("wikitext-2/test.txt"), 241'211U);
  EXPECT_EQ(words("tinyshakespeare/input.txt"), 202'651U);
  EXPECT_EQ(words("botchan.txt"), 50'738U);
}

}  // namespace
}  // namespace flanmoe::formats
