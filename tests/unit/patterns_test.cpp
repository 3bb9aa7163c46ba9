#include "data/patterns.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "data_fixture.hpp"

namespace flanmoe {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(Patterns, StarAndQuestionMarkMatchTheWholeName) {
  EXPECT_TRUE(matches_pattern("*", ""));
  EXPECT_TRUE(matches_pattern("", ""));
  EXPECT_TRUE(matches_pattern("a*c", "ac"));
  EXPECT_TRUE(matches_pattern("a*b*c", "aXbYbZc"));
  EXPECT_TRUE(matches_pattern("?b?", "abc"));
  EXPECT_TRUE(matches_pattern("define_*", "define_word"));
  EXPECT_TRUE(matches_pattern("*ab", "aab"));
  EXPECT_FALSE(matches_pattern("define", "define_word"));
  EXPECT_FALSE(matches_pattern("word", "define_word"));
  EXPECT_FALSE(matches_pattern("?", ""));
  EXPECT_FALSE(matches_pattern("a*c", "acb"));
  EXPECT_FALSE(matches_pattern("", "a"));
}

TEST(Patterns, OneWithoutMatchIsNamedWithTheNearestNames) {
  const std::vector<std::string> names = {"antonym", "define_word", "synonym", "translate_de"};
  EXPECT_EQ(error_of([&] {
              require_matches("data.tasks", std::vector<std::string>{"*nym", "define_word"}, names);
            }),
            "");
  const std::string message = error_of([&] {
    require_matches("data.exclude_tasks", std::vector<std::string>{"*", "sinonym"}, names);
  });
  EXPECT_THAT(message, HasSubstr("data.exclude_tasks: 'sinonym' matches none of the 4 tasks; nearest: synonym, "));
  EXPECT_THROW(require_matches("k", std::vector<std::string>{"x"}, names), UsageError);
}

TEST(Patterns, PathsAndGlobsGiveEachFileOnce) {
  const TemporaryFolder folder;
  for (const char* name : {"b.h5", "a.h5", "c.txt"}) std::ofstream(folder.file(name)) << "x";
  const std::string value = folder.file("c.txt") + "  " + folder.file("*.h5") + " " + folder.file("a.h5");
  EXPECT_THAT(expand_paths("data.train", value),
              ElementsAre(folder.file("c.txt"), folder.file("a.h5"), folder.file("b.h5")));
  EXPECT_THAT(error_of([&] { expand_paths("data.train", folder.file("*.h6")); }), HasSubstr("data.train: no file"));
  EXPECT_THROW(expand_paths("data.train", " "), UsageError);
}

}  // namespace
}  // namespace flanmoe
