#include "exchange/safetensors.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.hpp"
#include "exchange/json_file.hpp"
#include "tensor/dtype.hpp"

namespace flanmoe {

namespace fs = std::filesystem;

namespace {

constexpr std::uint64_t kLongestHeader = 100'000'000;  // bytes; the limit of the format
constexpr const char* kIndexFile = "model.safetensors.index.json";
constexpr const char* kSingleFile = "model.safetensors";

struct DTypeName {
  std::string_view name;
  std::uint64_t bytes;
  ElementType type;
};
constexpr DTypeName kTypes[] = {
    {"F32", 4, ElementType::f32},   {"BF16", 2, ElementType::bf16},     {"F16", 2, ElementType::f16},
    {"F64", 8, ElementType::other}, {"BOOL", 1, ElementType::other},    {"U8", 1, ElementType::other},
    {"I8", 1, ElementType::other},  {"F8_E4M3", 1, ElementType::other}, {"F8_E5M2", 1, ElementType::other},
    {"I16", 2, ElementType::other}, {"U16", 2, ElementType::other},     {"I32", 4, ElementType::other},
    {"U32", 4, ElementType::other}, {"I64", 8, ElementType::other},     {"U64", 8, ElementType::other},
};

const DTypeName& type_called(const std::string& name, const std::string& where) {
  const auto found = std::find_if(std::begin(kTypes), std::end(kTypes), [&](const auto& t) { return t.name == name; });
  if (found == std::end(kTypes)) fail("{}: unknown dtype '{}'", where, name);
  return *found;
}

/// A member that must be there and be a list of integers from 0.
std::vector<std::uint64_t> integers(const nlohmann::json& entry, const char* key, const std::string& where) {
  const auto list = entry.find(key);
  if (list == entry.end() || !list->is_array()) fail("{}: expected a list '{}'", where, key);
  std::vector<std::uint64_t> values;
  for (const nlohmann::json& value : *list) {
    if (!value.is_number_unsigned()) fail("{}: '{}' holds {}; expected integers from 0", where, key, value.dump());
    values.push_back(value.get<std::uint64_t>());
  }
  return values;
}

/// Bytes of the elements that shape and type promise; refuses what does not fit 63 bits.
std::uint64_t promised_bytes(const std::vector<std::uint64_t>& shape, std::uint64_t width, const std::string& where) {
  const auto most = std::uint64_t(std::numeric_limits<std::int64_t>::max());
  std::uint64_t bytes = width;
  for (const std::uint64_t extent : shape) {
    if (extent > most || (extent != 0 && bytes > most / extent)) fail("{}: its shape has too many elements", where);
    bytes *= extent;
  }
  return bytes;
}

StoredTensor read_entry(const nlohmann::json& entry, const std::string& path, const std::string& name,
                        std::uint64_t data_begin, std::uint64_t data_bytes) {
  const std::string where = fmt::format("{}: tensor {}", path, name);
  if (!entry.is_object()) fail("{}: expected an object with dtype, shape and data_offsets", where);
  const auto dtype = entry.find("dtype");
  if (dtype == entry.end() || !dtype->is_string()) fail("{}: expected a text 'dtype'", where);
  const DTypeName& type = type_called(dtype->get<std::string>(), where);
  const std::vector<std::uint64_t> shape = integers(entry, "shape", where);
  const std::vector<std::uint64_t> offsets = integers(entry, "data_offsets", where);
  if (offsets.size() != 2 || offsets[0] > offsets[1]) {
    fail("{}: data_offsets are [{}]; expected begin and end", where, fmt::join(offsets, ", "));
  }
  if (offsets[1] > data_bytes) {
    fail("{}: ends at byte {} of {} bytes of data: the file is truncated", where, offsets[1], data_bytes);
  }
  const std::uint64_t bytes = promised_bytes(shape, type.bytes, where);
  if (bytes != offsets[1] - offsets[0]) {
    fail("{}: {} [{}] needs {} bytes, its data_offsets [{}, {}] hold {}", where, type.name, fmt::join(shape, ", "),
         bytes, offsets[0], offsets[1], offsets[1] - offsets[0]);
  }
  return {type.type, std::string(type.name), {shape.begin(), shape.end()}, path, data_begin + offsets[0], bytes};
}

/// Tensors must fill the data from the first to the last byte, in some order.
void check_cover(const TensorTable& table, const std::string& path, std::uint64_t begin, std::uint64_t end) {
  std::vector<TensorTable::const_iterator> order;
  for (auto t = table.begin(); t != table.end(); ++t) order.push_back(t);
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return std::pair(a->second.offset, a->second.bytes) < std::pair(b->second.offset, b->second.bytes);
  });
  std::uint64_t next = begin;
  std::string_view before = "the header";
  for (const auto& t : order) {
    if (t->second.offset < next) fail("{}: tensor {} overlaps {}", path, t->first, before);
    if (t->second.offset > next) {
      fail("{}: {} bytes between {} and tensor {} belong to no tensor", path, t->second.offset - next, before,
           t->first);
    }
    next = t->second.offset + t->second.bytes;
    before = t->first;
  }
  if (next != end) fail("{}: {} bytes behind {} belong to no tensor", path, end - next, before);
}

