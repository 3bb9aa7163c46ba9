// Readers of released data sets: one function per format, from a file to a stream of records.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "data/formats/input.hpp"

namespace flanmoe::formats {

/// One example as released, before a prompt is made of it. What a format does not have stays empty.
struct Record {
  std::string key;                      // what tells it from others of the file: an id, or its line
  std::string context;                  // passage that the question is about
  std::string question;                 // without its choices, where they can be told from it
  std::string question_as_written;      // with them
  std::vector<std::string> choices;     // texts, without their letters
  std::vector<std::string> labels;      // of the choices, where the file gives them: "(A)"
  std::int32_t gold = -1;               // the right choice
  std::vector<std::string> answers;     // acceptable answers; the first is the reference
  std::string rationale;                // steps that lead to the answer
  std::string definition;               // instruction of the task
  std::string task, variant, category;  // where the file says so, example by example
  bool is_text = false;                 // a document without a question: `question` is its text
};

/// An exemplar that comes with a task.
struct Demonstration {
  std::string input, output, explanation;
};

/// What a file says about all of its records.
struct FileFacts {
  std::string definition, category;
  std::vector<std::string> sources;           // data sets that a task was made from
  std::vector<Demonstration> demonstrations;  // positive examples
};

struct Sink {
  std::function<void(const FileFacts&)> facts;  // called once, before the records, by formats that have facts
  std::function<void(Record&&)> record;
};

/// Reads all records. A malformed one throws Error "FILE:LINE: expected ..., found ...", or is counted in `bad`.
using Reader = void (*)(Input& input, BadRecords& bad, const Sink& sink);

void read_flat(Input&, BadRecords&, const Sink&);
void read_cot_tsv(Input&, BadRecords&, const Sink&);
void read_natural_instructions(Input&, BadRecords&, const Sink&);
void read_gsm8k(Input&, BadRecords&, const Sink&);
void read_multiple_choice(Input&, BadRecords&, const Sink&);
void read_commonsense_qa(Input&, BadRecords&, const Sink&);
void read_strategyqa(Input&, BadRecords&, const Sink&);
void read_svamp(Input&, BadRecords&, const Sink&);
void read_asdiv(Input&, BadRecords&, const Sink&);
void read_bbh(Input&, BadRecords&, const Sink&);
void read_bbh_prompt(Input&, BadRecords&, const Sink&);
void read_mmlu(Input&, BadRecords&, const Sink&);
void read_text(Input&, BadRecords&, const Sink&);
void read_text_lines(Input&, BadRecords&, const Sink&);

struct Format {
  const char* name;
  Reader read;
  const char* sentence;  // for --help
};
const std::vector<Format>& formats();
/// Throws UsageError at `where` with the nearest name when there is no such format.
const Format& find_format(const std::string& name, const std::string& where);

/// All records of a file, in order.
struct FileContent {
  FileFacts facts;
  std::vector<Record> records;
};
FileContent read_all(const Format& format, Input& input, BadRecords& bad);

/// Throws Error at `where` when an answer or a choice has a zero byte, which a shard cannot hold.
void check_answers(const Record& record, const std::string& where);
/// Finds the list under "Options:" or "Choices:" at the end of `question_as_written`: sets question, choices and
/// labels. Without such a list the question is the whole text.
void separate_choices(Record& record);
/// The choice that is meant by an answer such as "(C)", "C", its text, or the name before its colon; -1 when none, or
/// more than one, is.
std::int32_t choice_of(const Record& record, std::string_view answer);

}  // namespace flanmoe::formats
