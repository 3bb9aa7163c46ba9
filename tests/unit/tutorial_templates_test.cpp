#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "base/error.hpp"
#include "data/tutorial/templates.hpp"

namespace flanmoe::tutorial {
namespace {

const std::string kGood =
    "category = grammar\ncue = A:\n[one]\ninput = Is {word} {options}?\n[two]\ninput = {word}: {list}\ntarget = it is "
    "{answer}\n[three]\ninput = {word} is\ncue = none\n[four]\ninput = Say {word}\n";

Item item_of(const std::string& word, const std::string& answer) {
  return {word, {{"word", word}}, answer, {"noun", "verb", "adverb"}};
}

std::string error_of(const std::string& text) {
  try {
    parse_templates(text, "t.txt", "t");
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Templates, FillFieldsAnswerAndOptions) {
  const TemplateFile file = parse_templates(kGood, "t.txt", "t");
  const Item item = item_of("run", "verb");

  EXPECT_EQ(file.category, "grammar");
  ASSERT_EQ(file.templates.size(), 4U);
  EXPECT_EQ(zero_shot_prompt(file, file.templates[0], item).input, "Is run noun, verb or adverb?");
  EXPECT_EQ(zero_shot_prompt(file, file.templates[0], item).target, "verb");
  EXPECT_EQ(zero_shot_prompt(file, file.templates[1], item).input, "run: - noun - verb - adverb");
  EXPECT_EQ(zero_shot_prompt(file, file.templates[1], item).target, "it is verb");
}

TEST(Templates, FewShotPromptsShowExemplarsThenTheQueryWithItsCue) {
  const TemplateFile file = parse_templates(kGood, "t.txt", "t");
  const Item query = item_of("run", "verb"), first = item_of("cat", "noun"), second = item_of("well", "adverb");

  EXPECT_EQ(few_shot_prompt(file, file.templates[3], query, {&first, &second}).input,
            "Say cat A: noun # Say well A: adverb # Say run A:");
  EXPECT_EQ(few_shot_prompt(file, file.templates[2], query, {&first}).input, "cat is noun # run is");
}

TEST(Templates, MistakesAreReportedWithTheirLine) {
  EXPECT_EQ(error_of(kGood), "");
  EXPECT_NE(error_of("colour = red\n" + kGood).find("t.txt:1: unknown key \"colour\""), std::string::npos);
  EXPECT_NE(error_of(kGood + "prompt = x\n").find("t.txt:13"), std::string::npos);
  EXPECT_NE(error_of(kGood + "input =\n").find("has no value"), std::string::npos);
  EXPECT_NE(error_of(kGood + "target = {answer\n").find("not closed"), std::string::npos);
  EXPECT_NE(error_of(kGood + "target = }answer{\n").find("not closed"), std::string::npos);
  EXPECT_NE(error_of(kGood + "nonsense\n").find("t.txt:13"), std::string::npos);
  EXPECT_NE(error_of(kGood + "[five]\n").find("\"five\" has no input"), std::string::npos);
  EXPECT_NE(error_of(kGood + "[one]\ninput = x\n").find("a second template \"one\""), std::string::npos);
  EXPECT_NE(error_of(kGood.substr(0, kGood.find("[four]"))).find("at least 4"), std::string::npos);
  EXPECT_NE(error_of(kGood.substr(kGood.find("cue"))).find("category is missing"), std::string::npos);
  EXPECT_NE(error_of(kGood + "chain_of_thought = maybe\n").find("expected yes or no"), std::string::npos);
}

TEST(Templates, AnUnknownFieldNamesTheTemplateAndTheFieldsThereAre) {
  TemplateFile file = parse_templates(kGood, "t.txt", "t");
  file.templates[0].input = "What is {wrod}?";
  try {
    zero_shot_prompt(file, file.templates[0], item_of("run", "verb"));
    FAIL() << "accepted";
  } catch (const Error& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find("t.txt:3"), std::string::npos) << message;
    EXPECT_NE(message.find("{wrod}"), std::string::npos) << message;
    EXPECT_NE(message.find("answer, word, options, list"), std::string::npos) << message;
  }
}

TEST(Templates, EveryTaskHasAFileWithAtLeastFourWaysToAsk) {
  const std::string folder = FLANMOE_SOURCE_DIR "/input/templates";
  std::set<std::string> categories, held_out, finetune;
  std::set<std::string> names;
  for (const Task& task : tasks()) {
    const std::string path = fmt::format("{}/{}.txt", folder, task.name);
    const TemplateFile file = parse_templates(read_whole_file(path), path, task.name);
    int direct = 0;
    for (const auto& each : file.templates) direct += !each.chain_of_thought;
    EXPECT_GE(direct, 4) << path;
    categories.insert(file.category);
    if (file.held_out) held_out.insert(file.task);
    if (file.finetune) finetune.insert(file.task);
    names.insert(fmt::format("{}.txt", task.name));
  }
  EXPECT_GE(categories.size(), 4U);
  EXPECT_EQ(held_out.size(), 3U);
  EXPECT_EQ(finetune.size(), 1U);
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() == ".txt") {
      EXPECT_TRUE(names.contains(entry.path().filename())) << entry.path();
    }
  }
}

