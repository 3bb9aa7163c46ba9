// The safetensors format: what is read, and what is refused.
#include "exchange/safetensors.hpp"

#include <gmock/gmock.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "exchange_fixture.hpp"

namespace flanmoe {
namespace {

using ::testing::AllOf;
using testing::error_of;
using ::testing::HasSubstr;
using testing::put_bytes;
using testing::raw_safetensors;

template <class T>
std::string bytes_of_values(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), sizeof(T) * values.size()};
}

std::vector<float> read_all(const Safetensors& file, const std::string& name) {
  std::vector<float> values(std::size_t(file.tensors().find(name)->second.size()));
  file.read(name, values);
  return values;
}

TEST(Safetensors, ReadsThreeTypesExactly) {
  const TemporaryFolder folder;
  const std::vector<float> wide = {1.5F, -0.0F, 3e38F};
  const std::vector<std::uint16_t> brain = {0x3fc0, 0xc000};
  // 1, -2, the largest, the least normal, the least subnormal, infinity, -0.
  const std::vector<std::uint16_t> half = {0x3c00, 0xc000, 0x7bff, 0x0400, 0x0001, 0x7c00, 0x8000};
  put_bytes(folder.file("x.safetensors"),
            raw_safetensors(R"({"h":{"dtype":"F16","shape":[7],"data_offsets":[16,30]},)"
                            R"("w":{"dtype":"F32","shape":[3,1],"data_offsets":[0,12]},)"
                            R"("b":{"dtype":"BF16","shape":[2],"data_offsets":[12,16]}}   )",
                            bytes_of_values(wide) + bytes_of_values(brain) + bytes_of_values(half)));
  const Safetensors file(folder.file("x.safetensors"));
  EXPECT_EQ(read_all(file, "w"), wide);
  EXPECT_TRUE(std::signbit(read_all(file, "w")[1]));
  EXPECT_EQ(file.tensors().at("w").shape, (std::vector<std::int64_t>{3, 1}));
  EXPECT_EQ(read_all(file, "b"), (std::vector<float>{1.5F, -2.0F}));
  const std::vector<float> halves = read_all(file, "h");
  EXPECT_EQ(halves, (std::vector<float>{1.0F, -2.0F, 65504.0F, std::ldexp(1.0F, -14), std::ldexp(1.0F, -24),
                                        std::numeric_limits<float>::infinity(), -0.0F}));
  EXPECT_TRUE(std::signbit(halves[6]));
}

TEST(Safetensors, KeepsEveryBitOfWhatIsWritten) {
  const TemporaryFolder folder;
  const std::vector<std::uint32_t> bits = {0x7fc12345, 0xff800001, 0x80000000, 0x00000001, 0x3f800000, 0xdeadbeef};
  std::vector<float> values(bits.size());
  std::memcpy(values.data(), bits.data(), 4 * bits.size());
  SafetensorsWriter writer(folder.file("x.safetensors"), {{"a", {2, 3}}, {"empty", {0, 4}}}, ElementType::f32);
  writer.add("a", values);
  writer.add("empty", {});
  writer.close();
  const std::vector<float> found = read_all(Safetensors(folder.file("x.safetensors")), "a");
  EXPECT_EQ(std::memcmp(found.data(), bits.data(), 4 * bits.size()), 0);
}

TEST(Safetensors, RoundsToBf16ToNearestEven) {
  const TemporaryFolder folder;
  SafetensorsWriter writer(folder.file("x.safetensors"), {{"a", {3}}}, ElementType::bf16);
  // One step of bf16 above 1 is 1/128: halfway goes to the even neighbour.
  writer.add("a", std::vector<float>{1.0F + 1.0F / 256, 1.0F + 3.0F / 256, -2.0F});
  writer.close();
  EXPECT_EQ(read_all(Safetensors(folder.file("x.safetensors")), "a"),
            (std::vector<float>{1.0F, 1.0F + 1.0F / 64, -2.0F}));
}

TEST(Safetensors, ShardsHoldWhatFitsAndLargeTensorsAlone) {
  const std::vector<SafetensorsWriter::Entry> tensors = {{"a", {10}}, {"b", {10}}, {"c", {100}}, {"d", {1}}};
  const auto names = [](const ShardPlan& shard) {
    std::string all;
    for (const auto& entry : shard.entries) all += entry.name;
    return all;
  };
  const auto shards = plan_shards(tensors, ElementType::f32, 80);
  ASSERT_EQ(shards.size(), 3U);
  EXPECT_EQ(names(shards[0]) + "|" + names(shards[1]) + "|" + names(shards[2]), "ab|c|d");
  EXPECT_EQ(shards[1].file, "model-00002-of-00003.safetensors");
  EXPECT_EQ(plan_shards(tensors, ElementType::bf16, 300)[0].file, "model.safetensors");
}

/// The message with which a file of this header and data is refused.
std::string refusal(const std::string& header, std::size_t data_bytes) {
  const TemporaryFolder folder;
  put_bytes(folder.file("x.safetensors"), raw_safetensors(header, std::string(data_bytes, 'x')));
  const std::string message = error_of([&] { read_safetensors_table(folder.file("x.safetensors")); });
  EXPECT_THAT(message, HasSubstr("x.safetensors: "));
  return message;
}

std::string two_tensors(const std::string& first, const std::string& second) {
  return R"({"one":{"dtype":"F32","shape":[2],"data_offsets":)" + first +
         R"(},"two":{"dtype":"F32","shape":[2],"data_offsets":)" + second + "}}";
}

