// Made-up items of every benchmark, in the files of its release.
#pragma once

#include <array>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "tensor/philox.hpp"

namespace flanmoe::regression {

inline constexpr int kItems = 50;  // of each benchmark

/// What item i is asked about, and what is right of it in each benchmark.
struct MadeUp {
  std::string name;              // another one for each item
  int choice = 0, a = 0, b = 0;  // one of four; two summands
  bool yes = false;
  static MadeUp of(int i) {
    static constexpr std::array<const char*, kItems> kNames = {
        "ant",   "bee",  "cat",  "cow",   "dog",   "eel",   "elk",   "fox",   "gnu",  "hen",   "ibis",  "jay",  "kite",
        "lamb",  "lark", "lion", "lynx",  "mole",  "moth",  "mule",  "newt",  "owl",  "pig",   "pony",  "puma", "rat",
        "raven", "rook", "seal", "shark", "sheep", "sloth", "snail", "snake", "swan", "tapir", "tiger", "toad", "trout",
        "viper", "vole", "wasp", "whale", "wolf",  "wren",  "yak",   "zebra", "crab", "duck",  "frog"};
    // Few things are drawn, so that a small model learns them in a short time: the numbers follow from them.
    const auto draw = [&](std::uint64_t bound, std::uint32_t place) {
      return int(RandomKey{.seed = 4}.below(bound, std::uint64_t(i), place));
    };
    const int choice = draw(4, 0);
    const bool yes = draw(2, 1) == 0;
    return {kNames[std::size_t(i)], choice, 2 * choice + 3, yes ? 1 : 4, yes};
  }
};

inline const std::vector<std::string> kThings = {"stone", "river", "window", "garden"};

/// Every file that input/shards/benchmarks.ini reads, under `data`.
class ReleasedFiles {
 public:
  explicit ReleasedFiles(std::string data) : data_(std::move(data)) {
    write_mmlu();
    write_bbh();
    write_word_problems();
    write_strategyqa();
    write_questions();
    write_instructions();
  }

 private:
  using Json = nlohmann::json;

  void write(const std::string& name, const std::string& text) const {
    const std::filesystem::path path = std::filesystem::path(data_) / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text;
  }
  template <class Line>
  static std::string lines(int count, Line&& line) {
    std::string text;
    for (int i = 0; i < count; ++i) text += line(MadeUp::of(i)) + "\n";
    return text;
  }

  void write_mmlu() const {
    const auto row = [](const MadeUp& m) {
      return fmt::format("Which one is {}?,{},{},{},{},{}", m.name, kThings[0], kThings[1], kThings[2], kThings[3],
                         char('A' + m.choice));
    };
    write("mmlu/data/test/astronomy_test.csv", lines(kItems, row));
    write("mmlu/data/dev/astronomy_dev.csv", lines(5, row));
  }

  void write_bbh() const {
    const std::string options =
        fmt::format("\nOptions:\n(A) {}\n(B) {}\n(C) {}\n(D) {}", kThings[0], kThings[1], kThings[2], kThings[3]);
    Json examples = Json::array();
    std::string prompt = "canary\n-----\nSay which.\n";
    for (int i = 0; i < kItems; ++i) {
      const MadeUp m = MadeUp::of(i);
      examples.push_back(
          {{"input", "What is " + m.name + "?" + options}, {"target", fmt::format("({})", char('A' + m.choice))}});
      if (i < 3) {
        prompt += fmt::format("\nQ: What is {}?{}\nA: Let's think step by step.\nIt is known. So the answer is ({}).\n",
                              m.name, options, char('A' + m.choice));
      }
    }
    write("bbh/bbh/date_understanding.json", Json{{"canary", "c"}, {"examples", examples}}.dump(1));
    write("bbh/cot-prompts/date_understanding.txt", prompt);
  }

  void write_word_problems() const {
    write("gsm8k/test.jsonl", lines(kItems, [](const MadeUp& m) {
            return Json{{"question", "How many has " + m.name + "?"},
                        {"answer", fmt::format("It has {} + {} = <<{}+{}={}>>{}.\n#### {}", m.a, m.b, m.a, m.b,
                                               m.a + m.b, m.a + m.b, m.a + m.b)}}
                .dump();
          }));
    Json svamp = Json::array();
    std::string asdiv = "<?xml version=\"1.0\" encoding=\"UTF-8\" ?>\n<Machine-Reading-Corpus-File><ProblemSet>\n";
    for (int i = 0; i < kItems; ++i) {
      const MadeUp m = MadeUp::of(i);
      svamp.push_back({{"ID", fmt::format("chal-{}", i)},
                       {"Body", "There is " + m.name + "."},
                       {"Question", "How many are there?"},
                       {"Answer", double(m.a * 10)}});
      asdiv += fmt::format(
          "<Problem ID=\"p{}\"><Body>Here is {}.</Body><Question>How many apples?</Question><Answer>{} "
          "(apples)</Answer></Problem>\n",
          i, m.name, m.b * 10);
    }
    write("svamp/SVAMP.json", svamp.dump(1));
    write("asdiv/ASDiv.xml", asdiv + "</ProblemSet></Machine-Reading-Corpus-File>\n");
  }

  void write_strategyqa() const {
    Json all = Json::array();
    for (int i = 0; i < kItems; ++i) {
      const MadeUp m = MadeUp::of(i);
      all.push_back({{"qid", fmt::format("q{}", i)},
                     {"question", "Is " + m.name + " so?"},
                     {"answer", m.yes},
                     {"facts", {"It is known."}}});
    }
    write("strategyqa/dev.json", all.dump(1));
  }

  void write_questions() const {
    const auto query = [](const std::string& text, const std::vector<std::string>& choices, int gold) {
      return Json{{"query", text}, {"choices", choices}, {"gold", gold}}.dump();
    };
    write("qa/arc_easy.jsonl", lines(kItems, [&](const MadeUp& m) {
            return query("Question: Easy, which is " + m.name + "?", kThings, m.choice);
          }));
    write("qa/arc_challenge.jsonl", lines(kItems, [&](const MadeUp& m) {
            return query("Question: Hard, which is " + m.name + "?", kThings, m.choice);
          }));
    write("qa/boolq.jsonl", lines(kItems, [&](const MadeUp& m) {
            return query("Passage: A word.\nQuestion: is " + m.name + " so?", {"no", "yes"}, m.yes ? 1 : 0);
          }));
  }

  void write_instructions() const {
    Json task = {{"Definition", {"Tell of it."}}, {"Categories", {"Telling"}}, {"Source", {"made"}}};
    for (int i = 0; i < kItems; ++i) {
      const MadeUp m = MadeUp::of(i);
      const std::string output = fmt::format("the {} is {}", kThings[std::size_t(m.choice)], m.yes ? "old" : "new");
      task["Instances"].push_back({{"id", fmt::format("i{}", i)}, {"input", m.name}, {"output", {output, "so it is"}}});
      if (i < 2) task["Positive Examples"].push_back({{"input", m.name}, {"output", output}, {"explanation", "so"}});
    }
    write("niv2/tasks/task001_tell.json", task.dump(1));
    write("niv2/splits/default/test_tasks.txt", "task001_tell\n");
  }

  std::string data_;
};

}  // namespace flanmoe::regression
