#include "train/plan/machine.hpp"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/error.hpp"

namespace flanmoe {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr std::array<const char*, kPrecisions> kPrecisionNames = {"fp32", "bf16"};
constexpr double kGiga = 1e9, kMicro = 1e-6, kNano = 1e-9, kGib = 1024.0 * 1024 * 1024;
constexpr double kMib = 1024.0 * 1024;

/// Bytes that memory must move for one element, fixed ones and multiples of the size of a C element: what a class of
/// work costs where it was not measured.
struct StreamBytes {
  const char* name;
  double fixed, of_compute;
};
constexpr std::array<StreamBytes, std::size_t(Stream::count)> kStreams = {{{"norm", 16, 2},
                                                                           {"residual", 20, 3},
                                                                           {"dropout", 0, 4},
                                                                           {"relu", 0, 5},
                                                                           {"gated", 0, 8},
                                                                           {"router", 40, 0},
                                                                           {"permute", 8, 8},
                                                                           {"softmax", 12, 2},
                                                                           {"embedding", 16, 1},
                                                                           {"adamw", 28, 0},
                                                                           {"factored", 24, 0},
                                                                           {"unfactored", 24, 0},
                                                                           {"publish", 4, 1}}};

double element_bytes(std::size_t stream, std::size_t precision) {
  return kStreams[stream].fixed + kStreams[stream].of_compute * (precision == 1 ? 2 : 4);
}

// What attention takes where it was not measured: its products are small, and it reads and writes queries, keys, values
// and results, forward and backward.
double attention_flops(const ProductRate& product) { return product.flops / 2; }
double attention_element_bytes(std::size_t precision) { return precision == 1 ? 24 : 48; }

/// Reads one description; remembers which keys were asked for, so that others are refused.
class Reader {
 public:
  Reader(std::string path, const json& root) : path_(std::move(path)), root_(root) {}

  /// A number at "a.b.c" above 0 (times may be 0), in SI units; `otherwise` where it is left out.
  double number(const std::string& key, double unit, double otherwise) {
    asked_.push_back(key);
    const json* value = find(key);
    if (value == nullptr) return otherwise;
    const bool is_time = unit < 1;
    if (!value->is_number() || value->get<double>() < 0 || (!is_time && value->get<double>() == 0)) {
      usage_fail("{}: {}: expected a number {} 0, found {}", path_, key, is_time ? "at least" : "above", value->dump());
    }
    return value->get<double>() * unit;
  }
  /// A whole number of something, 1 where it is left out.
  std::int64_t count(const std::string& key) {
    constexpr std::int64_t kMost = 1'000'000;
    asked_.push_back(key);
    const json* value = find(key);
    if (value == nullptr) return 1;
    if (!value->is_number_integer() || value->get<double>() < 1 || value->get<double>() > double(kMost)) {
      usage_fail("{}: {}: expected a whole number from 1 to {}, found {}", path_, key, kMost, value->dump());
    }
    return value->get<std::int64_t>();
  }
  void expect(const std::string& key) const {
    if (find(key) == nullptr) usage_fail("{}: expected {}, found none", path_, key);
  }
  std::string text(const std::string& key, const std::string& otherwise) {
    asked_.push_back(key);
    const json* value = find(key);
    if (value == nullptr) return otherwise;
    if (!value->is_string()) usage_fail("{}: {}: expected a text, found {}", path_, key, value->dump());
    return value->get<std::string>();
  }
  void refuse_others() const { refuse_others(root_, ""); }

 private:
  const json* find(const std::string& key) const {
    const json* at = &root_;
    for (std::size_t begin = 0; begin <= key.size();) {
      const std::size_t dot = std::min(key.find('.', begin), key.size());
      const std::string part = key.substr(begin, dot - begin);
      if (!at->is_object() || !at->contains(part)) return nullptr;
      at = &(*at)[part];
      begin = dot + 1;
    }
    return at;
  }
  void refuse_others(const json& object, const std::string& prefix) const {
    for (const auto& [name, value] : object.items()) {
      const std::string key = prefix + name;
      if (value.is_object()) {
        refuse_others(value, key + ".");
      } else if (std::find(asked_.begin(), asked_.end(), key) == asked_.end()) {
        usage_fail("{}: {} is not known; expected one of {}", path_, key, fmt::join(asked_, ", "));
      }
    }
  }

