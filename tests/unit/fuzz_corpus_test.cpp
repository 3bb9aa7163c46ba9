// Replays what the fuzzers of tests/fuzz collected, and every cut of it.
#include <gtest/gtest.h>

#include <filesystem>

#include "data/text.hpp"
#include "fuzz/reader.hpp"

namespace flanmoe::formats {
namespace {

TEST(FuzzCorpus, EveryReaderSurvivesItsCorpusAndItsCuts) {
  for (const Format& format : formats()) {
    const std::string folder = std::string(FLANMOE_SOURCE_DIR) + "/tests/fuzz/corpus/" + format.name;
    ASSERT_TRUE(std::filesystem::is_directory(folder)) << folder;
    int files = 0;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      const std::string bytes = read_whole_file(entry.path().string());
      for (std::size_t length = 0; length <= bytes.size(); length += 1 + length / 64) {
        read_any_bytes(format, std::string_view(bytes).substr(0, length));
      }
      read_any_bytes(format, bytes);
      ++files;
    }
    EXPECT_GT(files, 0) << folder;
  }
}

}  // namespace
}  // namespace flanmoe::formats
