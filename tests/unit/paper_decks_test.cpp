// Every deck of input/paper against the published figures of its model, or the ones derived from its published shapes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>

#include "base/error.hpp"
#include "deck/deck.hpp"
#include "model/freeze.hpp"
#include "optimizer/optimizer.hpp"
#include "train/model_size.hpp"

namespace flanmoe {
namespace {

namespace fs = std::filesystem;

const fs::path kFolder = fs::path(FLANMOE_SOURCE_DIR) / "input" / "paper";

/// A figure as printed, "7.42e9": holds every value that rounds to its digits.
struct Figure {
  const char* text;
  bool holds(double value) const {
    const std::string digits = text;
    const auto point = digits.find('.'), exponent = digits.find('e');
    const double decimals = point == std::string::npos ? 0 : double(exponent - point - 1);
    const double half = 0.5 * std::pow(10.0, std::stod(digits.substr(exponent + 1)) - decimals);
    return std::abs(value - std::stod(digits)) <= half * (1 + 1e-9);
  }
};

struct Model {
  const char* deck;
  Figure parameters;  // published or derived (paper facts 1.1 to 1.6)
  Figure pair_flops;  // of 512 + 114 tokens (paper facts 1.8); null where no figure is known
};

const std::vector<Model> kModels = {
    {"t5_1_1_small", {"77e6"}, {"30.9e9"}},
    {"t5_1_1_base", {"248e6"}, {"124.6e9"}},
    {"t5_1_1_large", {"783e6"}, {"432.8e9"}},
    {"t5_1_1_xl", {"2.85e9"}, {"1589e9"}},
    {"t5_1_1_xxl", {"11.14e9"}, {"6260e9"}},
    {"t5_1_0_base", {"223e6"}, {"124.6e9"}},
    {"t5_1_0_large", {"738e6"}, {"424.9e9"}},
    {"switch_base", {"7.42e9"}, {"124.6e9"}},
    {"switch_large", {"26.3e9"}, {"424.9e9"}},
    {"switch_xxl", {"395e9"}, {"6260e9"}},
    {"switch_c", {"1571e9"}, {"894e9"}},
    {"palm_8b", {"8.63e9"}, {nullptr}},
    {"palm_62b", {"62.50e9"}, {nullptr}},
    {"palm_540b", {"540.35e9"}, {nullptr}},
    {"token_choice_small", {"0.272e9"}, {"34.8e9"}},  // 77.0 M and 4 * (31 experts and a router) of 1.573 M
    {"token_choice_base", {"2.03e9"}, {"142.3e9"}},
    {"token_choice_large", {"7.32e9"}, {"497.8e9"}},
    {"token_choice_xl", {"26.6e9"}, {"1825e9"}},
    {"token_choice_xxl", {"106.3e9"}, {nullptr}},     // T5 1.1 XXL and 12 * (63 experts and a router): 11.135 + 95.130
    {"expert_choice_small", {"0.467e9"}, {nullptr}},  // the same with 8
    {"expert_choice_base", {"3.82e9"}, {nullptr}},
    {"expert_choice_large", {"13.9e9"}, {nullptr}},
    {"expert_choice_xl", {"50.4e9"}, {nullptr}},
    {"expert_choice_xxl", {"201e9"}, {nullptr}},
    {"st_moe_base", {"0.70e9"}, {nullptr}},
    {"st_moe_l", {"4.09e9"}, {"551e9"}},
    {"st_moe_32b", {"269.1e9"}, {"20.3e12"}},
};

/// Elements of matrices: the published counts of PaLM are without the scales of norms (540.354 B, 540.357 B with them).
std::int64_t matrix_elements(const Deck& deck) {
  std::int64_t sum = 0;
  for (const ParameterSpec& spec : training_parameters(deck)) sum += spec.rows > 1 ? spec.global_size() : 0;
  return sum;
}

const char* instruction_overrides(const Deck& deck) {
  if (deck.moe.router != "none") return "instruct_flan_moe.args";
  return deck.model.decoder_only() ? "instruct_flan_palm.args" : "instruct_flan_t5.args";
}

std::vector<std::string> words_of(const fs::path& path) {
  std::ifstream file(path);
  std::vector<std::string> words;
  for (std::string word; file >> word;) words.push_back(word);
  EXPECT_FALSE(words.empty()) << path;
  return words;
}

Deck paper_deck(const std::string& name, const std::vector<std::string>& overrides = {}) {
  return parse_deck((kFolder / (name + ".ini")).string(), overrides);
}

/// What check_deck says on so many ranks once there is data.
std::string problems(Deck deck, int ranks) {
  deck.data.train = (kFolder / "README.md").string();  // a file that exists
  deck.run.init_from.clear();
  try {
    check_deck(deck, ranks, freeze_problems(deck));
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}

TEST(PaperDecks, AreAllHeldAgainstFigures) {
  std::set<std::string> decks, models;
  for (const auto& entry : fs::directory_iterator(kFolder)) {
    if (entry.path().extension() == ".ini") decks.insert(entry.path().stem().string());
  }
  for (const Model& model : kModels) models.insert(model.deck);
  EXPECT_EQ(decks, models);
}

TEST(PaperDecks, HaveThePublishedParametersAndOperations) {
  for (const Model& model : kModels) {
    const Deck deck = paper_deck(model.deck);
    const ModelSize size = model_size(deck);
    const std::int64_t parameters = deck.model.decoder_only() ? matrix_elements(deck) : size.total;
    EXPECT_TRUE(model.parameters.holds(double(parameters)))
        << model.deck << ": " << parameters << " parameters, published " << model.parameters.text;
    if (deck.model.decoder_only()) {
      // Every weight is used once a token, the table twice: looked up and as logits; scores and sums over what stands
      // before. No figure is published.
      const double tokens = double(deck.batch.input_length + deck.batch.target_length);
      const double pairs =
          double(deck.model.decoder_layers * deck.model.heads * deck.model.head_width) * (tokens + 1) / 2;
      EXPECT_DOUBLE_EQ(size.counted_flops, 2 * double(parameters) + 4 * pairs) << model.deck;
    } else if (model.pair_flops.text != nullptr) {
      const double flops = published_pair_flops(deck.model, deck.moe);
      EXPECT_TRUE(model.pair_flops.holds(flops))
          << model.deck << ": " << flops << " operations, published " << model.pair_flops.text;
    }
    EXPECT_EQ(size.trained, size.total);
  }
}

TEST(PaperDecks, AreRightOnceTheyHaveData) {
  for (const Model& model : kModels) {
    for (const int ranks : {0, 1, 2, 8, 16}) EXPECT_EQ(problems(paper_deck(model.deck), ranks), "") << model.deck;
  }
}

TEST(PaperDecks, TakeTheOverridesOfInstructionTuning) {
  for (const Model& model : kModels) {
    const Deck pretraining = paper_deck(model.deck);
    const Deck deck = paper_deck(model.deck, words_of(kFolder / instruction_overrides(pretraining)));
    for (const int ranks : {1, 8}) EXPECT_EQ(problems(deck, ranks), "") << model.deck;
    EXPECT_EQ(deck.run.stage, "instruct");
    EXPECT_EQ(learning_rate(deck.optimizer, 0, deck.run.steps), deck.moe.router != "none"   ? 1e-4
                                                                : deck.model.decoder_only() ? 3e-3
                                                                                            : 5e-4);
  }
}

TEST(PaperDecks, SayWhereEveryLineComesFrom) {
  for (const Model& model : kModels) {
    std::ifstream file(kFolder / (std::string(model.deck) + ".ini"));
    std::string line;
    int sources = 0;
    while (std::getline(file, line)) {
      if (line.starts_with("# [")) ++sources;
      const std::string key = line.substr(0, line.find(' '));
      if (line.find(" = ") == std::string::npos || key == "stage" || key == "dir") continue;
      EXPECT_NE(line.find('#'), std::string::npos) << model.deck << ": " << line;
    }
    EXPECT_GE(sources, 2) << model.deck;
  }
}

TEST(Figure, HoldsWhatRoundsToItsDigits) {
  EXPECT_TRUE(Figure{"7.42e9"}.holds(7.4152e9));
  EXPECT_FALSE(Figure{"7.42e9"}.holds(7.4149e9));
  EXPECT_TRUE(Figure{"77e6"}.holds(76.96e6));
  EXPECT_FALSE(Figure{"77e6"}.holds(77.6e6));
}

TEST(ModelSize, CountsActiveAndTrainedParametersAndSaysThem) {
  Deck deck = paper_deck("switch_base", {"--optimizer.freeze=experts"});
  const ModelSize size = model_size(deck);
  const std::int64_t expert = 2 * 768 * 3072, layers = 12;
  EXPECT_EQ(size.total - size.active, layers * 127 * expert);
  EXPECT_EQ(size.total - size.trained, layers * 128 * expert);
  const std::string text = describe_size(deck);
  for (const char* part : {"parameters: 7.42 B (", "active per token: 224 M (", "trained: 167 M (",
                           "0.1990 as published tables count", "as this program counts"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << " not in\n" << text;
  }
}

TEST(ModelSize, OfATinyModelIsAsByHand) {
  Deck deck;
  deck.model = {.vocabulary = 10,
                .width = 2,
                .hidden = 3,
                .heads = 1,
                .head_width = 2,
                .encoder_layers = 1,
                .decoder_layers = 1,
                .activation = "relu"};
  deck.moe.router = "none";
  // Attention 4 * 2 * 2 = 16 and a feed-forward of 2 * 2 * 3 = 12 for inputs, 32 and 12 for targets, logits 2 * 10.
  const double products = 512 * (16 + 12) + 114 * (32 + 12) + 114 * 20;
  const double scores = 2 * (512.0 * 512 + 114.0 * 114 + 512.0 * 114);
  EXPECT_EQ(published_pair_flops(deck.model, deck.moe), 2 * (products + scores));
}

}  // namespace
}  // namespace flanmoe
