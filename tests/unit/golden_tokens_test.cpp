// Encodings equal those of the SentencePiece library for every model at hand: pieces, ids and decoded text.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/error.hpp"
#include "data/formats/input.hpp"
#include "data/tokenizer.hpp"
#include "real_data.hpp"

namespace flanmoe {
namespace {

TEST(GoldenTokens, AllModelsEncodeAndDecodeAsRecorded) {
  FLANMOE_NEED_DATA("tokenizers/golden");
  int models = 0;
  for (const auto& entry : std::filesystem::directory_iterator(real_data() + "/tokenizers/golden")) {
    const std::string name = entry.path().stem().string();
    const Tokenizer tokenizer(real_data() + "/tokenizers/" + name + ".model");
    formats::Input input = formats::Input::file(entry.path().string());
    int lines = 0;
    for (std::string line; input.line(line); ++lines) {
      const auto golden = nlohmann::json::parse(line);
      const TokenIds ids = tokenizer.encode(golden.at("text").get<std::string>());
      EXPECT_EQ(ids, golden.at("ids").get<TokenIds>()) << input.where();
      std::vector<std::string> pieces;
      for (const std::int32_t id : ids) pieces.push_back(tokenizer.piece(id));
      const auto expected = golden.at("pieces").get<std::vector<std::string>>();
      ASSERT_EQ(pieces.size(), expected.size()) << input.where();
      for (std::size_t i = 0; i < pieces.size(); ++i) {
        EXPECT_TRUE(pieces[i] == expected[i] || pieces[i] == "<unk>") << input.where();  // an unknown one keeps no text
      }
      EXPECT_EQ(tokenizer.decode(ids), golden.at("decoded").get<std::string>()) << input.where();
    }
    EXPECT_EQ(lines, 133) << name;
    ++models;
  }
  EXPECT_EQ(models, 6);
}

TEST(GoldenTokens, AModelWithoutTheT5LayoutHasNoIdentity) {
  FLANMOE_NEED_DATA("tokenizers/sentencepiece_test_model.model");
  EXPECT_THROW(Tokenizer(real_data() + "/tokenizers/sentencepiece_test_model.model").identity(), Error);
}

}  // namespace
}  // namespace flanmoe