  std::string path_;
  const json& root_;
  std::vector<std::string> asked_;
};

ordered_json product_json(const ProductRate& rate) {
  return {{"gflop_per_s", rate.flops / kGiga},
          {"gb_per_s", rate.bytes_per_second / kGiga},
          {"call_us", rate.call_seconds / kMicro}};
}

ProductRate product_of(Reader& reader, const std::string& key, double flops, double bytes_per_second, double call) {
  return {reader.number(key + ".call_us", kMicro, call), reader.number(key + ".gflop_per_s", kGiga, flops),
          reader.number(key + ".gb_per_s", kGiga, bytes_per_second)};
}

void read_rates(Reader& reader, Machine& machine) {
  for (std::size_t p = 0; p < kPrecisions; ++p) {
    const std::string precision = kPrecisionNames[p];
    // bf16 left out: as fp32, where a machine has no faster product.
    if (p == 0) reader.expect("product.fp32.gflop_per_s");
    const double flops = machine.product[0].flops;
    machine.product[p] = product_of(reader, "product." + precision, flops, machine.bytes_per_second, 0);
    const ProductRate& product = machine.product[p];
    machine.weight_gradient[p] = product_of(reader, "weight_gradient." + precision, product.flops,
                                            product.bytes_per_second, product.call_seconds);
    const std::string attention = "attention." + precision;
    machine.attention[p].flops = reader.number(attention + ".gflop_per_s", kGiga, attention_flops(product));
    machine.attention[p].element_seconds =
        reader.number(attention + ".element_ns", kNano, attention_element_bytes(p) / machine.bytes_per_second);
    for (std::size_t s = 0; s < kStreams.size(); ++s) {
      machine.stream_seconds[s][p] = reader.number(fmt::format("element_ns.{}.{}", kStreams[s].name, precision), kNano,
                                                   element_bytes(s, p) / machine.bytes_per_second);
    }
  }
}

}  // namespace

const char* name_of(Stream stream) { return kStreams[std::size_t(stream)].name; }

Machine machine_of_speed(double flops_per_rank, double bytes_per_second) {
  Machine machine;
  machine.bytes_per_second = bytes_per_second;
  for (std::size_t p = 0; p < kPrecisions; ++p) {
    machine.product[p] = machine.weight_gradient[p] = {0, flops_per_rank, bytes_per_second};
    machine.attention[p] = {attention_flops(machine.product[p]), attention_element_bytes(p) / bytes_per_second};
    for (std::size_t s = 0; s < kStreams.size(); ++s) {
      machine.stream_seconds[s][p] = element_bytes(s, p) / bytes_per_second;
    }
  }
  machine.in_node = machine.between_nodes = link_through_memory(bytes_per_second);
  return machine;
}

LinkRate link_through_memory(double bytes_per_second) { return {1 * kMicro, bytes_per_second / 4}; }

Machine read_machine(const std::string& path) {
  std::ifstream in(path);
  if (!in) usage_fail("plan.machine: {} cannot be read", path);
  json root;
  try {
    root = json::parse(in, nullptr, true, /*ignore_comments=*/true);
  } catch (const json::exception& error) {
    usage_fail("{}: expected JSON: {}", path, error.what());
  }
  if (!root.is_object()) usage_fail("{}: expected a JSON object", path);
  Reader reader(path, root);
  Machine machine;
  machine.name = reader.text("name", path);
  machine.nodes = reader.count("nodes");
  machine.ranks_per_node = reader.count("ranks_per_node");
  machine.threads_per_rank = reader.count("threads_per_rank");
  machine.memory_bytes_per_node = reader.number("memory_gib_per_node", kGib, 0);
  machine.program_bytes_per_rank = reader.number("program_mib_per_rank", kMib, 0);
  reader.expect("memory_gb_per_s");
  machine.bytes_per_second = reader.number("memory_gb_per_s", kGiga, 0);
  read_rates(reader, machine);
  const LinkRate through_memory = link_through_memory(machine.bytes_per_second);
  machine.in_node = {reader.number("in_node.latency_us", kMicro, through_memory.latency_seconds),
                     reader.number("in_node.gb_per_s", kGiga, through_memory.bytes_per_second)};
  machine.between_nodes = {reader.number("between_nodes.latency_us", kMicro, machine.in_node.latency_seconds),
                           reader.number("between_nodes.gb_per_s", kGiga, machine.in_node.bytes_per_second)};
  reader.refuse_others();
  return machine;
}

std::string machine_text(const Machine& machine) {
  ordered_json root;
  root["name"] = machine.name;
  root["nodes"] = machine.nodes;
  root["ranks_per_node"] = machine.ranks_per_node;
  root["threads_per_rank"] = machine.threads_per_rank;
  if (machine.memory_bytes_per_node > 0) root["memory_gib_per_node"] = machine.memory_bytes_per_node / kGib;
  if (machine.program_bytes_per_rank > 0) root["program_mib_per_rank"] = machine.program_bytes_per_rank / kMib;
  root["memory_gb_per_s"] = machine.bytes_per_second / kGiga;
  for (std::size_t p = 0; p < kPrecisions; ++p) {
    root["product"][kPrecisionNames[p]] = product_json(machine.product[p]);
    root["weight_gradient"][kPrecisionNames[p]] = product_json(machine.weight_gradient[p]);
    root["attention"][kPrecisionNames[p]] = {{"gflop_per_s", machine.attention[p].flops / kGiga},
                                             {"element_ns", machine.attention[p].element_seconds / kNano}};
    for (std::size_t s = 0; s < kStreams.size(); ++s) {
      root["element_ns"][kStreams[s].name][kPrecisionNames[p]] = machine.stream_seconds[s][p] / kNano;
    }
  }
  for (const auto& [name, link] : {std::pair{"in_node", machine.in_node}, {"between_nodes", machine.between_nodes}}) {
    root[name] = {{"latency_us", link.latency_seconds / kMicro}, {"gb_per_s", link.bytes_per_second / kGiga}};
  }
  return root.dump(2) + "\n";
}

}  // namespace flanmoe
