// The safetensors format: 8 bytes with the length of the header, the header (JSON: name -> dtype, shape, data_offsets),
// then the elements, without gaps. https://github.com/huggingface/safetensors, "Format".
#pragma once

#include <fstream>
#include <string>
#include <vector>

#include "exchange/tensor_source.hpp"

namespace flanmoe {

/// The tensors of one file. Refuses, with file and tensor: a header that is no such JSON or larger than the file, names
/// that stand twice, sizes that do not follow from type and shape, tensors that overlap, leave gaps or end behind the
/// file. Nothing is allocated on the word of the file alone.
TensorTable read_safetensors_table(const std::string& path);

/// One file, or the files of a folder: model.safetensors, or all that model.safetensors.index.json names.
class Safetensors final : public TensorSource {
 public:
  /// Refuses an index that names files that are missing, or tensors that stand elsewhere or twice.
  explicit Safetensors(const std::string& path);
  const TensorTable& tensors() const override { return table_; }
  void read(std::string_view name, std::span<float> out) const override;

 private:
  TensorTable table_;
};

/// Writes one file, tensor by tensor in the order of the plan.
class SafetensorsWriter {
 public:
  struct Entry {
    std::string name;
    std::vector<std::int64_t> shape;
    std::int64_t size() const;
  };
  /// `type` is f32 or bf16 (rounded to nearest even).
  SafetensorsWriter(const std::string& path, std::vector<Entry> plan, ElementType type);
  void add(std::string_view name, std::span<const float> values);
  /// Throws when the disk is full, or tensors of the plan are missing.
  void close();

 private:
  std::string path_;
  std::vector<Entry> plan_;
  ElementType type_;
  std::size_t next_ = 0;
  std::ofstream file_;
};

/// Names of the files of a model whose tensors are to be at most `shard_bytes` a file (a larger tensor has its own),
/// and which tensors are in each: model.safetensors, or model-00001-of-00003.safetensors and so on.
struct ShardPlan {
  std::string file;
  std::vector<SafetensorsWriter::Entry> entries;
};
std::vector<ShardPlan> plan_shards(const std::vector<SafetensorsWriter::Entry>& tensors, ElementType type,
                                   std::uint64_t shard_bytes);
/// The text of model.safetensors.index.json.
std::string index_text(const std::vector<ShardPlan>& shards, ElementType type);

}  // namespace flanmoe