Items many_items() {
  Items items;
  for (int i = 0; i < 600; ++i) items.push_back(item_of(fmt::format("word{}", i / 2), "noun"));  // two items a key
  return items;
}

TEST(Split, NoKeyIsOnBothSidesAndNothingIsLostFromTraining) {
  const Items items = many_items();
  const Split split = split_by_key(items, 40);

  std::set<std::string> tested, trained;
  for (const Item* item : split.test) tested.insert(item->key);
  for (const Item* item : split.train) trained.insert(item->key);
  EXPECT_EQ(split.test.size(), 40U);
  EXPECT_EQ(tested.size(), 40U);
  EXPECT_EQ(trained.size(), 260U);
  EXPECT_EQ(split.train.size(), 520U);
  for (const auto& key : tested) EXPECT_FALSE(trained.contains(key)) << key;
  EXPECT_EQ(split_by_key(items, 1000).test.size(), 75U);  // a quarter of 300 keys
}

TEST(Split, DependsOnTheKeysNotOnTheirOrder) {
  Items items = many_items(), reversed(items.rbegin(), items.rend());
  const Split split = split_by_key(items, 40), other = split_by_key(reversed, 40);

  for (std::size_t i = 0; i < 40; ++i) EXPECT_EQ(split.test[i]->key, other.test[i]->key);
}

TEST(Exemplars, NeverContainTheQueryNorEachOther) {
  const Items items = many_items();
  std::vector<const Item*> few;  // four keys only: without the check the query would come up at once
  for (std::size_t i = 0; i < 8; ++i) few.push_back(&items[i]);
  Random random(1);

  for (int round = 0; round < 300; ++round) {
    const Item& query = *few[std::size_t(round) % few.size()];
    const auto exemplars = choose_exemplars(few, query, 3, random);
    ASSERT_EQ(exemplars.size(), 3U);
    std::set<std::string> keys = {query.key};
    for (const Item* exemplar : exemplars) EXPECT_TRUE(keys.insert(exemplar->key).second);
  }
}

TEST(Choices, HoldTheAnswerOnceAndNoRefusedText) {
  Random random(3);
  std::set<std::size_t> places;
  for (int round = 0; round < 100; ++round) {
    Item item;
    item.key = "k";
    item.answer = "a";
    draw_choices(item, {"a", "b", "c", "d", "e", "bad"}, 3, random,
                 [](const std::string& text) { return text == "bad"; });
    ASSERT_EQ(item.choices.size(), 4U);
    EXPECT_EQ(std::set<std::string>(item.choices.begin(), item.choices.end()).size(), 4U);
    EXPECT_EQ(std::count(item.choices.begin(), item.choices.end(), "bad"), 0);
    ASSERT_EQ(std::count(item.choices.begin(), item.choices.end(), "a"), 1);
    places.insert(std::size_t(std::find(item.choices.begin(), item.choices.end(), "a") - item.choices.begin()));
  }
  EXPECT_EQ(places.size(), 4U);  // the right choice is not always at the same place
}

TEST(Balance, EveryAnswerIsEquallyFrequent) {
  Items items;
  for (int i = 0; i < 100; ++i) items.push_back({fmt::format("k{}", i), {}, i % 10 == 0 ? "rare" : "common", {}});
  const Items even = balanced(items, 50);

  EXPECT_EQ(even.size(), 20U);
  EXPECT_EQ(std::count_if(even.begin(), even.end(), [](const Item& item) { return item.answer == "rare"; }), 10);
}

}  // namespace
}  // namespace flanmoe::tutorial
