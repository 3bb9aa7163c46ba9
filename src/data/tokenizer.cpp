#include "data/tokenizer.hpp"

#include <sentencepiece_processor.h>
#include <zlib.h>

#include <fstream>
#include <iterator>
#include <vector>

#include "base/error.hpp"

namespace flanmoe {

struct Tokenizer::State {
  sentencepiece::SentencePieceProcessor processor;
  std::string path, fingerprint;
  std::int32_t pieces = 0;      // ids that the SentencePiece model can decode to text
  std::int32_t vocabulary = 0;  // with the sentinels
};

namespace {

std::string read_model(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail("{}: cannot open the SentencePiece model", path);
  std::string bytes{std::istreambuf_iterator<char>(file), {}};
  if (bytes.empty()) fail("{}: the SentencePiece model is empty", path);
  return bytes;
}

/// CRC-32 and length: enough to notice that shards were made with another model.
std::string fingerprint_of(const std::string& bytes) {
  const auto crc = crc32(0L, reinterpret_cast<const Bytef*>(bytes.data()), uInt(bytes.size()));
  return fmt::format("{:08x}{:08x}", std::uint32_t(crc), std::uint32_t(bytes.size()));
}

std::string sentinel_name(std::int32_t i) { return fmt::format("<extra_id_{}>", i); }

}  // namespace

Tokenizer::Tokenizer(const std::string& path) : state_(std::make_unique<State>()) {
  const std::string bytes = read_model(path);
  if (const auto status = state_->processor.LoadFromSerializedProto(bytes); !status.ok()) {
    fail("{}: not a SentencePiece model: {}", path, status.ToString());
  }
  state_->path = path;
  state_->fingerprint = fingerprint_of(bytes);
  const std::int32_t size = state_->processor.GetPieceSize();
  const bool holds_sentinels = size > kSentinels && state_->processor.IdToPiece(size - 1) == sentinel_name(0);
  state_->pieces = holds_sentinels ? size - kSentinels : size;
  state_->vocabulary = state_->pieces + kSentinels;
}

Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

TokenIds Tokenizer::encode(std::string_view text) const {
  TokenIds ids;
  if (const auto status = state_->processor.Encode(text, &ids); !status.ok()) {
    fail("{}: cannot encode a text of {} bytes: {}", state_->path, text.size(), status.ToString());
  }
  return ids;
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids) const {
  const auto& processor = state_->processor;
  std::vector<int> kept;
  kept.reserve(ids.size());
  for (const std::int32_t id : ids) {
    if (id >= 0 && id < state_->pieces && !processor.IsControl(id)) kept.push_back(id);
  }
  std::string text;
  if (const auto status = processor.Decode(kept, &text); !status.ok()) {
    fail("{}: cannot decode {} ids: {}", state_->path, ids.size(), status.ToString());
  }
  return text;
}

std::string Tokenizer::piece(std::int32_t id) const {
  if (id >= 0 && id < state_->pieces) return state_->processor.IdToPiece(id);
  if (id >= state_->pieces && id < state_->vocabulary) return sentinel_name(state_->vocabulary - 1 - id);
  return fmt::format("<id {}>", id);
}

std::int32_t Tokenizer::sentinel(std::int32_t i) const {
  FLANMOE_EXPECT(i >= 0 && i < kSentinels, "sentinel {} of {}", i, kSentinels);
  return state_->vocabulary - 1 - i;
}

std::int32_t Tokenizer::vocabulary() const { return state_->vocabulary; }

TokenizerIdentity Tokenizer::identity() const {
  const auto& processor = state_->processor;
  const TokenizerIdentity expected;
  if (processor.pad_id() != expected.pad || processor.eos_id() != expected.eos ||
      processor.unk_id() != expected.unknown) {
    fail("{}: expected pad {}, end of sequence {}, unknown {}; found {}, {}, {}", state_->path, expected.pad,
         expected.eos, expected.unknown, processor.pad_id(), processor.eos_id(), processor.unk_id());
  }
  TokenizerIdentity identity;
  identity.fingerprint = state_->fingerprint;
  identity.vocabulary = state_->vocabulary;
  identity.sentinels = kSentinels;
  return identity;
}

}  // namespace flanmoe