/// The header's text; leaves the stream behind it.
std::string read_header(std::ifstream& file, const std::string& path, std::uint64_t file_bytes) {
  std::uint64_t length = 0;
  if (file_bytes < 8 || !file.read(reinterpret_cast<char*>(&length), 8)) {
    fail("{}: {} bytes are too few for a safetensors file", path, file_bytes);
  }
  if (length > kLongestHeader || length > file_bytes - 8) {
    fail("{}: its header is to have {} bytes, the file has {}: truncated, or no safetensors file", path, length,
         file_bytes);
  }
  std::string text(length, '\0');
  if (!file.read(text.data(), std::streamsize(length))) fail("{}: cannot be read", path);
  return text;
}

}  // namespace

TensorTable read_safetensors_table(const std::string& path) {
  std::error_code code;
  const std::uint64_t file_bytes = fs::file_size(path, code);
  std::ifstream file(path, std::ios::binary);
  if (code || !file) fail("{}: cannot be opened{}", path, code ? ": " + code.message() : "");
  const std::string text = read_header(file, path, file_bytes);
  const nlohmann::json header = parse_json(text, path + ": header");
  if (!header.is_object()) fail("{}: its header is no JSON object", path);
  const std::uint64_t data_begin = 8 + text.size();
  TensorTable table;
  for (const auto& [name, entry] : header.items()) {
    if (name != "__metadata__") table[name] = read_entry(entry, path, name, data_begin, file_bytes - data_begin);
  }
  check_cover(table, path, data_begin, file_bytes);
  return table;
}

namespace {

/// All tensors of the files that an index names, each where the index says.
TensorTable read_shards(const fs::path& folder) {
  const std::string index = (folder / kIndexFile).string();
  const nlohmann::json json = read_json(index);
  const auto map = json.find("weight_map");
  if (map == json.end() || !map->is_object()) fail("{}: expected an object 'weight_map'", index);
  std::map<std::string, std::set<std::string>> names_of_file;
  for (const auto& [name, file] : map->items()) {
    if (!file.is_string() || fs::path(file.get<std::string>()).filename() != file.get<std::string>()) {
      fail("{}: tensor {}: expected the name of a file in the same folder, found {}", index, name, file.dump());
    }
    names_of_file[file.get<std::string>()].insert(name);
  }
  TensorTable all;
  for (const auto& [file, names] : names_of_file) {
    TensorTable table = read_safetensors_table((folder / file).string());
    for (const std::string& name : names) {
      if (!table.contains(name))
        fail("{}: tensor {} is missing, {} says that it is here", (folder / file).string(), name, index);
    }
    for (const auto& [name, tensor] : table) {
      if (!names.contains(name))
        fail("{}: tensor {} is extra: {} does not say that it is here", tensor.file, name, index);
    }
    all.merge(table);
  }
  return all;
}

}  // namespace

Safetensors::Safetensors(const std::string& path) {
  if (!fs::is_directory(path)) {
    table_ = read_safetensors_table(path);
  } else if (fs::exists(fs::path(path) / kSingleFile)) {
    table_ = read_safetensors_table((fs::path(path) / kSingleFile).string());
  } else if (fs::exists(fs::path(path) / kIndexFile)) {
    table_ = read_shards(path);
  } else {
    fail("{}: expected {} or {}, found neither", path, kSingleFile, kIndexFile);
  }
}

