#include "train/tensorboard.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <filesystem>

#include "base/host.hpp"
#include "base/log.hpp"

namespace flanmoe {
namespace {

static_assert(std::endian::native == std::endian::little, "frames and fixed fields are written as they lie in memory");

// Fields of tensorflow.Event, Summary and Summary.Value.
enum EventField : std::uint32_t { kWallTime = 1, kStep = 2, kFileVersion = 3, kSummary = 5 };
enum ValueField : std::uint32_t { kTag = 1, kSimpleValue = 2 };
constexpr std::uint32_t kValueOfSummary = 1;
// Wire types of protocol buffers.
enum Wire : std::uint32_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

void add_varint(std::string& out, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += char(std::uint8_t(value) | 0x80U);
  out += char(value);
}

void add_key(std::string& out, std::uint32_t field, Wire wire) { add_varint(out, field << 3U | wire); }

template <class T>
void add_raw(std::string& out, T value) {
  std::array<char, sizeof(T)> bytes{};
  std::memcpy(bytes.data(), &value, sizeof(T));
  out.append(bytes.data(), bytes.size());
}

void add_bytes(std::string& out, std::uint32_t field, std::string_view bytes) {
  add_key(out, field, kBytes);
  add_varint(out, bytes.size());
  out += bytes;
}

/// Length, its checksum, data, its checksum.
std::string framed(const std::string& data) {
  std::string out;
  add_raw(out, std::uint64_t(data.size()));
  add_raw(out, masked_crc32c(out));
  out += data;
  add_raw(out, masked_crc32c(data));
  return out;
}

std::string event_at(double wall_time) {
  std::string event;
  add_key(event, kWallTime, kFixed64);
  add_raw(event, wall_time);
  return event;
}

constexpr std::array<std::uint32_t, 256> castagnoli_table() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t n = 0; n < 256; ++n) {
    std::uint32_t c = n;
    for (int bit = 0; bit < 8; ++bit) c = (c & 1U) != 0 ? 0x82F63B78U ^ (c >> 1U) : c >> 1U;
    table[n] = c;
  }
  return table;
}

double wall_now() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

}  // namespace

std::uint32_t crc32c(std::string_view bytes) {
  static constexpr std::array<std::uint32_t, 256> table = castagnoli_table();
  std::uint32_t c = 0xFFFFFFFFU;
  for (const char byte : bytes) c = table[(c ^ std::uint8_t(byte)) & 0xFFU] ^ (c >> 8U);
  return c ^ 0xFFFFFFFFU;
}

std::uint32_t masked_crc32c(std::string_view bytes) { return std::rotr(crc32c(bytes), 15) + 0xA282EAD8U; }

std::string opening_event(double wall_time) {
  std::string event = event_at(wall_time);
  add_bytes(event, kFileVersion, "brain.Event:2");
  return framed(event);
}

std::string scalar_event(double wall_time, std::int64_t step, const std::vector<Scalar>& scalars) {
  std::string summary;
  for (const Scalar& scalar : scalars) {
    std::string value;
    add_bytes(value, kTag, scalar.tag);
    add_key(value, kSimpleValue, kFixed32);
    add_raw(value, float(scalar.value));
    add_bytes(summary, kValueOfSummary, value);
  }
  std::string event = event_at(wall_time);
  add_key(event, kStep, kVarint);
  add_varint(event, std::uint64_t(step));
  add_bytes(event, kSummary, summary);
  return framed(event);
}

std::vector<Scalar> scalars_of(const StepRecord& record) {
  std::vector<Scalar> scalars = {{"loss", record.loss},
                                 {"accuracy", record.accuracy},
                                 {"z_loss", record.z_loss},
                                 {"grad_norm", record.grad_norm},
                                 {"learning_rate", record.learning_rate},
                                 {"tokens_per_second", record.tokens_per_second()},
                                 {"step_seconds", record.step_seconds},
                                 {"tokens_seen", double(record.tokens_seen)}};
  for (const MoeLayerRecord& layer : record.moe) {
    const auto add = [&](const char* name, double value) {
      scalars.push_back({fmt::format("{}/{}", name, layer.layer), value});
    };
    if (!layer.load_E.empty()) {
      add("largest_load", *std::max_element(layer.load_E.begin(), layer.load_E.end()) * double(layer.load_E.size()));
    }
    add("drop_fraction", layer.drop_fraction);
    add("unrouted_fraction", layer.unrouted_fraction);
    add("balance_loss", layer.balance_loss);
    add("router_z_loss", layer.z_loss);
    add("router_entropy", layer.router_entropy);
  }
  return scalars;
}

EventFile::EventFile(const std::string& folder, const std::string& metrics) {
  namespace fs = std::filesystem;
  std::error_code error;
  fs::create_directories(folder, error);
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    std::error_code ignored;  // a file that stays shows its steps twice
    if (entry->path().filename().string().starts_with("events.out.tfevents.")) fs::remove(entry->path(), ignored);
  }
  const double now = wall_now();
  try {
    file_.emplace(fmt::format("{}/events.out.tfevents.{}.{}", folder, std::int64_t(now), host_name()));
  } catch (const Error& cannot_open) {
    give_up(cannot_open);
    return;
  }
  std::vector<StepRecord> records;
  try {
    records = read_metrics(metrics);
  } catch (const Error& damaged) {  // a damaged line: steps from here on are shown, and the run goes on
    log_warning("{} begins without the steps so far: {}", file_->path(), damaged.what());
  }
  double wall = now;  // when these steps ended is not written down: as if they had run without a break until now
  for (const StepRecord& record : records) wall -= record.step_seconds;
  write(opening_event(wall));
  for (const StepRecord& record : records) {
    wall += record.step_seconds;
    write(scalar_event(wall, record.step, scalars_of(record)));
  }
}

void EventFile::append(const StepRecord& record) { write(scalar_event(wall_now(), record.step, scalars_of(record))); }

void EventFile::write(const std::string& bytes) {
  if (!file_) return;
  try {
    file_->append(bytes);
  } catch (const Error& error) {
    give_up(error);
  }
}

void EventFile::give_up(const Error& error) {
  log_warning("{}; the run goes on without it", error.what());
  file_.reset();
}

}  // namespace flanmoe
