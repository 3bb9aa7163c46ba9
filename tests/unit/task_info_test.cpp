// How tasks are measured: what is published, and what shards keep of it.
#include "data/task_info.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "data/shard_format.hpp"
#include "data_fixture.hpp"

namespace flanmoe {
namespace {

using testing::HasSubstr;

Example example_of(const std::string& task) {
  Example e;
  e.input = {5, 6, 7};
  e.target = {8};
  e.task = task;
  e.variant = "zero_shot";
  e.split = "test";
  return e;
}

TEST(TaskInfo, NamesReadBack) {
  for (std::size_t i = 0; i < kExtractionNames.size(); ++i) {
    EXPECT_EQ(extraction_of(name_of(Extraction(i))), Extraction(i));
  }
  for (std::size_t i = 0; i < kScoreNames.size(); ++i) EXPECT_EQ(score_of(name_of(ScoreRule(i))), ScoreRule(i));
  EXPECT_FALSE(extraction_of("letters"));
  EXPECT_FALSE(score_of(""));
}

TEST(TaskInfo, MmluHas57SubjectsInFourCategories) {
  std::map<std::string, int> subjects;
  for (const std::string& task : published_tasks("mmlu")) {
    const TaskInfo info = published_task("mmlu", task).value();
    EXPECT_EQ(info.extraction, Extraction::letter);
    EXPECT_EQ(info.chance, 0.25);
    ++subjects[info.group];
  }
  const std::map<std::string, int> expected = {
      {"STEM", 18}, {"humanities", 13}, {"other", 14}, {"social sciences", 12}};
  EXPECT_EQ(subjects, expected);
}

TEST(TaskInfo, BbhHas27FilesThatAre23Tasks) {
  std::map<std::string, int> tasks;
  double sum = 0;
  for (const std::string& task : published_tasks("bbh")) {
    const TaskInfo info = published_task("bbh", task).value();
    ++tasks[info.part_of.empty() ? task : info.part_of];
    sum += info.chance / (info.part_of.empty() ? 1 : 3);
  }
  EXPECT_EQ(published_tasks("bbh").size(), 27U);
  EXPECT_EQ(tasks.size(), 23U);
  EXPECT_EQ(tasks.at("logical_deduction"), 3);
  EXPECT_EQ(tasks.at("tracking_shuffled_objects"), 3);
  EXPECT_NEAR(100 * sum / 23, 27.33, 0.01);  // added up by hand from the options of the files
}

TEST(TaskInfo, OtherBenchmarksAndUnknownNames) {
  EXPECT_EQ(published_task("reasoning", "gsm8k")->extraction, Extraction::number);
  EXPECT_EQ(published_task("reasoning", "strategyqa")->chance, 0.5);
  EXPECT_EQ(published_task("qa", "arc_easy")->chance, -1);
  EXPECT_EQ(published_task("niv2", "task1234_anything")->score, ScoreRule::rouge_l);
  EXPECT_EQ(published_task("mgsm", "de")->extraction, Extraction::number);
  EXPECT_FALSE(published_task("mmlu", "astrology"));
  EXPECT_FALSE(published_task("mmmlu", "astronomy"));
  EXPECT_TRUE(published_tasks("niv2").empty());
}

TEST(TaskInfo, ComesBackFromAShardTaskByTask) {
  const TemporaryFolder folder;
  const std::string path = folder.file("a.h5");
  const TaskInfo snarks = published_task("bbh", "snarks").value();
  TaskInfo odd{"b", "g \xc3\xa9", "whole task", Extraction::whole, ScoreRule::rouge_l, 1.0 / 3};
  {
    ShardWriter writer(path, small_tokenizer());
    writer.describe_task("odd", odd);
    writer.describe_task("never seen", snarks);
    for (const char* task : {"plain", "odd", "snarks", "odd"}) writer.add(example_of(task));
    writer.describe_task("snarks", snarks);
    writer.describe_task("odd", odd);
    writer.finish();
  }
  const ShardReader shard(path);
  EXPECT_EQ(shard.task_info(0), TaskInfo());
  EXPECT_EQ(shard.task_info(1), odd);
  EXPECT_EQ(shard.task_info(2), snarks);
  EXPECT_EQ(shard.task_info(3), odd);
}

TEST(TaskInfo, WriterRefusesContradictionsAndNonsense) {
  const TemporaryFolder folder;
  ShardWriter writer(folder.file("a.h5"), small_tokenizer());
  writer.describe_task("t", TaskInfo{.benchmark = "b"});
  EXPECT_THAT(error_of([&] { writer.describe_task("t", TaskInfo{.benchmark = "c"}); }),
              HasSubstr("task t is described twice"));
  EXPECT_THAT(error_of([&] { writer.describe_task("u", TaskInfo{.chance = 1}); }), HasSubstr("chance is 1"));
  EXPECT_THAT(error_of([&] { writer.describe_task("u", TaskInfo{.chance = -0.5}); }), HasSubstr("chance is -0.5"));
  EXPECT_THAT(error_of([&] { writer.describe_task("u", TaskInfo{.group = std::string(5000, 'x')}); }),
              HasSubstr("5000 bytes"));
}

TEST(TaskInfo, SeveralRightAnswersComeBackInOrder) {
  const TemporaryFolder folder;
  const std::string path = folder.file("a.h5");
  Example several = example_of("t");
  several.answer = "one";
  several.more_answers = {"", "two \xc3\xa9", "three"};
  write_shard(path, {several, example_of("t")});
  const ShardReader shard(path);
  EXPECT_EQ(shard.read(0).answer, "one");
  EXPECT_EQ(shard.read(0).more_answers, several.more_answers);
  EXPECT_TRUE(shard.read(1).more_answers.empty());
  ShardWriter writer(folder.file("b.h5"), small_tokenizer());
  several.more_answers[1] = std::string("a\0b", 3);
  EXPECT_THAT(error_of([&] { writer.add(several); }), HasSubstr("zero byte"));
  several.answer.clear();
  EXPECT_THAT(error_of([&] { writer.add(several); }), HasSubstr("more_answers without an answer"));
}

/// What version 1 wrote: no tables on tasks, and a checksum that does not cover them.
void turn_into_version_1(const std::string& path) {
  shard_format::Header header;
  header.version = 1;
  header.tokenizer = small_tokenizer();
  header.examples = 1, header.tokens = 4;
  header.names_of = {{{"t"}, {""}, {""}, {"zero_shot"}, {"test"}}};
  header.groups = {{0, 0, 1, 1, 4}};
  const H5File file(H5Fopen(path.c_str(), H5F_ACC_RDWR, H5P_DEFAULT), path);
  const auto write = [&](const char* name, std::int64_t value) {
    const H5Attribute attribute(H5Aopen(file.get(), name, H5P_DEFAULT), name);
    h5_check(H5Awrite(attribute.get(), H5T_NATIVE_INT64, &value), name);
  };
  write("format_version", 1);
  write("header_crc32", header.crc32());
  for (const char* table : shard_format::kTaskTables) h5_check(H5Ldelete(file.get(), table, H5P_DEFAULT), table);
  h5_check(H5Ldelete(file.get(), shard_format::kTaskChances, H5P_DEFAULT), "chances");
}

TEST(TaskInfo, VersionOneIsReadWithDefaults) {
  const TemporaryFolder folder;
  const std::string path = folder.file("a.h5");
  write_shard(path, {example_of("t")});
  turn_into_version_1(path);
  const ShardReader shard(path);
  EXPECT_EQ(shard.read(0).input, (TokenIds{5, 6, 7}));
  EXPECT_EQ(shard.task_info(0), TaskInfo());
}

TEST(TaskInfo, ADamagedTableIsNoticed) {
  const TemporaryFolder folder;
  const std::string path = folder.file("a.h5");
  {
    ShardWriter writer(path, small_tokenizer());
    writer.describe_task("t", published_task("bbh", "snarks").value());
    writer.add(example_of("t"));
    writer.finish();
  }
  const auto message = [&](double chance) {
    {
      const H5File file(H5Fopen(path.c_str(), H5F_ACC_RDWR, H5P_DEFAULT), path);
      const H5Dataset chances(H5Dopen2(file.get(), shard_format::kTaskChances, H5P_DEFAULT), "chances");
      h5_check(H5Dwrite(chances.get(), H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, &chance), "chances");
    }
    return error_of([&] { const ShardReader shard(path); });
  };
  EXPECT_EQ(message(0.5), "");
  EXPECT_THAT(message(0.25), HasSubstr("the header is damaged"));
  EXPECT_THAT(message(7), HasSubstr("chance is 7"));
}

}  // namespace
}  // namespace flanmoe
