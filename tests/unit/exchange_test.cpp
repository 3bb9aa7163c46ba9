// Models of transformers and T5X to checkpoints and back.
#include "exchange/exchange.hpp"

#include <gmock/gmock.h>

#include <cstring>

#include "checkpoint/checkpoint.hpp"
#include "exchange/hf_config.hpp"
#include "exchange/json_file.hpp"
#include "exchange/safetensors.hpp"
#include "exchange_fixture.hpp"
#include "model/model.hpp"
#include "tensor/philox.hpp"

namespace flanmoe {
namespace {

using ::testing::AllOf;
using testing::bytes_of;
using testing::error_of;
using testing::fixture;
using ::testing::HasSubstr;
using testing::put_bytes;
namespace fs = std::filesystem;

constexpr const char* kFixtures[] = {"t5_1_0", "t5_1_1", "switch"};

/// The bits of all matrices, in order.
std::vector<std::uint32_t> bits_of(const ForeignModel& model) {
  std::vector<std::uint32_t> bits;
  std::vector<float> values;
  for (std::size_t p = 0; p < model.specs().size(); ++p) {
    const ParameterSpec& spec = model.specs()[p];
    values.resize(std::size_t(spec.matrix_size()));
    for (std::int64_t e = 0; e < spec.experts; ++e) {
      model.read(int(p), e, make_tensor(values.data(), spec.rows, spec.cols));
      const std::size_t before = bits.size();
      bits.resize(before + values.size());
      std::memcpy(bits.data() + before, values.data(), 4 * values.size());
    }
  }
  return bits;
}

std::vector<std::uint32_t> bits_of_checkpoint(const std::string& folder, const Deck& deck) {
  std::vector<std::uint32_t> bits;
  visit_weights(folder, model_parameters(deck.model, deck.moe), [&](int, std::int64_t, const Tensor& matrix) {
    const std::size_t before = bits.size();
    bits.resize(before + std::size_t(matrix.size()));
    std::memcpy(bits.data() + before, matrix.data, matrix.bytes());
  });
  return bits;
}

/// A checkpoint whose weights are any 32 bits at all: numbers of every size, NaN with every payload, infinities.
std::string checkpoint_of_random_bits(const std::string& run, const Deck& deck) {
  const auto specs = model_parameters(deck.model, deck.moe);
  return write_weights(run, {7, 0, print_deck(deck), ""}, specs, [&](int p, std::int64_t e, const Tensor& matrix) {
    const RandomKey key{hash_name(specs[std::size_t(p)].name), RandomPurpose::test, 0, std::uint32_t(e)};
    for (std::int64_t i = 0; i < matrix.size(); ++i) {
      const std::uint32_t word = key.words(std::uint64_t(i), 0)[0];
      std::memcpy(matrix.as<float>() + i, &word, 4);
    }
  });
}

TEST(Exchange, ExportThenImportGivesTheSameBits) {
  for (const char* name : kFixtures) {
    for (const std::uint64_t shard_bytes : {5'000'000'000ULL, 9'000ULL}) {
      const TemporaryFolder folder;
      const Deck deck = open_hf(fixture(name)).deck();
      const std::string checkpoint = checkpoint_of_random_bits(folder.file("run"), deck);
      export_hf(checkpoint, folder.file("exported"), {false, shard_bytes});
      const ForeignModel exported = open_hf(folder.file("exported"));
      const std::string imported = import_model(exported, folder.file("again"), {});

      EXPECT_EQ(fs::exists(folder.file("exported/model.safetensors")), shard_bytes > 9'000) << name;
      EXPECT_EQ(print_deck(exported.deck()), print_deck(deck)) << name;
      const auto bits = bits_of_checkpoint(checkpoint, deck);
      EXPECT_GT(bits.size(), 10'000U);
      EXPECT_TRUE(bits_of_checkpoint(imported, deck) == bits) << name;
    }
  }
}

TEST(Exchange, Bf16ExportKeepsEveryBitOfBf16Weights) {
  for (const char* name : kFixtures) {
    const TemporaryFolder folder;
    import_model(open_hf(fixture(name)), folder.file("run"), {});
    export_hf(folder.file("run"), folder.file("exported"), {true, 5'000'000'000});
    const std::string imported = import_model(open_hf(folder.file("exported")), folder.file("again"), {});
    export_hf(imported, folder.file("exported_again"), {true, 5'000'000'000});

    EXPECT_EQ(bytes_of(folder.file("exported/model.safetensors")),
              bytes_of(folder.file("exported_again/model.safetensors")));
    EXPECT_EQ(bytes_of(folder.file("exported/config.json")), bytes_of(folder.file("exported_again/config.json")));
    // This model's weights were bf16 from the start.
    if (std::string(name) == "switch") {
      EXPECT_TRUE(bits_of(open_hf(folder.file("exported"))) == bits_of(open_hf(fixture(name))));
    }
  }
}

TEST(Exchange, ImportWritesACheckpointAndADeckOfTheModel) {
  const TemporaryFolder folder;
  const ForeignModel model = open_hf(fixture("switch"));
  const std::string checkpoint = import_model(model, folder.file("run"), {0, "f00d"});
  EXPECT_EQ(checkpoint, folder.file("run/checkpoints/step-00000000"));
  EXPECT_EQ(read_checkpoint_info(checkpoint).tokenizer_fingerprint, "f00d");
  EXPECT_TRUE(bits_of_checkpoint(checkpoint, model.deck()) == bits_of(model));
  const Deck deck = parse_deck(folder.file("run/deck.ini"), {});
  EXPECT_EQ(print_deck(deck), print_deck(model.deck()));
  EXPECT_EQ(deck.moe.experts, 4);
  // Never over a run that is there.
  EXPECT_THAT(error_of([&] { import_model(model, folder.file("run"), {}); }), HasSubstr("has checkpoints already"));
  export_hf(folder.file("run"), folder.file("out"), {});
  EXPECT_THAT(error_of([&] { export_hf(folder.file("run"), folder.file("out"), {}); }), HasSubstr("exists already"));
}

TEST(Exchange, AnotherVocabularyLeavesOutRowsOrRepeatsPadding) {
  const ForeignModel model = open_hf(fixture("t5_1_1"));
  const auto read = [&](std::int64_t vocabulary) {
    const TemporaryFolder folder;
    Deck deck = model.deck();
    deck.model.vocabulary = vocabulary;
    std::map<std::string, std::vector<float>> tensors;
    const auto specs = model_parameters(deck.model, deck.moe);
    visit_weights(import_model(model, folder.file("run"), {vocabulary, ""}), specs,
                  [&](int p, std::int64_t, const Tensor& matrix) {
                    const auto values = matrix.flat<float>();
                    tensors[specs[std::size_t(p)].name] = {values.begin(), values.end()};
                  });
    return tensors;
  };
  const auto same = read(97), more = read(104), fewer = read(90);
  const std::size_t width = 16;
  for (std::size_t v = 0; v < 104; ++v) {
    for (std::size_t d = 0; d < width; ++d) {
      const std::size_t from = v < 97 ? v : 0;
      EXPECT_EQ(more.at("embedding")[v * width + d], same.at("embedding")[from * width + d]);
      EXPECT_EQ(more.at("logits")[d * 104 + v], same.at("logits")[d * 97 + from]);
      if (v >= 90) continue;
      EXPECT_EQ(fewer.at("embedding")[v * width + d], same.at("embedding")[v * width + d]);
      EXPECT_EQ(fewer.at("logits")[d * 90 + v], same.at("logits")[d * 97 + v]);
    }
  }
  EXPECT_EQ(more.at("decoder/final_norm"), same.at("decoder/final_norm"));
}

/// A fixture of one file whose header was changed; data that a change adds is zero.
struct Changed {
  TemporaryFolder folder;
  nlohmann::json header;
  std::string data;

  explicit Changed(const std::string& name) {
    fs::copy_file(fixture(name) + "/config.json", folder.file("config.json"));
    const std::string bytes = bytes_of(fixture(name) + "/model.safetensors");
    std::uint64_t length = 0;
    std::memcpy(&length, bytes.data(), 8);
    header = nlohmann::json::parse(bytes.substr(8, length));
    data = bytes.substr(8 + length);
  }
  void add(const std::string& name, const std::vector<std::int64_t>& shape, const std::string& bytes) {
    header[name] = {{"dtype", "F32"}, {"shape", shape}, {"data_offsets", {data.size(), data.size() + bytes.size()}}};
    data += bytes;
  }
  std::string bytes_of_tensor(const std::string& name) const {
    const auto offsets = header.at(name).at("data_offsets").get<std::vector<std::size_t>>();
    return data.substr(offsets[0], offsets[1] - offsets[0]);
  }
  std::string refusal() {
    put_bytes(folder.file("model.safetensors"), testing::raw_safetensors(header.dump(), data));
    return error_of([&] { open_hf(folder.file("")); });
  }
};

constexpr const char* kQuery = "encoder.block.1.layer.0.SelfAttention.q.weight";

TEST(Exchange, RefusesAMissingAnExtraAndAMisshapenTensorByName) {
  Changed missing("t5_1_0");
  EXPECT_EQ(missing.refusal(), "(nothing was thrown)");
  missing.header["other"] = missing.header.at(kQuery);
  missing.header.erase(kQuery);
  EXPECT_THAT(missing.refusal(), AllOf(HasSubstr(std::string("tensor ") + kQuery + " is missing"),
                                       HasSubstr("model.safetensors: tensor other is extra")));
  Changed extra("t5_1_0");
  extra.add("encoder.block.2.layer.0.layer_norm.weight", {16}, std::string(64, '\0'));
  EXPECT_THAT(extra.refusal(),
              HasSubstr("model.safetensors: tensor encoder.block.2.layer.0.layer_norm.weight is extra"));
  Changed misshapen("t5_1_0");
  misshapen.header[kQuery]["shape"] = {16, 15};  // [in, out] instead of [out, in]
  EXPECT_THAT(misshapen.refusal(), AllOf(HasSubstr(std::string("model.safetensors: tensor ") + kQuery),
                                         HasSubstr("[16, 15]; this model needs [15, 16]")));
  Changed truncated("t5_1_0");
  truncated.data.pop_back();
  EXPECT_THAT(truncated.refusal(), AllOf(HasSubstr("model.safetensors: tensor "), HasSubstr("truncated")));
  Changed integers("t5_1_0");
  integers.header[kQuery]["dtype"] = "I32";
  EXPECT_THAT(integers.refusal(), AllOf(HasSubstr(kQuery), HasSubstr("type I32")));
  Changed many("t5_1_0");
  const auto config = nlohmann::json::parse(bytes_of(many.folder.file("config.json")));
  auto deeper = config;
  deeper["num_layers"] = 4;
  put_bytes(many.folder.file("config.json"), deeper.dump());
  EXPECT_THAT(many.refusal(), AllOf(HasSubstr("encoder.block.2."), HasSubstr("more")));
  deeper["num_layers"] = 9000;
  put_bytes(many.folder.file("config.json"), deeper.dump());
  EXPECT_THAT(many.refusal(), HasSubstr("9003 layers"));
}

TEST(Exchange, AliasesMayStandWithTheSameValuesOnly) {
  for (const char* alias : {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"}) {
    Changed same("t5_1_0");
    same.add(alias, {97, 16}, same.bytes_of_tensor("shared.weight"));
    EXPECT_EQ(same.refusal(), "(nothing was thrown)");
    Changed other("t5_1_0");
    std::string bytes = other.bytes_of_tensor("shared.weight");
    bytes[100] = char(bytes[100] ^ 1);
    other.add(alias, {97, 16}, bytes);
    EXPECT_THAT(other.refusal(), AllOf(HasSubstr(alias), HasSubstr("other values than shared.weight")));
  }
  Changed moved("t5_1_0");
  moved.header["encoder.embed_tokens.weight"] = moved.header.at("shared.weight");
  moved.header.erase("shared.weight");
  EXPECT_EQ(moved.refusal(), "(nothing was thrown)");
  EXPECT_TRUE(bits_of(open_hf(moved.folder.file(""))) == bits_of(open_hf(fixture("t5_1_0"))));
  // Of an untied model lm_head is a tensor of its own.
  EXPECT_TRUE(bits_of(open_hf(fixture("t5_1_1"))) != bits_of(open_hf(fixture("t5_1_0"))));
  Changed left_over("t5_1_0");
  left_over.add("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight", {8, 3},
                std::string(96, '\0'));
  EXPECT_EQ(left_over.refusal(), "(nothing was thrown)");
}

std::string deck_of(const std::string& name, const std::map<std::string, nlohmann::json>& changes) {
  nlohmann::json config = read_json(fixture(name) + "/config.json");
  for (const auto& [key, value] : changes) config[key] = value;
  return deck_text_of_config(config, "config.json");
}

TEST(Exchange, RefusesAConfigThatFlanmoeDoesNotCompute) {
  const auto refusal = [](const std::string& name, const std::map<std::string, nlohmann::json>& changes) {
    return error_of([&] { deck_of(name, changes); });
  };
  EXPECT_THAT(refusal("t5_1_0", {{"feed_forward_proj", "gated-silu"}}), HasSubstr("feed_forward_proj is gated-silu"));
  EXPECT_THAT(refusal("t5_1_0", {{"model_type", "llama"}}), HasSubstr("model_type is llama"));
  EXPECT_THAT(refusal("t5_1_0", {{"eos_token_id", 2}}), HasSubstr("eos_token_id is 2"));
  EXPECT_THAT(refusal("t5_1_0", {{"decoder_start_token_id", 3}}), HasSubstr("decoder_start_token_id is 3"));
  EXPECT_THAT(refusal("t5_1_0", {{"d_model", nullptr}}), HasSubstr("d_model is missing"));
  EXPECT_THAT(refusal("t5_1_0", {{"d_model", "16"}}), HasSubstr("d_model is \"16\""));
  EXPECT_THAT(refusal("t5_1_0", {{"num_layers", 1'000'000}}), HasSubstr("at most 10000"));
  EXPECT_THAT(refusal("t5_1_0", {{"d_ff", 1LL << 40}}), HasSubstr("d_ff"));
  EXPECT_THAT(refusal("switch", {{"router_bias", true}}), HasSubstr("router_bias"));
  EXPECT_THAT(refusal("switch", {{"dense_act_fn", "gelu_new"}}), HasSubstr("dense_act_fn is gelu_new"));
  // Sparse layers 1 and 5 of 8 there; with moe.every = 4 they would be 3 and 7.
  EXPECT_THAT(refusal("switch", {{"num_layers", 8}, {"encoder_sparse_step", 4}}), HasSubstr("encoder_sparse_step 4"));
}

TEST(Exchange, ReadsTheDefaultsAndThePlacementOfTransformers) {
  const Deck plain = parse_deck_text("deck",
                                     deck_text_of_config(nlohmann::json::parse(R"({"model_type": "t5",
      "vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8})"),
                                                         "config.json"),
                                     {});
  EXPECT_TRUE(plain.model.tied_logits);
  EXPECT_EQ(plain.model.activation, "relu");
  EXPECT_EQ(plain.model.decoder_layers, 6);
  EXPECT_EQ(plain.model.bias_max_distance, 128);
  EXPECT_EQ(plain.model.dropout, 0.1);
  const auto moe = [](const std::map<std::string, nlohmann::json>& changes) {
    return parse_deck_text("deck", deck_of("switch", changes), {}).moe;
  };
  EXPECT_EQ(moe({}).every, 2);
  EXPECT_EQ(moe({}).balance_coefficient, 0.04);  // 0.02 for each stack there; the mean over both here
  EXPECT_EQ(moe({{"encoder_sparse_step", 1}, {"decoder_sparse_step", 1}}).every, 1);
  EXPECT_FALSE(moe({{"decoder_sparse_step", 0}}).decoder);
  EXPECT_EQ(moe({{"decoder_sparse_step", 0}}).balance_coefficient, 0.02);
  // Without a step it follows from the number of sparse layers: 12 / 6.
  EXPECT_EQ(moe({{"num_layers", 12}, {"num_sparse_encoder_layers", 6}, {"encoder_sparse_step", nullptr}}).every, 2);
}

TEST(Exchange, RefusesToExportWhatTransformersCannotCompute) {
  const auto refusal = [](const std::function<void(Deck&)>& change) {
    Deck deck = open_hf(fixture("switch")).deck();
    change(deck);
    return error_of([&] { config_of_deck(deck, false); });
  };
  EXPECT_EQ(refusal([](Deck&) {}), "(nothing was thrown)");
  EXPECT_THAT(refusal([](Deck& deck) { deck.moe.top_k = 2; }), HasSubstr("moe.top_k = 2"));
  EXPECT_THAT(refusal([](Deck& deck) { deck.moe.every = 4; }), HasSubstr("moe.every = 4"));
  EXPECT_THAT(refusal([](Deck& deck) { deck.model.activation = "gated_gelu"; }), HasSubstr("model.activation"));
  EXPECT_THAT(refusal([](Deck& deck) { deck.moe.priority = "probability"; }), HasSubstr("moe.priority"));
  EXPECT_THAT(refusal([](Deck& deck) { deck.moe.renormalize = true; }), HasSubstr("moe.renormalize = true"));
  // How it was trained does not matter.
  EXPECT_EQ(refusal([](Deck& deck) { deck.moe.capacity_factor = deck.model.init_scale = deck.model.z_loss = 0.5; }),
            "(nothing was thrown)");
  EXPECT_THAT(refusal([](Deck& deck) { deck.moe.shared_experts = 1; }), HasSubstr("moe.shared_experts = 1"));
  EXPECT_THAT(refusal([](Deck& deck) { deck.moe.bias_rate = 0.1; }), HasSubstr("moe.bias_rate = 0.1"));
  EXPECT_THAT(refusal([](Deck& deck) { deck.model.norm = "layer"; }), HasSubstr("model.norm = layer"));
  EXPECT_THAT(refusal([](Deck& deck) { deck.model.kv_heads = 1; }), HasSubstr("model.kv_heads = 1"));
  EXPECT_THAT(refusal([](Deck& deck) { deck.model.family = "palm"; }), HasSubstr("model.family = palm"));
  // A decoder of one layer has no second one to be sparse.
  EXPECT_EQ(refusal([](Deck& deck) { deck.model.decoder_layers = 1; }), "(nothing was thrown)");
  EXPECT_EQ(refusal([](Deck& deck) { deck.moe.router = "none"; }), "(nothing was thrown)");
}

TEST(Exchange, WritesTheCoefficientsOfTheSameLosses) {
  Deck deck = open_hf(fixture("switch")).deck();
  EXPECT_EQ(deck.moe.jitter, 0.01);
  const auto coefficient = [&] { return config_of_deck(deck, false).at("router_aux_loss_coef").get<double>(); };
  EXPECT_EQ(coefficient(), 0.02);
  // One sparse layer in each of two stacks: the mean of two losses is half of their sum.
  deck.moe.auxiliary_over_layers = "sum";
  EXPECT_EQ(coefficient(), 0.04);
  deck.moe.balance_scale = "gshard";
  EXPECT_DOUBLE_EQ(coefficient(), 0.04 / 16);
}

/// The folder of developers' data, or "" with a reason to skip.
std::string data_folder() {
  const char* set = std::getenv("FLANMOE_DATA");
  return set != nullptr ? set : FLANMOE_SOURCE_DIR "/../shared/data";
}

TEST(ExchangeT5x, ReadsTheTinyCheckpoint) {
  const std::string path = data_folder() + "/checkpoints/test_t5_tiny.checkpoint_0";
  if (!fs::exists(path)) GTEST_SKIP() << path << " is missing (FLANMOE_DATA names the folder of data)";
  const ForeignModel model = open_t5x(path);
  std::int64_t parameters = 0;
  for (const ParameterSpec& spec : model.specs()) parameters += spec.global_size();
  EXPECT_EQ(parameters, 518'240);
  EXPECT_EQ(model.deck().model.preset, "t5_1_1");
  EXPECT_EQ(model.deck().model.head_width, 3);
  EXPECT_EQ(model.deck().model.vocabulary, 32128);
  const auto values = [&](const std::string& name) {
    for (std::size_t p = 0; p < model.specs().size(); ++p) {
      const ParameterSpec& spec = model.specs()[p];
      if (spec.name != name) continue;
      std::vector<std::uint32_t> bits(std::size_t(spec.matrix_size()));
      model.read(int(p), 0, make_tensor(reinterpret_cast<float*>(bits.data()), spec.rows, spec.cols));
      return bits;
    }
    return std::vector<std::uint32_t>();
  };
  // The first bytes of the arrays, as hexdump shows them.
  EXPECT_EQ(values("encoder/layer_00/self_attention/query").at(0), 0x3b417ddbU);
  EXPECT_EQ(values("encoder/layer_00/self_attention/query").at(1), 0x3dc990edU);
  EXPECT_EQ(values("logits").at(0), 0xbf1756d1U);
  EXPECT_EQ(values("encoder/relative_bias").at(0), 0xbe4ed433U);
  EXPECT_EQ(values("encoder/relative_bias").at(4), 0xbeb6c7f1U);  // stored [heads, buckets]
  const TemporaryFolder folder;
  const std::string checkpoint = import_model(model, folder.file("run"), {});
  EXPECT_TRUE(bits_of_checkpoint(checkpoint, model.deck()) == bits_of(model));
}

/// An array of flax.serialization.
nlohmann::json flax_array(const std::vector<std::int64_t>& shape, const std::string& type, std::size_t bytes) {
  const nlohmann::json content = {shape, type, nlohmann::json::binary(std::vector<std::uint8_t>(bytes, 0))};
  return nlohmann::json::binary(nlohmann::json::to_msgpack(content), 1);
}

TEST(ExchangeT5x, RefusesDamagedFilesByTensor) {
  const TemporaryFolder folder;
  const auto refusal = [&](const nlohmann::json& content, std::size_t cut = 0) {
    const auto bytes = nlohmann::json::to_msgpack(content);
    put_bytes(folder.file("x"), {bytes.begin(), bytes.end() - std::ptrdiff_t(cut)});
    return error_of([&] { open_t5x(folder.file("x")); });
  };
  const auto target = [](const nlohmann::json& tensors) {
    return nlohmann::json{{"optimizer", {{"target", tensors}}}};
  };
  EXPECT_THAT(refusal(target({{"a", flax_array({2, 2}, "float32", 16)}}), 1), HasSubstr("no msgpack"));
  EXPECT_THAT(refusal(nlohmann::json{{"x", 1}}), HasSubstr("optimizer/target"));
  EXPECT_THAT(refusal(target({{"a", {{"b", flax_array({2, 2}, "float32", 12)}}}})),
              AllOf(HasSubstr("tensor a/b"), HasSubstr("12 bytes")));
  EXPECT_THAT(refusal(target({{"a", flax_array({1LL << 31, 4}, "float32", 0)}})), HasSubstr("tensor a"));
  EXPECT_THAT(refusal(target({{"a", "somewhere else"}})), AllOf(HasSubstr("tensor a"), HasSubstr("other files")));
  EXPECT_THAT(refusal(target({{"a", flax_array({2, 2}, "float32", 16)}})), HasSubstr("rel_embedding is missing"));
}

}  // namespace
}  // namespace flanmoe
