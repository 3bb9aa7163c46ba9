#include "data/shard_format.hpp"

#include <zlib.h>

#include <algorithm>
#include <cstddef>

namespace flanmoe::shard_format {
namespace {

H5Type compound(std::size_t bytes) { return {H5Tcreate(H5T_COMPOUND, bytes), "HDF5 compound type"}; }

void field(const H5Type& type, const char* name, std::size_t offset, hid_t member) {
  h5_check(H5Tinsert(type.get(), name, offset, member), name);
}

H5Type text_type(std::size_t bytes) {
  H5Type type(H5Tcopy(H5T_C_S1), "HDF5 string type");
  h5_check(H5Tset_size(type.get(), std::max<std::size_t>(1, bytes)), "HDF5 string size");
  h5_check(H5Tset_strpad(type.get(), H5T_STR_NULLPAD), "HDF5 string padding");
  h5_check(H5Tset_cset(type.get(), H5T_CSET_UTF8), "HDF5 string encoding");
  return type;
}

/// The size of a fixed-length string type, or an error: damaged or foreign files may hold anything here.
std::size_t text_size(const H5Type& type, const std::string& what) {
  if (H5Tget_class(type.get()) != H5T_STRING || H5Tis_variable_str(type.get()) > 0) {
    fail("{} must be a fixed-length string", what);
  }
  const std::size_t bytes = H5Tget_size(type.get());
  if (bytes == 0 || bytes > kLongestName) fail("{} has strings of {} bytes; at most {}", what, bytes, kLongestName);
  return bytes;
}

/// The texts of the five task tables.
std::array<std::string, kTaskTables.size()> texts_of(const TaskInfo& info) {
  return {info.benchmark, info.group, info.part_of, name_of(info.extraction), name_of(info.score)};
}

std::string without_padding(const char* text, std::size_t bytes) {
  return {text, std::size_t(std::find(text, text + bytes, '\0') - text)};
}

}  // namespace

H5Type example_type() {
  H5Type type = compound(sizeof(ExampleRecord));
  field(type, "token_first", offsetof(ExampleRecord, token_first), H5T_NATIVE_INT64);
  field(type, "choice_first", offsetof(ExampleRecord, choice_first), H5T_NATIVE_INT64);
  field(type, "answer_first", offsetof(ExampleRecord, answer_first), H5T_NATIVE_INT64);
  field(type, "input_length", offsetof(ExampleRecord, input_length), H5T_NATIVE_INT32);
  field(type, "target_length", offsetof(ExampleRecord, target_length), H5T_NATIVE_INT32);
  field(type, "choices", offsetof(ExampleRecord, choices), H5T_NATIVE_INT32);
  field(type, "answer_bytes", offsetof(ExampleRecord, answer_bytes), H5T_NATIVE_INT32);
  constexpr std::array<const char*, names> ids = {"task", "category", "template", "variant", "split"};
  for (std::size_t n = 0; n < names; ++n) {
    field(type, ids[n], offsetof(ExampleRecord, name) + n * sizeof(std::int32_t), H5T_NATIVE_INT32);
  }
  field(type, "gold", offsetof(ExampleRecord, gold), H5T_NATIVE_INT32);
  field(type, "has_target", offsetof(ExampleRecord, has_target), H5T_NATIVE_INT32);
  return type;
}

H5Type choice_type() {
  H5Type type = compound(sizeof(ChoiceRecord));
  field(type, "token_first", offsetof(ChoiceRecord, token_first), H5T_NATIVE_INT64);
  field(type, "length", offsetof(ChoiceRecord, length), H5T_NATIVE_INT32);
  field(type, "bytes", offsetof(ChoiceRecord, bytes), H5T_NATIVE_INT32);
  return type;
}

H5Type index_type() {
  H5Type type = compound(sizeof(IndexRecord));
  field(type, "example", offsetof(IndexRecord, example), H5T_NATIVE_INT64);
  field(type, "stream_first", offsetof(IndexRecord, stream_first), H5T_NATIVE_INT64);
  return type;
}

H5Type group_type() {
  H5Type type = compound(sizeof(GroupRecord));
  field(type, "task", offsetof(GroupRecord, task), H5T_NATIVE_INT32);
  field(type, "split", offsetof(GroupRecord, split), H5T_NATIVE_INT32);
  field(type, "has_target", offsetof(GroupRecord, has_target), H5T_NATIVE_INT32);
  field(type, "examples", offsetof(GroupRecord, examples), H5T_NATIVE_INT64);
  field(type, "stream_tokens", offsetof(GroupRecord, stream_tokens), H5T_NATIVE_INT64);
  return type;
}

H5Type packed(const H5Type& memory_type) {
  H5Type type(H5Tcopy(memory_type.get()), "HDF5 compound type");
  h5_check(H5Tpack(type.get()), "HDF5 compound type");
  return type;
}

std::uint32_t Header::crc32() const {
  // Numbers in decimal and names behind their lengths: one text per header, whatever the machine.
  std::string text =
      fmt::format("{} {} {}:{} {} {} {} {} {}\n{} {} {} {} {}\n", kFormat, version, tokenizer.fingerprint.size(),
                  tokenizer.fingerprint, tokenizer.vocabulary, tokenizer.pad, tokenizer.eos, tokenizer.unknown,
                  tokenizer.sentinels, examples, tokens, choices, choice_tokens, answer_bytes);
  for (const auto& table : names_of) {
    text += fmt::format("{}\n", table.size());
    for (const std::string& name : table) text += fmt::format("{}:{}\n", name.size(), name);
  }
  for (const TaskInfo& info : version >= 2 ? task_infos : std::vector<TaskInfo>()) {
    for (const std::string& value : texts_of(info)) text += fmt::format("{}:{}\n", value.size(), value);
    text += fmt::format("{:a}\n", info.chance);
  }
  for (const GroupRecord& g : groups) {
    text += fmt::format("{} {} {} {} {}\n", g.task, g.split, g.has_target, g.examples, g.stream_tokens);
  }
  return std::uint32_t(::crc32_z(0, reinterpret_cast<const Bytef*>(text.data()), text.size()));
}

void write_attribute(hid_t object, const char* name, std::int64_t value) {
  const H5Space space(H5Screate(H5S_SCALAR), name);
  const H5Attribute attribute(H5Acreate2(object, name, H5T_STD_I64LE, space.get(), H5P_DEFAULT, H5P_DEFAULT), name);
  h5_check(H5Awrite(attribute.get(), H5T_NATIVE_INT64, &value), name);
}

void write_attribute(hid_t object, const char* name, const std::string& value) {
  const H5Type type = text_type(value.size());
  const H5Space space(H5Screate(H5S_SCALAR), name);
  const H5Attribute attribute(H5Acreate2(object, name, type.get(), space.get(), H5P_DEFAULT, H5P_DEFAULT), name);
  h5_check(H5Awrite(attribute.get(), type.get(), value.empty() ? "\0" : value.data()), name);
}

std::int64_t read_integer_attribute(hid_t object, const char* name, const std::string& where) {
  const std::string what = fmt::format("{}: attribute '{}'", where, name);
  const H5Attribute attribute(H5Aopen(object, name, H5P_DEFAULT), what);
  const H5Space space(H5Aget_space(attribute.get()), what);
  if (H5Sget_simple_extent_npoints(space.get()) != 1) fail("{} must be one number", what);
  std::int64_t value = 0;
  h5_check(H5Aread(attribute.get(), H5T_NATIVE_INT64, &value), what);
  return value;
}

std::string read_text_attribute(hid_t object, const char* name, const std::string& where) {
  const std::string what = fmt::format("{}: attribute '{}'", where, name);
  const H5Attribute attribute(H5Aopen(object, name, H5P_DEFAULT), what);
  const H5Space space(H5Aget_space(attribute.get()), what);
  if (H5Sget_simple_extent_npoints(space.get()) != 1) fail("{} must be one string", what);
  const H5Type type(H5Aget_type(attribute.get()), what);
  const std::size_t bytes = text_size(type, what);
  std::vector<char> text(bytes);
  h5_check(H5Aread(attribute.get(), text_type(bytes).get(), text.data()), what);
  return without_padding(text.data(), bytes);
}

void write_names(hid_t file, const char* name, const std::vector<std::string>& values) {
  std::size_t longest = 1;
  for (const std::string& value : values) longest = std::max(longest, value.size());
  std::vector<char> text(longest * values.size(), '\0');
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::copy(values[i].begin(), values[i].end(), text.begin() + std::ptrdiff_t(i * longest));
  }
  const H5Type type = text_type(longest);
  const hsize_t count = values.size();
  const H5Space space(H5Screate_simple(1, &count, nullptr), name);
  const H5Dataset dataset(
      H5Dcreate2(file, name, type.get(), space.get(), H5P_DEFAULT, timeless_dataset(name).get(), H5P_DEFAULT), name);
  h5_check(H5Dwrite(dataset.get(), type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, text.data()), name);
}

