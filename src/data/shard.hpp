// Token shards: HDF5 files of tokenised examples (format version 2; see docs in data/README.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "data/task_info.hpp"

namespace flanmoe {

using TokenIds = std::vector<std::int32_t>;

/// Ids that every vocabulary of flanmoe has, as T5's; pad also starts the decoder.
constexpr std::int32_t kPad = 0, kEos = 1;

/// One example. A text example (raw documents for pretraining) has input tokens only and has_target false.
/// Evaluation examples may carry choices: candidate targets, of which `gold` is right (-1: no choices).
struct Example {
  TokenIds input;   // without EOS; the reader of a batch appends it
  TokenIds target;  // without EOS
  bool has_target = true;
  std::string task, category, template_name, variant, split;  // variant: "zero_shot", "few_shot", "cot", "text", ...
  std::vector<TokenIds> choices;
  std::vector<std::int32_t> choice_bytes;  // length of each choice in UTF-8 bytes, for acc_norm
  std::int32_t gold = -1;
  std::string answer;                     // the text the answer must equal after extraction; empty: the decoded target
  std::vector<std::string> more_answers;  // other texts that are right as well
};

struct TokenizerIdentity {
  std::string fingerprint;  // SHA-256 or CRC of the model file, hex
  std::int32_t vocabulary = 0;
  std::int32_t pad = kPad, eos = kEos, unknown = 2, sentinels = 100;
  bool operator==(const TokenizerIdentity&) const = default;
};

/// The examples of a shard that share task, split and has_target, in the order in which they were added.
struct ShardGroup {
  std::string task, split;
  bool has_target = true;
  std::int64_t examples = 0;
  std::int64_t stream_tokens = 0;  // sum over the group of input length + 1 (the EOS between documents)
};

/// Writes a shard aside and publishes it by rename in finish(); a writer destroyed without finish() leaves nothing.
class ShardWriter {
 public:
  ShardWriter(std::string path, TokenizerIdentity tokenizer);
  ~ShardWriter();
  void add(const Example& example);
  /// How a task is measured; once a task, or again with the same. Tasks that nothing says so of have a default
  /// TaskInfo.
  void describe_task(const std::string& task, const TaskInfo& info);
  void finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

class BlockPool;  // data/block_pool.hpp
/// What the readers of a training, or of an evaluation, keep in memory; small corpora fit whole.
inline constexpr std::size_t kBlockBytes = std::size_t(32) << 20;

/// Reads one shard. Opening reads the header and the small tables only; tokens are read on demand. Any damage (not
/// HDF5, truncated, wrong version, inconsistent tables, a chunk whose checksum fails) throws Error naming the file and
/// what is wrong.
/// Blocks that were read stay in a pool, which several readers may share: memory is bounded whatever the size of the
/// files. Used from one thread at a time, with all readers of the pool; HDF5 is called under hdf5_mutex().
class ShardReader {
 public:
  /// Without a pool it makes one of kBlockBytes for itself.
  explicit ShardReader(const std::string& path, std::shared_ptr<BlockPool> pool = nullptr);
  ~ShardReader();
  ShardReader(ShardReader&&) noexcept;
  ShardReader& operator=(ShardReader&&) noexcept;

  const std::string& path() const;
  const TokenizerIdentity& tokenizer() const;
  std::int64_t size() const;  // examples
  std::int64_t input_length(std::int64_t i) const;
  std::int64_t target_length(std::int64_t i) const;
  bool has_target(std::int64_t i) const;
  const std::string& task(std::int64_t i) const;
  const std::string& split(std::int64_t i) const;
  const std::string& variant(std::int64_t i) const;
  const std::string& category(std::int64_t i) const;
  const std::string& template_name(std::int64_t i) const;
  const TaskInfo& task_info(std::int64_t i) const;
  std::int64_t total_tokens() const;
  /// The whole example, with choices.
  Example read(std::int64_t i) const;
  /// Tokens [first, first+out.size()) of the flat token array.
  void read_tokens(std::int64_t first, std::span<std::int32_t> out) const;
  std::int64_t token_offset(std::int64_t i) const;

  /// Groups and their members: what a mixture needs, without a pass over the examples.
  const std::vector<ShardGroup>& groups() const;
  /// Number of the k-th example of group g.
  std::int64_t group_example(std::int64_t g, std::int64_t k) const;
  /// Where the k-th example of group g begins in the stream "document EOS document EOS ..." of the group.
  std::int64_t group_stream_first(std::int64_t g, std::int64_t k) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace flanmoe
