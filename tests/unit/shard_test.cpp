#include "data/shard.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>

#include "data/block_pool.hpp"
#include "data/chunk_io.hpp"
#include "data_fixture.hpp"

namespace flanmoe {
namespace {

using testing::HasSubstr;

/// Examples of several tasks and kinds; enough for several blocks of every table when `count` is large.
std::vector<Example> mixed_examples(int count) {
  std::vector<Example> examples;
  for (int i = 0; i < count; ++i) {
    Example e;
    for (int t = 0; t < 3 + i % 7; ++t) e.input.push_back((i * 31 + t) % 1000);
    e.has_target = i % 5 != 0;
    if (e.has_target) e.target.assign(std::size_t(i % 4), (i * 7) % 1000);
    e.task = i % 5 == 0 ? "text" : i % 2 == 0 ? "even" : "odd";
    e.category = i % 2 == 0 ? "first" : "";
    e.template_name = "t" + std::to_string(i % 3);
    e.variant = "zero_shot";
    e.split = i % 10 == 9 ? "test" : "train";
    if (i % 3 == 1) {
      e.choices = {{1, 2}, {}, {i % 1000}};
      e.choice_bytes = {3, 0, 9};
      e.gold = i % 3;
    }
    if (i % 4 == 2) e.answer = "answer \xc3\xa9 " + std::to_string(i);
    examples.push_back(e);
  }
  return examples;
}

bool same(const Example& x, const Example& y) {
  return x.input == y.input && x.target == y.target && x.has_target == y.has_target && x.task == y.task &&
         x.category == y.category && x.template_name == y.template_name && x.variant == y.variant &&
         x.split == y.split && x.choices == y.choices && x.choice_bytes == y.choice_bytes && x.gold == y.gold &&
         x.answer == y.answer;
}

std::vector<Example> read_all(const std::string& path) {
  const ShardReader shard(path);
  std::vector<Example> all;
  for (std::int64_t i = 0; i < shard.size(); ++i) all.push_back(shard.read(i));
  for (std::size_t g = 0; g < shard.groups().size(); ++g) {
    for (std::int64_t k = 0; k < shard.groups()[g].examples; ++k) shard.group_example(std::int64_t(g), k);
  }
  return all;
}

/// Opens a shard with HDF5 for writing, checksums kept right by the library.
template <class Action>
void with_hdf5(const std::string& path, Action&& action) {
  const H5File file(H5Fopen(path.c_str(), H5F_ACC_RDWR, H5P_DEFAULT), path);
  action(file.get());
}

TEST(Shard, EveryExampleComesBackAsItWasAdded) {
  const TemporaryFolder folder;
  const auto examples = mixed_examples(3000);
  write_shard(folder.file("a.h5"), examples);
  const ShardReader shard(folder.file("a.h5"));
  ASSERT_EQ(shard.size(), 3000);
  EXPECT_EQ(shard.tokenizer().fingerprint, "0123abcd");
  EXPECT_EQ(shard.tokenizer().vocabulary, 1000);
  EXPECT_EQ(shard.tokenizer().sentinels, 100);
  std::int64_t offset = 0;
  for (std::int64_t i = 0; i < shard.size(); ++i) {
    const Example& e = examples[std::size_t(i)];
    ASSERT_TRUE(same(shard.read(i), e)) << "example " << i;
    ASSERT_EQ(shard.token_offset(i), offset);
    ASSERT_EQ(shard.input_length(i), std::int64_t(e.input.size()));
    ASSERT_EQ(shard.target_length(i), std::int64_t(e.target.size()));
    ASSERT_EQ(shard.template_name(i), e.template_name);
    offset += shard.input_length(i) + shard.target_length(i);
  }
  EXPECT_EQ(shard.total_tokens(), offset);
}

TEST(Shard, SmallCacheReadsTheSameInAnyOrder) {
  const TemporaryFolder folder;
  const auto examples = mixed_examples(4000);
  write_shard(folder.file("a.h5"), examples);
  const auto pool = std::make_shared<BlockPool>(1);
  const ShardReader shard(folder.file("a.h5"), pool);
  for (std::int64_t k = 0; k < 6000; ++k) {
    const std::int64_t i = (k * 2741) % 4000;
    ASSERT_TRUE(same(shard.read(i), examples[std::size_t(i)])) << "example " << i;
  }
}

TEST(Shard, ReadersShareTheRoomOfTheirPool) {
  const TemporaryFolder folder;
  const auto examples = mixed_examples(3000);
  constexpr std::size_t kRoom = 100'000;
  const auto pool = std::make_shared<BlockPool>(kRoom);
  std::vector<ShardReader> shards;
  for (const char* name : {"a.h5", "b.h5", "c.h5"}) {
    write_shard(folder.file(name), examples);
    shards.emplace_back(folder.file(name), pool);
  }
  for (std::int64_t k = 0; k < 3000; ++k) {
    const std::int64_t i = (k * 2741) % 3000;
    ASSERT_TRUE(same(shards[std::size_t(k % 3)].read(i), examples[std::size_t(i)])) << "example " << i;
    ASSERT_LE(pool->bytes(), kRoom);
  }
  EXPECT_GT(pool->bytes(), kRoom / 2);
}

TEST(Shard, FewFilesOfManyAreOpenAtATime) {
  const TemporaryFolder folder;
  const auto examples = mixed_examples(50);
  const auto pool = std::make_shared<BlockPool>(1);  // every block is read anew
  std::vector<ShardReader> shards;
  const auto path = [&](int i) { return folder.file(std::to_string(i)); };
  write_shard(path(0), examples);
  const auto descriptors = [] {
    const std::filesystem::directory_iterator open("/proc/self/fd");
    return std::distance(begin(open), end(open));
  };
  const auto before = descriptors();
  constexpr int kShards = 100;
  for (int i = 0; i < kShards; ++i) {
    if (i > 0) std::filesystem::copy_file(path(0), path(i));
    shards.emplace_back(path(i), pool);
  }
  for (int k = 0; k < 1000; ++k) {
    const int i = k * 37 % kShards;
    ASSERT_TRUE(same(shards[std::size_t(i)].read(k % 50), examples[std::size_t(k % 50)])) << i;
    ASSERT_LE(pool->files().size(), OpenFiles::kMost);
    ASSERT_LE(descriptors() - before, std::ptrdiff_t(OpenFiles::kMost));
  }
  // A file that was closed and is another one now is not taken for the same.
  shards[0].read(0);
  for (int i = 1; i < kShards; ++i) shards[std::size_t(i)].read(0);
  std::filesystem::remove(path(0));
  std::filesystem::copy_file(path(1), path(0));
  for (int k = 1; k < 3; ++k) {
    EXPECT_THAT(error_of([&] { shards[0].read(k); }), HasSubstr("was changed while it was being read")) << k;
  }
}

TEST(Shard, ARefusedShardLeavesNothingInThePool) {
  const TemporaryFolder folder;
  write_shard(folder.file("a.h5"), mixed_examples(50));
  auto bytes = file_bytes(folder.file("a.h5"));
  const std::string name = "flanmoe token shard";
  const auto at = std::search(bytes.begin(), bytes.end(), name.begin(), name.end());
  ASSERT_NE(at, bytes.end());
  *at = 'F';
  write_bytes(folder.file("a.h5"), bytes);
  const auto pool = std::make_shared<BlockPool>(1);
  EXPECT_THROW(ShardReader(folder.file("a.h5"), pool), Error);
  EXPECT_EQ(pool->files().size(), 0U);
}

TEST(Shard, GroupsListTheirMembersInOrderWithStreamPositions) {
  const TemporaryFolder folder;
  const auto examples = mixed_examples(2500);
  write_shard(folder.file("a.h5"), examples);
  const ShardReader shard(folder.file("a.h5"));
  std::int64_t members = 0;
  for (std::size_t g = 0; g < shard.groups().size(); ++g) {
    const ShardGroup& group = shard.groups()[g];
    std::int64_t stream = 0, before = -1;
    for (std::int64_t k = 0; k < group.examples; ++k) {
      const std::int64_t i = shard.group_example(std::int64_t(g), k);
      ASSERT_GT(i, before);
      before = i;
      ASSERT_EQ(shard.task(i), group.task);
      ASSERT_EQ(shard.split(i), group.split);
      ASSERT_EQ(shard.has_target(i), group.has_target);
      ASSERT_EQ(shard.group_stream_first(std::int64_t(g), k), stream);
      stream += shard.input_length(i) + 1;
    }
    EXPECT_EQ(group.stream_tokens, stream);
    members += group.examples;
  }
  EXPECT_EQ(members, shard.size());
}

TEST(Shard, UnfinishedWriterLeavesNothing) {
  const TemporaryFolder folder;
  {
    ShardWriter writer(folder.file("a.h5"), small_tokenizer());
    writer.add(mixed_examples(1)[0]);
    EXPECT_FALSE(std::filesystem::exists(folder.file("a.h5")));
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(Shard, WriterRefusesWhatNobodyCouldRead) {
  const TemporaryFolder folder;
  ShardWriter writer(folder.file("a.h5"), small_tokenizer());
  const auto refused = [&](auto&& change) {
    Example e = mixed_examples(2)[1];
    change(e);
    return error_of([&] { writer.add(e); });
  };
  EXPECT_EQ(refused([](Example&) {}), "");
  EXPECT_THAT(refused([](Example& e) { e.input[0] = 1000; }), HasSubstr("example 1: the input has token 1000"));
  EXPECT_THAT(refused([](Example& e) { e.target[0] = -1; }), HasSubstr("the target has token -1"));
  EXPECT_THAT(refused([](Example& e) { e.has_target = false; }), HasSubstr("has_target"));
  EXPECT_THAT(refused([](Example& e) { e.gold = 3; }), HasSubstr("gold is 3 with 3 choices"));
  EXPECT_THAT(refused([](Example& e) { e.choice_bytes.pop_back(); }), HasSubstr("3 choices but 2"));
  ShardWriter empty(folder.file("b.h5"), small_tokenizer());
  EXPECT_THAT(error_of([&] { empty.finish(); }), HasSubstr("no example"));
}

TEST(Shard, ErrorsSayWhetherAFileIsMissingForeignOrOfAnotherVersion) {
  const TemporaryFolder folder;
  const std::string path = folder.file("a.h5");
  const auto message = [&] { return error_of([&] { read_all(path); }); };
  EXPECT_THAT(message(), HasSubstr("No such file"));
  std::ofstream(path) << "not a shard, but long enough to be one, perhaps";
  EXPECT_THAT(message(), HasSubstr("is not an HDF5 file"));
  EXPECT_THAT(message(), HasSubstr(path));
  { const H5File other(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT), path); }
  EXPECT_THAT(message(), HasSubstr("is an HDF5 file but not a flanmoe token shard"));
  write_shard(path, mixed_examples(10));
  with_hdf5(path, [](hid_t file) {
    const std::int64_t version = 3;
    const H5Attribute attribute(H5Aopen(file, "format_version", H5P_DEFAULT), "format_version");
    h5_check(H5Awrite(attribute.get(), H5T_NATIVE_INT64, &version), "format_version");
  });
  EXPECT_THAT(message(), HasSubstr("format version 3, this program reads versions 1 to 2"));
}

TEST(Shard, HeaderChecksumSeesAChangedName) {
  const TemporaryFolder folder;
  const std::string path = folder.file("a.h5");
  write_shard(path, mixed_examples(10));
  auto bytes = file_bytes(path);
  const std::string name = "even";
  const auto at = std::search(bytes.begin(), bytes.end(), name.begin(), name.end());
  ASSERT_NE(at, bytes.end());
  *at = 'E';
  write_bytes(path, bytes);
  EXPECT_THAT(error_of([&] { ShardReader shard(path); }), HasSubstr("the header is damaged"));
}

TEST(Shard, TablesMustHaveTheSizesOfTheHeader) {
  const TemporaryFolder folder;
  const std::string path = folder.file("a.h5");
  write_shard(path, mixed_examples(10));
  with_hdf5(path, [](hid_t file) {
    const H5Dataset tokens(H5Dopen2(file, "tokens", H5P_DEFAULT), "tokens");
    const hsize_t shorter = 5;
    h5_check(H5Dset_extent(tokens.get(), &shorter), "tokens");
  });
  EXPECT_THAT(error_of([&] { ShardReader shard(path); }), HasSubstr("table 'tokens' has 5 elements, the header says"));
}

TEST(Shard, TokenOutsideTheVocabularyIsNamedWithItsExample) {
  const TemporaryFolder folder;
  const std::string path = folder.file("a.h5");
  write_shard(path, mixed_examples(40));
  const std::int64_t position = ShardReader(path).token_offset(17) + 1;
  with_hdf5(path, [&](hid_t file) {
    const H5Dataset tokens(H5Dopen2(file, "tokens", H5P_DEFAULT), "tokens");
    const H5Space space(H5Dget_space(tokens.get()), "tokens");
    const hsize_t first = hsize_t(position), one = 1;
    const std::int32_t token = 1000;
    h5_check(H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, &first, nullptr, &one, nullptr), "tokens");
    const H5Space memory(H5Screate_simple(1, &one, nullptr), "tokens");
    h5_check(H5Dwrite(tokens.get(), H5T_NATIVE_INT32, memory.get(), space.get(), H5P_DEFAULT, &token), "tokens");
  });
  EXPECT_THAT(error_of([&] { read_all(path); }), HasSubstr("(example 17): token 1000 is outside the vocabulary"));
}

TEST(Shard, FlippedTokenByteFailsTheChunkChecksum) {
  const TemporaryFolder folder;
  const std::string path = folder.file("a.h5");
  Example e;
  for (int t = 0; t < 20000; ++t) e.input.push_back(t % 900 + 1);
  write_shard(path, {e});
  auto bytes = file_bytes(path);
  const TokenIds run = {201, 202, 203, 204, 205, 206, 207, 208};
  const auto* raw = reinterpret_cast<const char*>(run.data());
  const auto at = std::search(bytes.begin(), bytes.end(), raw, raw + sizeof(std::int32_t) * run.size());
  ASSERT_NE(at, bytes.end());
  *at = char(*at ^ 1);
  write_bytes(path, bytes);
  const std::string message = error_of([&] { ShardReader(path).read(0); });
  EXPECT_THAT(message, HasSubstr(path));
  EXPECT_THAT(message, HasSubstr("table 'tokens', elements 0 to 8191: the chunk is damaged"));
}

// HDF5's own read path verifies the checksums that were written here.
TEST(Shard, IsReadByTheLibraryItself) {
  const TemporaryFolder folder;
  const std::string path = folder.file("a.h5");
  const auto examples = mixed_examples(3000);
  write_shard(path, examples);
  TokenIds expected;
  for (const Example& e : examples) {
    expected.insert(expected.end(), e.input.begin(), e.input.end());
    expected.insert(expected.end(), e.target.begin(), e.target.end());
  }
  ASSERT_GT(expected.size(), 8192U);
  TokenIds tokens(expected.size());
  std::vector<std::int32_t> lengths(examples.size());
  const H5File file(H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), path);
  const H5Dataset table(H5Dopen2(file.get(), "tokens", H5P_DEFAULT), "tokens");
  h5_check(H5Dread(table.get(), H5T_NATIVE_INT32, H5S_ALL, H5S_ALL, H5P_DEFAULT, tokens.data()), "tokens");
  EXPECT_EQ(tokens, expected);
  const H5Dataset records(H5Dopen2(file.get(), "examples", H5P_DEFAULT), "examples");
  const H5Type field(H5Tcreate(H5T_COMPOUND, sizeof(std::int32_t)), "field");
  h5_check(H5Tinsert(field.get(), "input_length", 0, H5T_NATIVE_INT32), "field");
  h5_check(H5Dread(records.get(), field.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, lengths.data()), "examples");
  for (std::size_t i = 0; i < examples.size(); ++i) ASSERT_EQ(lengths[i], std::int32_t(examples[i].input.size()));
}

TEST(Shard, KeepsNoTimeStampsSoThatEqualContentGivesEqualFiles) {
  const TemporaryFolder folder;
  const std::string path = folder.file("a.h5");
  write_shard(path, mixed_examples(40));
  const H5File file(H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), path);
  int datasets = 0;
  const auto see = [](hid_t, const char* name, const H5O_info_t* info, void* count) -> herr_t {
    if (info->type == H5O_TYPE_DATASET) ++*static_cast<int*>(count);
    EXPECT_EQ(info->ctime, 0) << name;
    EXPECT_EQ(info->mtime, 0) << name;
    return 0;
  };
  h5_check(H5Ovisit(file.get(), H5_INDEX_NAME, H5_ITER_NATIVE, see, &datasets), path);
  EXPECT_GT(datasets, 8);
}