std::vector<std::string> read_names(hid_t file, const char* name, const std::string& where) {
  const std::string what = fmt::format("{}: table '{}'", where, name);
  const H5Dataset dataset(H5Dopen2(file, name, H5P_DEFAULT), what);
  const H5Space space(H5Dget_space(dataset.get()), what);
  const H5Type type(H5Dget_type(dataset.get()), what);
  const std::size_t bytes = text_size(type, what);
  const auto count = std::size_t(H5Sget_simple_extent_npoints(space.get()));
  std::vector<char> text(bytes * count);
  h5_check(H5Dread(dataset.get(), text_type(bytes).get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, text.data()), what);
  std::vector<std::string> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = without_padding(text.data() + i * bytes, bytes);
  return values;
}

void write_task_infos(hid_t file, const std::vector<TaskInfo>& infos) {
  std::array<std::vector<std::string>, kTaskTables.size()> texts;
  std::vector<double> chances;
  for (const TaskInfo& info : infos) {
    const auto values = texts_of(info);
    for (std::size_t t = 0; t < texts.size(); ++t) texts[t].push_back(values[t]);
    chances.push_back(info.chance);
  }
  for (std::size_t t = 0; t < texts.size(); ++t) write_names(file, kTaskTables[t], texts[t]);
  const hsize_t count = chances.size();
  const H5Space space(H5Screate_simple(1, &count, nullptr), kTaskChances);
  const H5Dataset dataset(H5Dcreate2(file, kTaskChances, H5T_IEEE_F64LE, space.get(), H5P_DEFAULT,
                                     timeless_dataset(kTaskChances).get(), H5P_DEFAULT),
                          kTaskChances);
  h5_check(H5Dwrite(dataset.get(), H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, chances.data()), kTaskChances);
}

