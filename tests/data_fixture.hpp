// Small shards for tests, in a folder of their own that goes away.
#pragma once

#include <fstream>
#include <string>
#include <vector>

#include "base/hdf5.hpp"
#include "data/shard.hpp"
#include "temporary_folder.hpp"

namespace flanmoe {

inline TokenizerIdentity small_tokenizer(std::int32_t vocabulary = 1000) {
  TokenizerIdentity identity;
  identity.fingerprint = "0123abcd";
  identity.vocabulary = vocabulary;
  return identity;
}

inline void write_shard(const std::string& path, const std::vector<Example>& examples,
                        const TokenizerIdentity& tokenizer = small_tokenizer()) {
  ShardWriter writer(path, tokenizer);
  for (const Example& example : examples) writer.add(example);
  writer.finish();
}

inline std::vector<char> file_bytes(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

inline void write_bytes(const std::string& path, const std::vector<char>& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc).write(bytes.data(), std::streamsize(bytes.size()));
}

/// The message of the Error that `action` throws; empty when it throws none.
template <class Action>
std::string error_of(Action&& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace flanmoe