TEST(ChunkedDataset, ChecksumsAreThoseOfTheLibrary) {
  const TemporaryFolder folder;
  const std::string path = folder.file("a.h5");
  for (const std::int64_t chunk : {1, 2, 7, 719, 720, 1441, 5000}) {
    std::vector<std::uint8_t> bytes(std::size_t(chunk), 0);
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = std::uint8_t(255 - (i * i) % 7);
    const H5File file(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT), path);
    ChunkedDataset::create(file.get(), "x", H5T_STD_U8LE, H5T_NATIVE_UINT8, chunk).append_chunk(bytes.data(), chunk);
    std::vector<std::uint8_t> read(bytes.size());
    const H5Dataset dataset(H5Dopen2(file.get(), "x", H5P_DEFAULT), "x");
    h5_check(H5Dread(dataset.get(), H5T_NATIVE_UINT8, H5S_ALL, H5S_ALL, H5P_DEFAULT, read.data()), "x");
    EXPECT_EQ(read, bytes) << "chunks of " << chunk;
  }
}

TEST(ChunkedDataset, RefusesOtherLayoutsAndFilters) {
  const TemporaryFolder folder;
  const std::string path = folder.file("a.h5");
  const H5File file(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT), path);
  const auto message = [&](const char* name, hid_t create) {
    const hsize_t size = 8;
    const H5Space space(H5Screate_simple(1, &size, nullptr), name);
    const H5Dataset made(H5Dcreate2(file.get(), name, H5T_STD_U8LE, space.get(), H5P_DEFAULT, create, H5P_DEFAULT),
                         name);
    return error_of([&] { ChunkedDataset::open(file.get(), name, H5T_NATIVE_UINT8, name); });
  };
  EXPECT_THAT(message("contiguous", H5P_DEFAULT), HasSubstr("contiguous must be chunked"));
  const H5Property create(H5Pcreate(H5P_DATASET_CREATE), "create");
  const hsize_t chunk = 4;
  h5_check(H5Pset_chunk(create.get(), 1, &chunk), "create");
  EXPECT_THAT(message("plain", create.get()), HasSubstr("plain must have the Fletcher-32 filter and no other"));
  h5_check(H5Pset_shuffle(create.get()), "create");
  h5_check(H5Pset_fletcher32(create.get()), "create");
  EXPECT_THAT(message("shuffled", create.get()), HasSubstr("and no other"));
}