std::vector<TaskInfo> read_task_infos(hid_t file, std::size_t tasks, const std::string& where) {
  std::array<std::vector<std::string>, kTaskTables.size()> texts;
  const auto expect_size = [&](const char* table, std::size_t size) {
    if (size != tasks) fail("{}: table '{}' has {} elements for {} tasks", where, table, size, tasks);
  };
  for (std::size_t t = 0; t < texts.size(); ++t) {
    texts[t] = read_names(file, kTaskTables[t], where);
    expect_size(kTaskTables[t], texts[t].size());
  }
  const std::string what = fmt::format("{}: table '{}'", where, kTaskChances);
  const H5Dataset dataset(H5Dopen2(file, kTaskChances, H5P_DEFAULT), what);
  const H5Space space(H5Dget_space(dataset.get()), what);
  expect_size(kTaskChances, std::size_t(H5Sget_simple_extent_npoints(space.get())));
  std::vector<double> chances(tasks);
  h5_check(H5Dread(dataset.get(), H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, chances.data()), what);
  std::vector<TaskInfo> infos(tasks);
  for (std::size_t i = 0; i < tasks; ++i) {
    const auto extraction = extraction_of(texts[3][i]);
    const auto score = score_of(texts[4][i]);
    if (!extraction) fail("{}: table '{}', task {}: unknown rule '{}'", where, kTaskTables[3], i, texts[3][i]);
    if (!score) fail("{}: table '{}', task {}: unknown score '{}'", where, kTaskTables[4], i, texts[4][i]);
    infos[i] = {texts[0][i], texts[1][i], texts[2][i], *extraction, *score, chances[i]};
    if (const std::string problem = problem_of(infos[i]); !problem.empty()) fail("{}: task {}: {}", where, i, problem);
  }
  return infos;
}

std::string problem_of(const TaskInfo& info) {
  for (const std::string* text : {&info.benchmark, &info.group, &info.part_of}) {
    if (text->size() > kLongestName || text->find('\0') != std::string::npos) {
      return fmt::format("a name has {} bytes or a zero byte; at most {} bytes", text->size(), kLongestName);
    }
  }
  if (info.chance != -1 && !(info.chance >= 0 && info.chance < 1)) {
    return fmt::format("chance is {}; expected -1 (by the number of choices) or [0, 1)", info.chance);
  }
  return "";
}

}  // namespace flanmoe::shard_format
