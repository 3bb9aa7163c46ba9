// ROUGE-L against the package rouge_score: tools/rouge_fixture.py made the values.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "evaluate/answer.hpp"
#include "evaluate/stemmer.hpp"

namespace flanmoe {
namespace {

nlohmann::json fixture() {
  std::ifstream file(std::string(FLANMOE_SOURCE_DIR) + "/tests/fixtures/rouge_l.json");
  return nlohmann::json::parse(file);
}

TEST(Stemmer, EqualsNltkOnEveryRule) {
  const auto stems = fixture().at("stems");
  EXPECT_GT(stems.size(), 2000U);
  for (const auto& each : stems) EXPECT_EQ(porter_stem(each[0].get<std::string>()), each[1]) << each[0];
}

TEST(RougeL, EqualsRougeScoreWithItsStemmer) {
  const auto values = fixture().at("values");
  EXPECT_GT(values.size(), 80U);
  for (const auto& each : values) {
    EXPECT_NEAR(rouge_l(each.at("text").get<std::string>(), each.at("reference").get<std::string>()),
                each.at("rouge_l").get<double>(), 1e-12)
        << each.dump();
  }
}

}  // namespace
}  // namespace flanmoe