TEST(Safetensors, RefusesDataThatDoesNotFitTheHeader) {
  EXPECT_THAT(refusal(two_tensors("[0,8]", "[8,16]"), 15),
              AllOf(HasSubstr("tensor two"), HasSubstr("16 of 15"), HasSubstr("truncated")));
  EXPECT_THAT(refusal(two_tensors("[0,8]", "[4,12]"), 12), HasSubstr("tensor two overlaps one"));
  EXPECT_THAT(refusal(two_tensors("[0,8]", "[0,8]"), 8), HasSubstr("overlaps"));
  EXPECT_THAT(refusal(two_tensors("[0,8]", "[12,20]"), 20), HasSubstr("4 bytes between one and tensor two"));
  EXPECT_THAT(refusal(two_tensors("[0,8]", "[8,16]"), 17), HasSubstr("1 bytes behind two"));
  EXPECT_THAT(refusal(two_tensors("[0,8]", "[8,12]"), 16), AllOf(HasSubstr("two"), HasSubstr("needs 8 bytes")));
  EXPECT_THAT(refusal(two_tensors("[8,0]", "[8,16]"), 16), AllOf(HasSubstr("one"), HasSubstr("[8, 0]")));
}

TEST(Safetensors, RefusesHostileHeaders) {
  const auto with = [](const std::string& entry) { return R"({"t":)" + entry + "}"; };
  // 2^62 * 4 elements: the product must not wrap to something small.
  EXPECT_THAT(refusal(with(R"({"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]})"), 0),
              AllOf(HasSubstr("tensor t"), HasSubstr("too many")));
  EXPECT_THAT(refusal(with(R"({"dtype":"F32","shape":[0,18446744073709551615],"data_offsets":[0,0]})"), 0),
              HasSubstr("too many"));
  EXPECT_THAT(refusal(with(R"({"dtype":"F32","shape":[-1],"data_offsets":[0,4]})"), 4), HasSubstr("'shape' holds -1"));
  EXPECT_THAT(refusal(with(R"({"dtype":"F32","shape":[1.5],"data_offsets":[0,4]})"), 4), HasSubstr("1.5"));
  EXPECT_THAT(refusal(with(R"({"dtype":"F31","shape":[1],"data_offsets":[0,4]})"), 4), HasSubstr("F31"));
  EXPECT_THAT(refusal(with(R"({"shape":[1],"data_offsets":[0,4]})"), 4), HasSubstr("'dtype'"));
  EXPECT_THAT(refusal(with(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4,4]})"), 4), HasSubstr("begin and end"));
  EXPECT_THAT(refusal(with("3"), 0), HasSubstr("tensor t"));
  EXPECT_THAT(refusal("[]", 0), HasSubstr("no JSON object"));
  EXPECT_THAT(refusal("{\"t\"", 0), HasSubstr("parse error"));
  EXPECT_THAT(refusal("\xff\xfe", 0), HasSubstr("parse error"));
  const std::string good = two_tensors("[0,8]", "[8,16]");
  EXPECT_THAT(refusal(std::string(good).replace(good.find("two"), 3, "one"), 16), HasSubstr("'one' stands twice"));
  EXPECT_THAT(refusal(std::string(100'000, '['), 0), HasSubstr("nested deeper"));
}

TEST(Safetensors, RefusesLengthsPastTheEndOfTheFile) {
  const TemporaryFolder folder;
  const auto refusal_of = [&](const std::string& bytes) {
    put_bytes(folder.file("x.safetensors"), bytes);
    return error_of([&] { read_safetensors_table(folder.file("x.safetensors")); });
  };
  EXPECT_THAT(refusal_of(""), HasSubstr("too few"));
  EXPECT_THAT(refusal_of("1234567"), HasSubstr("too few"));
  EXPECT_THAT(refusal_of(std::string(8, '\xff')), HasSubstr("18446744073709551615"));
  EXPECT_THAT(refusal_of(std::string("\x03\0\0\0\0\0\0\0{}", 10)), HasSubstr("truncated"));
  EXPECT_THAT(error_of([&] { read_safetensors_table(folder.file("none")); }), HasSubstr("cannot be opened"));
}

TEST(Safetensors, RefusesAnIndexThatDoesNotFitItsFiles) {
  const TemporaryFolder folder;
  const std::string data(8, '\0');
  const auto shard = [&](const std::string& name) {
    return raw_safetensors("{\"" + name + R"(":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", data);
  };
  put_bytes(folder.file("1.safetensors"), shard("a"));
  put_bytes(folder.file("2.safetensors"), shard("b"));
  const auto refusal_of = [&](const std::string& map) {
    put_bytes(folder.file("model.safetensors.index.json"), "{\"weight_map\":{" + map + "}}");
    return error_of([&] { Safetensors(folder.file("")); });
  };
  EXPECT_EQ(refusal_of(R"("a":"1.safetensors","b":"2.safetensors")"), "(nothing was thrown)");
  EXPECT_THAT(refusal_of(R"("a":"1.safetensors","b":"1.safetensors")"),
              HasSubstr("1.safetensors: tensor b is missing"));
  EXPECT_EQ(refusal_of(R"("a":"1.safetensors")"), "(nothing was thrown)");
  EXPECT_THAT(refusal_of(R"("a":"3.safetensors")"), HasSubstr("3.safetensors: cannot be opened"));
  EXPECT_THAT(refusal_of(R"("a":"../1.safetensors")"), AllOf(HasSubstr("tensor a"), HasSubstr("same folder")));
  EXPECT_THAT(refusal_of(R"("a":"1.safetensors","a":"2.safetensors")"), HasSubstr("'a' stands twice"));
  put_bytes(folder.file("2.safetensors"), raw_safetensors(R"({"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                                                          R"("a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
                                                          data));
  EXPECT_THAT(refusal_of(R"("a":"1.safetensors","b":"2.safetensors")"), HasSubstr("2.safetensors: tensor a is extra"));
}

}  // namespace
}  // namespace flanmoe
