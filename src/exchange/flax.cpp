#include "exchange/flax.hpp"

#include <limits>
#include <nlohmann/json.hpp>

#include "base/error.hpp"
#include "evaluate/files.hpp"

namespace flanmoe {
namespace {

using nlohmann::json;

constexpr std::uint64_t kArrayType = 1;  // msgpack extension type of an array in flax.serialization

template <class Bytes>
json unpack(const Bytes& bytes, const std::string& where) {
  try {
    return json::from_msgpack(bytes);
  } catch (const json::exception& error) {
    fail("{}: no msgpack: {}", where, error.what());
  }
}

bool is_array(const json& value) {
  return value.is_binary() && value.get_binary().has_subtype() && value.get_binary().subtype() == kArrayType;
}

struct Array {
  StoredTensor tensor;
  std::vector<char> elements;
};

Array unpack_array(const json& value, const std::string& where) {
  const json content = unpack(static_cast<const std::vector<std::uint8_t>&>(value.get_binary()), where);
  if (!content.is_array() || content.size() != 3 || !content[0].is_array() || !content[1].is_string() ||
      !content[2].is_binary()) {
    fail("{}: expected [shape, type, elements]", where);
  }
  Array array;
  StoredTensor& tensor = array.tensor;
  std::uint64_t count = 1;
  for (const json& extent : content[0]) {
    if (!extent.is_number_unsigned() || extent.get<std::uint64_t>() > std::uint64_t(std::numeric_limits<int>::max())) {
      fail("{}: its shape is {}", where, content[0].dump());
    }
    tensor.shape.push_back(extent.get<std::int64_t>());
    if (__builtin_mul_overflow(count, extent.get<std::uint64_t>(), &count))
      fail("{}: its shape is {}", where, content[0].dump());
  }
  tensor.type_name = content[1].get<std::string>();
  tensor.type = tensor.type_name == "float32"    ? ElementType::f32
                : tensor.type_name == "bfloat16" ? ElementType::bf16
                : tensor.type_name == "float16"  ? ElementType::f16
                                                 : ElementType::other;
  const auto& elements = content[2].get_binary();
  array.elements.assign(elements.begin(), elements.end());
  tensor.bytes = array.elements.size();
  const std::uint64_t width = tensor.type == ElementType::f32 ? 4 : 2;
  if (tensor.type != ElementType::other && (count > tensor.bytes || count * width != tensor.bytes)) {
    fail("{}: {} {} needs {} elements, it holds {} bytes", where, tensor.type_name, content[0].dump(), count,
         tensor.bytes);
  }
  return array;
}

/// Calls f(path, value) for every leaf.
template <class F>
void for_each_leaf(const json& node, const std::string& path, const F& f) {
  if (!node.is_object()) return f(path, node);
  for (const auto& [name, child] : node.items()) for_each_leaf(child, path.empty() ? name : path + "/" + name, f);
}

}  // namespace

FlaxCheckpoint::FlaxCheckpoint(const std::string& path) {
  const json root = unpack(read_text_file(path), path);
  const json* holder = root.is_object() && root.contains("optimizer") ? &root.at("optimizer") : &root;
  if (!holder->is_object() || !holder->contains("target")) {
    fail("{}: expected a T5X checkpoint with optimizer/target, found none", path);
  }
  for_each_leaf(holder->at("target"), "", [&](const std::string& name, const json& value) {
    const std::string where = fmt::format("{}: tensor {}", path, name);
    if (!is_array(value)) fail("{}: expected an array in this file (arrays kept in other files are not read)", where);
    Array array = unpack_array(value, where);
    array.tensor.file = path;
    table_[name] = std::move(array.tensor);
    elements_[name] = std::move(array.elements);
  });
  const json::json_pointer step("/state/step");
  if (holder->contains(step) && is_array(holder->at(step))) {
    const Array array = unpack_array(holder->at(step), path + ": step");
    if (array.tensor.type_name == "int32" && array.elements.size() == 4) {
      step_ = *reinterpret_cast<const std::int32_t*>(array.elements.data());
    }
  }
}

void FlaxCheckpoint::read(std::string_view name, std::span<float> out) const {
  const auto found = elements_.find(name);
  FLANMOE_EXPECT(found != elements_.end(), "no tensor {}", name);
  to_float(out, found->second, table_.find(name)->second, name);
}

std::string deck_text_of_t5x(const FlaxCheckpoint& checkpoint, const std::string& path) {
  const TensorTable& table = checkpoint.tensors();
  const auto extent = [&](const std::string& name, std::size_t dimension) {
    const auto found = table.find(name);
    if (found == table.end()) fail("{}: tensor {} is missing", path, name);
    if (found->second.shape.size() != 2) {
      fail("{}: tensor {} has shape {}; expected two dimensions", path, name, shape_text(found->second.shape));
    }
    return found->second.shape[dimension];
  };
  const auto layers = [&](const std::string& stack) {
    std::int64_t count = 0;
    while (table.contains(fmt::format("{}/layers_{}/mlp/wo/kernel", stack, count))) ++count;
    return count;
  };
  const bool gated = table.contains("encoder/layers_0/mlp/wi_0/kernel");
  const bool tied = !table.contains("decoder/logits_dense/kernel");
  const std::int64_t heads = extent("encoder/relpos_bias/rel_embedding", 0);
  const std::int64_t inner = extent("encoder/layers_0/attention/query/kernel", 1);
  if (heads < 1 || inner % heads != 0) fail("{}: {} attention columns do not divide by {} heads", path, inner, heads);
  return fmt::format(
      "[model]\nfamily = t5\npreset = {}\nvocabulary = {}\nwidth = {}\nhidden = {}\nheads = {}\nhead_width = {}\n"
      "encoder_layers = {}\ndecoder_layers = {}\nactivation = {}\ntied_logits = {}\nbias_buckets = {}\n\n"
      "[moe]\nrouter = none\n",
      gated ? "t5_1_1" : "t5_1_0", extent("token_embedder/embedding", 0), extent("token_embedder/embedding", 1),
      extent("encoder/layers_0/mlp/wo/kernel", 0), heads, inner / heads, layers("encoder"), layers("decoder"),
      gated ? "gated_gelu" : "relu", tied, extent("encoder/relpos_bias/rel_embedding", 1));
}

}  // namespace flanmoe
