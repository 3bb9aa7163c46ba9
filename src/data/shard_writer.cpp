#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <limits>
#include <map>
#include <optional>
#include <tuple>
#include <unordered_map>

#include "data/block_table.hpp"
#include "data/shard_format.hpp"

namespace flanmoe {
namespace {

using namespace shard_format;

/// Ids of names in order of first use.
class NameTable {
 public:
  std::int32_t id(const std::string& name) {
    const auto [at, is_new] = ids_.try_emplace(name, std::int32_t(names_.size()));
    if (is_new) names_.push_back(name);
    return at->second;
  }
  const std::vector<std::string>& names() const { return names_; }

 private:
  std::unordered_map<std::string, std::int32_t> ids_;
  std::vector<std::string> names_;
};

H5File create_file(const std::string& path) {
  const H5Property access(H5Pcreate(H5P_FILE_ACCESS), path);
  // The newer layouts carry checksums in all of their own structures, so that damage there is noticed as well.
  h5_check(H5Pset_libver_bounds(access.get(), H5F_LIBVER_V110, H5F_LIBVER_V110), path);
  const H5Property creation(H5Pcreate(H5P_FILE_CREATE), path);
  h5_check(H5Pset_obj_track_times(creation.get(), false), path);  // of the root group, as timeless_dataset
  return {H5Fcreate(path.c_str(), H5F_ACC_TRUNC, creation.get(), access.get()),
          fmt::format("shard {}: cannot be created", path)};
}

/// Forces a file, or the entry of a file in its folder, to the disk.
void sync_path(const std::string& path, int flags) {
  const int file = ::open(path.c_str(), flags);
  if (file < 0) fail("{}: cannot be opened to flush it: {}", path, std::strerror(errno));
  const int status = ::fsync(file);
  const int reason = errno;
  ::close(file);
  if (status != 0) fail("{}: cannot be flushed to the disk: {}", path, std::strerror(reason));
}

/// The open file and its growing tables.
struct ShardFile {
  H5File file;
  H5Type example_memory = example_type(), choice_memory = choice_type();
  AppendTable<std::int32_t> tokens, choice_tokens;
  AppendTable<ExampleRecord> examples;
  AppendTable<ChoiceRecord> choices;
  AppendTable<std::uint8_t> answers;

  explicit ShardFile(const std::string& path)
      : file(create_file(path)),
        tokens(file.get(), "tokens", H5T_STD_I32LE, H5T_NATIVE_INT32, kTokenChunk),
        choice_tokens(file.get(), "choice_tokens", H5T_STD_I32LE, H5T_NATIVE_INT32, kTokenChunk),
        examples(file.get(), "examples", packed(example_memory).get(), example_memory.get(), kExampleChunk),
        choices(file.get(), "choices", packed(choice_memory).get(), choice_memory.get(), kExampleChunk),
        answers(file.get(), "answers", H5T_STD_U8LE, H5T_NATIVE_UINT8, kByteChunk) {}
  void flush() {
    tokens.flush();
    choice_tokens.flush();
    examples.flush();
    choices.flush();
    answers.flush();
  }
};

}  // namespace

struct ShardWriter::State {
  std::string path, aside;
  std::optional<ShardFile> out;  // empty once finished
  Header header;
  std::array<NameTable, names> tables;
  std::map<std::string, TaskInfo> task_infos;
  std::map<std::tuple<std::int32_t, std::int32_t, std::int32_t>, std::int32_t> group_ids;
  // What the index needs once all examples are known: 8 bytes an example.
  std::vector<std::int32_t> group_of, stream_length;

  State(std::string shard_path, TokenizerIdentity tokenizer)
      : path(std::move(shard_path)), aside(fmt::format("{}.writing-{}", path, ::getpid())), out(std::in_place, aside) {
    header.tokenizer = std::move(tokenizer);
  }

