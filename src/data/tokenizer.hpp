// Text to token ids and back, through a SentencePiece model.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "data/shard.hpp"

namespace flanmoe {

/// Number of sentinels `<extra_id_0>` .. `<extra_id_99>`; they mark the spans of span corruption.
inline constexpr std::int32_t kSentinels = 100;

/// Ids [0, pieces) are the pieces of the SentencePiece model; the last 100 ids are sentinels, `<extra_id_0>` being the
/// very last one (vocabulary-1) and `<extra_id_i>` vocabulary-1-i, as in T5. A model that already holds the sentinels
/// as its own last pieces is used as it is. Encoding and decoding may be called from several threads.
class Tokenizer {
 public:
  /// Throws Error when the file cannot be read or is no SentencePiece model.
  explicit Tokenizer(const std::string& path);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  /// Ids of a text, without EOS. Line ends, tabs and repeated blanks count as one blank, as the model's normalizer
  /// says.
  TokenIds encode(std::string_view text) const;
  /// Text of ids. Padding, EOS, sentinels and ids past the vocabulary (a model's table may be padded) say nothing.
  std::string decode(std::span<const std::int32_t> ids) const;
  /// Text of one id as stored, for people: "\u2581word", "<extra_id_0>".
  std::string piece(std::int32_t id) const;
  std::int32_t sentinel(std::int32_t i) const;  // id of <extra_id_i>
  std::int32_t vocabulary() const;
  /// Throws Error unless the model has the T5 layout: pad 0, eos 1, unknown 2.
  TokenizerIdentity identity() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

struct TokenizerTraining {
  std::int32_t vocabulary = 8000;  // with the sentinels
  std::int32_t threads = 2;        // part of the recipe: sums of the training depend on it
};

/// Trains a unigram model with the T5 layout on the sentences that `next` gives (it returns false at the end) and
/// writes it to `path` by rename. The same sentences give the same file. Defined in train_tokenizer.cpp, so
/// only programs that train need SentencePiece's training library.
void train_tokenizer(const std::function<bool(std::string&)>& next, const TokenizerTraining& training,
                     const std::string& path);

}  // namespace flanmoe
