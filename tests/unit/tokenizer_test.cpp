#include "data/tokenizer.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "base/error.hpp"

namespace flanmoe {
namespace {

namespace fs = std::filesystem;

constexpr std::int32_t kVocabulary = 320;

/// Folder of this test that is removed at its end.
class Tokenizers : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("flanmoe_tokenizer_" + std::to_string(getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  /// A small model, trained on sentences made of a few hundred different words.
  std::string trained(const std::string& name, std::int32_t vocabulary = kVocabulary) const {
    const char* starts[] = {"red", "green", "loud", "soft", "quick", "bright", "dull", "heavy", "light", "warm"};
    const char* middles[] = {"stone", "river", "window", "table", "garden", "letter", "winter", "summer", "mountain"};
    const char* ends[] = {"s move", "s stand", " falls", " rises", "s were sold", " turns", " is old", "s are new"};
    std::vector<std::string> sentences;
    for (int i = 0; i < 3000; ++i) {
      sentences.push_back(std::string("the ") + starts[i % 10] + "er " + middles[i % 9] + ends[i % 7] + " on day " +
                          std::to_string(i * 37 % 1000) + " near \u00e9t\u00e9 in 1999");
    }
    std::size_t at = 0;
    TokenizerTraining training;
    training.vocabulary = vocabulary;
    const std::string path = folder_ / name;
    train_tokenizer(
        [&](std::string& sentence) {
          if (at == sentences.size()) return false;
          sentence = sentences[at++];
          return true;
        },
        training, path);
    return path;
  }
  fs::path folder_;
};

TEST_F(Tokenizers, TrainedModelHasTheT5Layout) {
  const Tokenizer tokenizer(trained("a.model"));

  EXPECT_EQ(tokenizer.vocabulary(), kVocabulary);
  EXPECT_EQ(tokenizer.piece(0), "<pad>");
  EXPECT_EQ(tokenizer.piece(1), "</s>");
  EXPECT_EQ(tokenizer.piece(2), "<unk>");
  EXPECT_EQ(tokenizer.piece(319), "<extra_id_0>");
  EXPECT_EQ(tokenizer.piece(220), "<extra_id_99>");
  EXPECT_EQ(tokenizer.sentinel(0), 319);
  EXPECT_EQ(tokenizer.sentinel(99), 220);
  const TokenizerIdentity identity = tokenizer.identity();
  EXPECT_EQ(identity.vocabulary, 320);
  EXPECT_EQ(identity.pad, 0);
  EXPECT_EQ(identity.eos, 1);
  EXPECT_EQ(identity.unknown, 2);
  EXPECT_EQ(identity.sentinels, 100);
}

TEST_F(Tokenizers, DecodeGivesBackTheTextAndEncodeAddsNoEnd) {
  const Tokenizer tokenizer(trained("a.model"));
  const std::string text = "the softer garden turns on day 407 near \u00e9t\u00e9";

  const TokenIds ids = tokenizer.encode(text);

  EXPECT_EQ(tokenizer.decode(ids), text);
  EXPECT_NE(ids.back(), 1);
  EXPECT_EQ(tokenizer.encode("the\n softer\tgarden  turns"), tokenizer.encode("the softer garden turns"));
}

TEST_F(Tokenizers, DecodeSkipsSpecialIdsAndSentinelsAndIdsPastTheVocabulary) {
  const Tokenizer tokenizer(trained("a.model"));
  const TokenIds words = tokenizer.encode("the river falls");
  TokenIds ids = {0, 319};
  ids.insert(ids.end(), words.begin(), words.end());
  ids.insert(ids.end(), {220, 1, 320, 100000, -1, 0});

  EXPECT_EQ(tokenizer.decode(ids), "the river falls");
}

TEST_F(Tokenizers, AsciiAndAccentedLettersAreKnownAndDigitsStandAlone) {
  const Tokenizer tokenizer(trained("a.model"));
  std::string ascii;
  for (char c = '!'; c <= '~'; ++c) ascii += c;

  EXPECT_EQ(tokenizer.decode(tokenizer.encode(ascii)), ascii);
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("vo\u00fbte H\u00f6gskolan")), "vo\u00fbte H\u00f6gskolan");
  // "in 1999" ends every sentence of the training text and would otherwise be one piece.
  EXPECT_EQ(tokenizer.encode("in 1999").size(), tokenizer.encode("in 1").size() + 3);
}

TEST_F(Tokenizers, SameSentencesGiveTheSameModel) {
  const Tokenizer first(trained("a.model")), second(trained("b.model")), other(trained("c.model", 310));

  EXPECT_EQ(first.identity().fingerprint, second.identity().fingerprint);
  EXPECT_NE(first.identity().fingerprint, other.identity().fingerprint);
}

TEST_F(Tokenizers, DamagedAndMissingModelsAreNamed) {
  const std::string path = folder_ / "broken.model";
  std::ofstream(path) << "this is no model";
  for (const std::string& name : {path, (folder_ / "absent.model").string()}) {
    try {
      const Tokenizer tokenizer(name);
      FAIL() << name << " was accepted";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(name), std::string::npos) << error.what();
    }
  }
}

}  // namespace
}  // namespace flanmoe