  [[noreturn]] void refuse(const std::string& what) const {
    fail("shard {}: example {}: {}", path, out->examples.size(), what);
  }
  void check(const Example& example) const;
  void check_tokens(const TokenIds& ids, const char* what) const;
  void add(const Example& example);
  void write_index();
  void write_header();
};

void ShardWriter::State::check_tokens(const TokenIds& ids, const char* what) const {
  if (ids.size() > std::size_t(std::numeric_limits<std::int32_t>::max())) {
    refuse(fmt::format("{} has {} tokens", what, ids.size()));
  }
  std::uint32_t most = 0;  // a negative id is a large one
  for (const std::int32_t id : ids) most = std::max(most, std::uint32_t(id));
  if (most < std::uint32_t(header.tokenizer.vocabulary)) return;
  for (const std::int32_t id : ids) {
    if (id < 0 || id >= header.tokenizer.vocabulary) {
      refuse(fmt::format("{} has token {}, outside [0, {})", what, id, header.tokenizer.vocabulary));
    }
  }
}

void ShardWriter::State::check(const Example& example) const {
  check_tokens(example.input, "the input");
  check_tokens(example.target, "the target");
  for (const TokenIds& choice : example.choices) check_tokens(choice, "a choice");
  if (!example.has_target && !example.target.empty()) refuse("has_target is false but there are target tokens");
  if (example.choice_bytes.size() != example.choices.size()) {
    refuse(fmt::format("{} choices but {} lengths in bytes", example.choices.size(), example.choice_bytes.size()));
  }
  const auto choices_here = std::int64_t(example.choices.size());
  if (choices_here == 0 ? example.gold != -1 : (example.gold < 0 || example.gold >= choices_here)) {
    refuse(fmt::format("gold is {} with {} choices", example.gold, choices_here));
  }
  if (example.answer.empty() && !example.more_answers.empty()) refuse("more_answers without an answer");
  std::vector<const std::string*> answers = {&example.answer};
  for (const std::string& answer : example.more_answers) answers.push_back(&answer);
  for (const std::string* answer : answers) {
    if (answer->find('\0') != std::string::npos) refuse("an answer has a zero byte");
  }
  for (const std::string* name :
       {&example.task, &example.category, &example.template_name, &example.variant, &example.split}) {
    if (name->size() > kLongestName || name->find('\0') != std::string::npos) {
      refuse(fmt::format("a name has {} bytes or a zero byte; at most {} bytes", name->size(), kLongestName));
    }
  }
}

void ShardWriter::State::add(const Example& example) {
  // Several right answers are separated by zero bytes.
  std::string answers = example.answer;
  for (const std::string& answer : example.more_answers) answers += '\0' + answer;
  ExampleRecord record;
  record.answer_bytes = std::int32_t(answers.size());
  record.token_first = out->tokens.size();
  record.input_length = std::int32_t(example.input.size());
  record.target_length = std::int32_t(example.target.size());
  record.choice_first = out->choices.size();
  record.choices = std::int32_t(example.choices.size());
  record.answer_first = out->answers.size();
  record.gold = example.gold;
  record.has_target = example.has_target ? 1 : 0;
  const std::array<const std::string*, names> name = {&example.task, &example.category, &example.template_name,
                                                      &example.variant, &example.split};
  for (std::size_t n = 0; n < names; ++n) record.name[n] = tables[n].id(*name[n]);
  out->tokens.add(std::span(example.input));
  out->tokens.add(std::span(example.target));
  for (std::size_t c = 0; c < example.choices.size(); ++c) {
    out->choices.add({out->choice_tokens.size(), std::int32_t(example.choices[c].size()), example.choice_bytes[c]});
    out->choice_tokens.add(std::span(example.choices[c]));
  }
  for (const char c : answers) out->answers.add(std::uint8_t(c));

  const auto [group, is_new] = group_ids.try_emplace(
      std::tuple(record.name[task], record.name[split], record.has_target), std::int32_t(header.groups.size()));
  if (is_new) header.groups.push_back({record.name[task], record.name[split], record.has_target, 0, 0});
  GroupRecord& totals = header.groups[std::size_t(group->second)];
  ++totals.examples;
  totals.stream_tokens += record.input_length + 1;
  group_of.push_back(group->second);
  stream_length.push_back(record.input_length + 1);
  out->examples.add(record);
}

/// Counting sort of the examples by group, stable, so that members keep the order in which they were added.
void ShardWriter::State::write_index() {
  std::vector<std::int64_t> next(header.groups.size(), 0);
  for (std::size_t g = 1; g < next.size(); ++g) next[g] = next[g - 1] + header.groups[g - 1].examples;
  std::vector<std::int64_t> order(group_of.size());
  for (std::size_t i = 0; i < group_of.size(); ++i) {
    order[std::size_t(next[std::size_t(group_of[i])]++)] = std::int64_t(i);
  }
  const H5Type memory = index_type();
  AppendTable<IndexRecord> index(out->file.get(), "index", packed(memory).get(), memory.get(), kIndexChunk);
  std::int64_t stream = 0, group = -1;
  for (const std::int64_t i : order) {
    if (group_of[std::size_t(i)] != group) stream = 0;
    group = group_of[std::size_t(i)];
    index.add({i, stream});
    stream += stream_length[std::size_t(i)];
  }
  index.flush();
}

void ShardWriter::State::write_header() {
  const hid_t root = out->file.get();
  for (std::size_t n = 0; n < names; ++n) {
    header.names_of[n] = tables[n].names();
    write_names(root, kNameTables[n], header.names_of[n]);
  }
  for (const std::string& name : header.names_of[task]) header.task_infos.push_back(task_infos[name]);
  write_task_infos(root, header.task_infos);
  const H5Type memory = group_type();
  const hsize_t count = header.groups.size();
  const H5Space space(H5Screate_simple(1, &count, nullptr), "groups");
  const H5Dataset dataset(H5Dcreate2(root, "groups", packed(memory).get(), space.get(), H5P_DEFAULT,
                                     timeless_dataset("groups").get(), H5P_DEFAULT),
                          "groups");
  h5_check(H5Dwrite(dataset.get(), memory.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, header.groups.data()), "groups");
  header.examples = out->examples.size();
  header.tokens = out->tokens.size();
  header.choices = out->choices.size();
  header.choice_tokens = out->choice_tokens.size();
  header.answer_bytes = out->answers.size();
  write_attribute(root, "format", std::string(kFormat));
  write_attribute(root, "format_version", kVersion);
  write_attribute(root, "tokenizer_fingerprint", header.tokenizer.fingerprint);
  write_attribute(root, "tokenizer_vocabulary", header.tokenizer.vocabulary);
  write_attribute(root, "tokenizer_pad", header.tokenizer.pad);
  write_attribute(root, "tokenizer_eos", header.tokenizer.eos);
  write_attribute(root, "tokenizer_unknown", header.tokenizer.unknown);
  write_attribute(root, "tokenizer_sentinels", header.tokenizer.sentinels);
  write_attribute(root, "examples", header.examples);
  write_attribute(root, "tokens", header.tokens);
  write_attribute(root, "choices", header.choices);
  write_attribute(root, "choice_tokens", header.choice_tokens);
  write_attribute(root, "answer_bytes", header.answer_bytes);
  write_attribute(root, "header_crc32", std::int64_t(header.crc32()));
}

ShardWriter::ShardWriter(std::string path, TokenizerIdentity tokenizer) {
  if (tokenizer.vocabulary <= 0) fail("shard {}: the tokenizer's vocabulary is {}", path, tokenizer.vocabulary);
  if (tokenizer.fingerprint.size() > kLongestName) fail("shard {}: the tokenizer's fingerprint is too long", path);
  const std::lock_guard lock(hdf5_mutex());
  state_ = std::make_unique<State>(std::move(path), std::move(tokenizer));
}

ShardWriter::~ShardWriter() {
  if (!state_->out) return;
  const std::lock_guard lock(hdf5_mutex());
  state_->out.reset();
  ::unlink(state_->aside.c_str());
}

void ShardWriter::add(const Example& example) {
  FLANMOE_EXPECT(state_->out, "shard {} is already finished", state_->path);
  state_->check(example);  // needs no HDF5: other writers need not wait for it
  const std::lock_guard lock(hdf5_mutex());
  state_->add(example);
}

void ShardWriter::describe_task(const std::string& task, const TaskInfo& info) {
  FLANMOE_EXPECT(state_->out, "shard {} is already finished", state_->path);
  if (const std::string problem = problem_of(info); !problem.empty()) {
    fail("shard {}: task {}: {}", state_->path, task, problem);
  }
  const auto [known, is_new] = state_->task_infos.emplace(task, info);
  if (!is_new && known->second != info) fail("shard {}: task {} is described twice, differently", state_->path, task);
}

void ShardWriter::finish() {
  State& s = *state_;
  FLANMOE_EXPECT(s.out, "shard {} is already finished", s.path);
  if (s.out->examples.size() == 0) fail("shard {}: no example was added", s.path);
  const std::lock_guard lock(hdf5_mutex());
  try {
    s.out->flush();
    s.write_index();
    s.write_header();
    h5_check(H5Fflush(s.out->file.get(), H5F_SCOPE_GLOBAL), "flush");
  } catch (const Error& error) {
    fail("shard {}: cannot be written: {}", s.path, error.what());
  }
  // Closed before it is published: an open file says inside itself that it is being written.
  s.out.reset();
  try {
    sync_path(s.aside, O_RDWR);
    const ShardReader complete(s.aside);
  } catch (...) {
    ::unlink(s.aside.c_str());
    throw;
  }
  if (std::rename(s.aside.c_str(), s.path.c_str()) != 0) {
    const int reason = errno;
    ::unlink(s.aside.c_str());
    fail("shard {}: cannot be renamed to {}: {}", s.aside, s.path, std::strerror(reason));
  }
  const auto folder = std::filesystem::path(s.path).parent_path();
  sync_path(folder.empty() ? "." : folder.string(), O_RDONLY | O_DIRECTORY);
}

}  // namespace flanmoe