void Safetensors::read(std::string_view name, std::span<float> out) const {
  const auto found = table_.find(name);
  FLANMOE_EXPECT(found != table_.end() && found->second.size() == std::int64_t(out.size()), "{} for {} elements", name,
                 out.size());
  const StoredTensor& tensor = found->second;
  std::ifstream file(tensor.file, std::ios::binary);
  std::vector<char> bytes(tensor.bytes);
  file.seekg(std::streamoff(tensor.offset));
  if (!file.read(bytes.data(), std::streamsize(bytes.size()))) fail("{}: tensor {} cannot be read", tensor.file, name);
  to_float(out, bytes, tensor, name);
}

std::int64_t SafetensorsWriter::Entry::size() const {
  std::int64_t size = 1;
  for (const std::int64_t extent : shape) size *= extent;
  return size;
}

namespace {

std::uint64_t width_of(ElementType type) { return type == ElementType::f32 ? 4 : 2; }

}  // namespace

SafetensorsWriter::SafetensorsWriter(const std::string& path, std::vector<Entry> plan, ElementType type)
    : path_(path), plan_(std::move(plan)), type_(type), file_(path, std::ios::binary | std::ios::trunc) {
  FLANMOE_EXPECT(type == ElementType::f32 || type == ElementType::bf16, "safetensors of another type");
  nlohmann::json header = {{"__metadata__", {{"format", "pt"}}}};  // transformers asks for it
  std::uint64_t next = 0;
  for (const Entry& entry : plan_) {
    const std::uint64_t end = next + std::uint64_t(entry.size()) * width_of(type_);
    header[entry.name] = {
        {"dtype", type_ == ElementType::f32 ? "F32" : "BF16"}, {"shape", entry.shape}, {"data_offsets", {next, end}}};
    next = end;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // the elements start at a multiple of 8
  const std::uint64_t length = text.size();
  file_.write(reinterpret_cast<const char*>(&length), 8);
  file_.write(text.data(), std::streamsize(length));
}

void SafetensorsWriter::add(std::string_view name, std::span<const float> values) {
  FLANMOE_EXPECT(
      next_ < plan_.size() && plan_[next_].name == name && plan_[next_].size() == std::int64_t(values.size()),
      "{} with {} elements is not the next tensor of {}", name, values.size(), path_);
  ++next_;
  if (type_ == ElementType::f32) {
    file_.write(reinterpret_cast<const char*>(values.data()), std::streamsize(values.size_bytes()));
    return;
  }
  std::vector<bf16> rounded(values.size());
  std::transform(values.begin(), values.end(), rounded.begin(), [](float x) { return bf16(x); });
  file_.write(reinterpret_cast<const char*>(rounded.data()), std::streamsize(2 * rounded.size()));
}

void SafetensorsWriter::close() {
  FLANMOE_EXPECT(next_ == plan_.size(), "{} of {} tensors of {} written", next_, plan_.size(), path_);
  file_.close();
  if (!file_) fail("{}: cannot be written (is the disk full?)", path_);
}

std::vector<ShardPlan> plan_shards(const std::vector<SafetensorsWriter::Entry>& tensors, ElementType type,
                                   std::uint64_t shard_bytes) {
  std::vector<ShardPlan> shards(1);
  std::uint64_t used = 0;
  for (const auto& entry : tensors) {
    const std::uint64_t bytes = std::uint64_t(entry.size()) * width_of(type);
    if (used > 0 && used + bytes > shard_bytes) {
      shards.emplace_back();
      used = 0;
    }
    shards.back().entries.push_back(entry);
    used += bytes;
  }
  for (std::size_t i = 0; i < shards.size(); ++i) {
    shards[i].file = shards.size() == 1 ? std::string(kSingleFile)
                                        : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
  }
  return shards;
}

std::string index_text(const std::vector<ShardPlan>& shards, ElementType type) {
  std::uint64_t total = 0;
  nlohmann::json map = nlohmann::json::object();
  for (const ShardPlan& shard : shards) {
    for (const auto& entry : shard.entries) {
      map[entry.name] = shard.file;
      total += std::uint64_t(entry.size()) * width_of(type);
    }
  }
  return nlohmann::json{{"metadata", {{"total_size", total}}}, {"weight_map", map}}.dump(2) + "\n";
}

}  // namespace flanmoe
