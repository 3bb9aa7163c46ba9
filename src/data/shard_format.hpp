// Token shard format version 2: what writer and reader share. Described for users in data/README.md.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "base/hdf5.hpp"
#include "data/shard.hpp"

namespace flanmoe::shard_format {

inline constexpr char kFormat[] = "flanmoe token shard";
// Version 1 had no information on tasks; it is still read.
inline constexpr std::int64_t kVersion = 2, kOldestVersion = 1;
// Chunks are about 32 KiB: small enough to read one example at random, large enough that checksums and index are cheap.
inline constexpr std::int64_t kTokenChunk = 8192, kExampleChunk = 512, kIndexChunk = 2048, kByteChunk = 32768;
inline constexpr std::size_t kLongestName = 4096;

/// The name tables, in the order of ExampleRecord::name.
enum Name : int { task, category, template_name, variant, split, names };
inline constexpr std::array<const char*, names> kNameTables = {"task_names", "category_names", "template_names",
                                                               "variant_names", "split_names"};

/// Version 2: one text a task, in the order of "task_names"; "task_chances" holds one float64 each.
inline constexpr std::array<const char*, 5> kTaskTables = {"task_benchmarks", "task_groups", "task_parts",
                                                           "task_extractions", "task_scores"};
inline constexpr char kTaskChances[] = "task_chances";

/// One element of table "examples".
struct ExampleRecord {
  std::int64_t token_first = 0;  // input tokens, then target tokens
  std::int64_t choice_first = 0;
  std::int64_t answer_first = 0;
  std::int32_t input_length = 0, target_length = 0;
  std::int32_t choices = 0, answer_bytes = 0;
  std::array<std::int32_t, names> name{};
  std::int32_t gold = -1;
  std::int32_t has_target = 1;
};

/// One element of table "choices".
struct ChoiceRecord {
  std::int64_t token_first = 0;
  std::int32_t length = 0;
  std::int32_t bytes = 0;
};

/// One element of table "index": the examples ordered by group, inside a group as they were added.
struct IndexRecord {
  std::int64_t example = 0;
  std::int64_t stream_first = 0;
};

/// One element of table "groups".
struct GroupRecord {
  std::int32_t task = 0, split = 0, has_target = 0;
  std::int64_t examples = 0, stream_tokens = 0;
};

/// Everything that is read when a shard is opened; covered by one CRC-32.
struct Header {
  std::int64_t version = kVersion;
  TokenizerIdentity tokenizer;
  std::int64_t examples = 0, tokens = 0, choices = 0, choice_tokens = 0, answer_bytes = 0;
  std::array<std::vector<std::string>, names> names_of;
  std::vector<TaskInfo> task_infos;  // one a task
  std::vector<GroupRecord> groups;

  std::uint32_t crc32() const;
};

/// HDF5 types of the records as they lie in memory; the file holds the same fields, packed.
H5Type example_type();
H5Type choice_type();
H5Type index_type();
H5Type group_type();
H5Type packed(const H5Type& memory_type);

void write_attribute(hid_t object, const char* name, std::int64_t value);
void write_attribute(hid_t object, const char* name, const std::string& value);
std::int64_t read_integer_attribute(hid_t object, const char* name, const std::string& where);
std::string read_text_attribute(hid_t object, const char* name, const std::string& where);
/// Name tables: fixed-length strings, padded with zero bytes, contiguous.
void write_names(hid_t file, const char* name, const std::vector<std::string>& values);
std::vector<std::string> read_names(hid_t file, const char* name, const std::string& where);
void write_task_infos(hid_t file, const std::vector<TaskInfo>& infos);
/// Of `tasks` tasks; `where` begins every error message.
std::vector<TaskInfo> read_task_infos(hid_t file, std::size_t tasks, const std::string& where);
/// Empty when the information makes sense, otherwise what is wrong.
std::string problem_of(const TaskInfo& info);

}  // namespace flanmoe::shard_format