TEST(Shard, TruncationAnywhereIsAnError) {
  const TemporaryFolder folder;
  const std::string path = folder.file("a.h5");
  write_shard(path, mixed_examples(300));
  const auto bytes = file_bytes(path);
  for (std::size_t keep = 0; keep < bytes.size(); keep += 1 + bytes.size() / 97) {
    write_bytes(path, {bytes.begin(), bytes.begin() + std::ptrdiff_t(keep)});
    EXPECT_THAT(error_of([&] { read_all(path); }), HasSubstr(path)) << keep << " of " << bytes.size() << " bytes";
  }
}

// Whatever single byte is damaged, the reader either says so or returns the right examples.
TEST(Shard, NoFlippedByteChangesAnExampleSilently) {
  const TemporaryFolder folder;
  const std::string path = folder.file("a.h5");
  const auto examples = mixed_examples(60);
  write_shard(path, examples);
  const auto bytes = file_bytes(path);
  std::vector<std::size_t> places;
  // Chunks are mostly unused space in so small a file: visit every byte that is not zero, and some that are.
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    if (bytes[i] != 0 ? i % 11 == 0 : i % 4001 == 0) places.push_back(i);
  }
  int errors = 0;
  for (const std::size_t place : places) {
    auto damaged = bytes;
    damaged[place] = char(damaged[place] ^ (1 << (place % 8)));
    write_bytes(path, damaged);
    std::optional<std::vector<Example>> read;
    if (error_of([&] { read = read_all(path); }) != "") {
      ++errors;
      continue;
    }
    ASSERT_TRUE(read && read->size() == examples.size()) << "byte " << place;
    for (std::size_t i = 0; i < examples.size(); ++i) ASSERT_TRUE(same((*read)[i], examples[i])) << "byte " << place;
  }
  EXPECT_GT(errors, int(places.size()) / 2);
}

}  // namespace
}  // namespace flanmoe
