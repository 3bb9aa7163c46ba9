// The table against its surroundings: the structs of deck.hpp, the committed reference page and decks, the list of
// keys.
#include <gtest/gtest.h>

#include <fstream>
#include <regex>
#include <set>
#include <sstream>

#include "deck/table.hpp"

namespace flanmoe {
namespace {

std::string read_source(const std::string& path) {
  std::ifstream file(std::string(FLANMOE_SOURCE_DIR) + "/" + path);
  EXPECT_TRUE(file) << path;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::vector<std::string> table_keys() {
  std::vector<std::string> keys;
  for (const auto& parameter : deck_detail::parameter_table()) keys.push_back(parameter.key);
  return keys;
}

/// section.name of every member of the structs in deck.hpp, in the order of the file.
std::vector<std::string> header_keys() {
  std::vector<std::string> keys;
  std::string section, line;
  std::istringstream lines(read_source("src/deck/deck.hpp"));
  const std::regex opens(R"(struct (\w+)Deck \{)"),
      member(R"(  (?:std::string|std::int64_t|double|bool) (\w+)( = .*)?;.*)");
  for (std::smatch match; std::getline(lines, line);) {
    if (std::regex_match(line, match, opens)) section = match[1];
    if (!section.empty()) section[0] = char(std::tolower(section[0]));
    if (std::regex_match(line, match, member)) keys.push_back(section + "." + match[1].str());
  }
  return keys;
}

TEST(DeckTable, HoldsEveryMemberOfTheStructsInTheirOrder) { EXPECT_EQ(table_keys(), header_keys()); }

TEST(DeckTable, RowsPointToDifferentMembers) {
  Deck deck;
  std::set<void*> places;
  for (const auto& parameter : deck_detail::parameter_table())
    places.insert(std::visit([](auto* place) { return static_cast<void*>(place); }, parameter.member.place_in(deck)));
  EXPECT_EQ(places.size(), table_keys().size());
}

TEST(DeckTable, DefaultsAreAllowedValues) {
  for (const auto& parameter : deck_detail::parameter_table()) {
    Deck deck;
    EXPECT_EQ(deck_detail::set_from_text(deck, parameter, deck_detail::value_text(Deck(), parameter)), std::nullopt)
        << parameter.key;
    EXPECT_EQ(parameter.sentence.back(), '.') << parameter.key;
  }
}

TEST(DeckTable, SectionsHaveNotesInTheSameOrder) {
  std::vector<std::string> sections, noted;
  for (const auto& parameter : deck_detail::parameter_table())
    if (sections.empty() || sections.back() != parameter.section()) sections.push_back(parameter.section());
  for (const auto& note : deck_detail::section_notes()) noted.push_back(note.name);
  EXPECT_EQ(sections, noted);
}

TEST(DeckTable, PresetsNameValidKeysAndValues) {
  for (const auto& preset : deck_detail::presets())
    for (const auto& entry : preset.values) {
      const auto* parameter = deck_detail::find_parameter(entry.key);
      ASSERT_NE(parameter, nullptr) << entry.key;
      Deck deck;
      EXPECT_EQ(deck_detail::set_from_text(deck, *parameter, entry.value), std::nullopt) << preset.name << entry.key;
    }
  std::vector<std::string> names;
  for (const auto& preset : deck_detail::presets()) names.push_back(preset.name);
  EXPECT_EQ(names, deck_detail::find_parameter("model.preset")->choices);
}

TEST(DeckTable, TheCommittedReferencePageIsFresh) {
  EXPECT_EQ(read_source("input/README.md"), deck_reference()) << "run `make docs` and commit input/README.md";
}

TEST(DeckTable, TheCommittedDecksParse) {
  const std::string input = std::string(FLANMOE_SOURCE_DIR) + "/input/";
  for (const char* name : {"smoke.ini", "tutorial.ini"}) EXPECT_NO_THROW(parse_deck(input + name, {})) << name;
}

// Scripts and old decks use these names: a change here is a change for users and belongs into CHANGELOG.md.
TEST(DeckTable, KeysAreExactlyThese) {
  const std::vector<std::string> expected = {"run.stage",
                                             "run.dir",
                                             "run.steps",
                                             "run.seed",
                                             "run.device",
                                             "run.precision",
                                             "run.init_from",
                                             "run.upcycle",
                                             "run.threads",
                                             "run.watchdog_seconds",
                                             "run.log_every",
                                             "run.stop_after_minutes",
                                             "run.stop_before_minutes",
                                             "parallel.expert",
                                             "batch.rows",
                                             "batch.microbatch_rows",
                                             "batch.input_length",
                                             "batch.target_length",
                                             "reduction.leaves",
                                             "model.family",
                                             "model.preset",
                                             "model.vocabulary",
                                             "model.width",
                                             "model.hidden",
                                             "model.heads",
                                             "model.head_width",
                                             "model.kv_heads",
                                             "model.encoder_layers",
                                             "model.decoder_layers",
                                             "model.attention",
                                             "model.activation",
                                             "model.multiplicative_bias",
                                             "model.norm",
                                             "model.tied_logits",
                                             "model.init_scale",
                                             "model.bias_buckets",
                                             "model.bias_max_distance",
                                             "model.rotary_base",
                                             "model.norm_epsilon",
                                             "model.dropout",
                                             "model.dropout_shared_over_length",
                                             "model.z_loss",
                                             "moe.router",
                                             "moe.decoder_router",
                                             "moe.experts",
                                             "moe.shared_experts",
                                             "moe.top_k",
                                             "moe.every",
                                             "moe.encoder",
                                             "moe.decoder",
                                             "moe.extra_feed_forward",
                                             "moe.capacity_factor",
                                             "moe.capacity_factor_eval",
                                             "moe.capacity_times_k",
                                             "moe.capacity_rounding",
                                             "moe.min_capacity",
                                             "moe.group_rows",
                                             "moe.priority",
                                             "moe.decoder_priority",
                                             "moe.renormalize",
                                             "moe.second_policy",
                                             "moe.second_policy_eval",
                                             "moe.second_threshold",
                                             "moe.jitter",
                                             "moe.balance_coefficient",
                                             "moe.balance_choices",
                                             "moe.balance_scale",
                                             "moe.bias_rate",
                                             "moe.forced_balance",
                                             "moe.z_coefficient",
                                             "moe.auxiliary_over_layers",
                                             "moe.router_init",
                                             "moe.expert_dropout",
                                             "moe.buffer_factor",
                                             "moe.packed_weights",
                                             "moe.dispatch_chunks",
                                             "optimizer.name",
                                             "optimizer.schedule",
                                             "optimizer.learning_rate",
                                             "optimizer.warmup_steps",
                                             "optimizer.final_fraction",
                                             "optimizer.clip_norm",
                                             "optimizer.weight_decay",
                                             "optimizer.beta1",
                                             "optimizer.beta2",
                                             "optimizer.epsilon",
                                             "optimizer.decay_exponent",
                                             "optimizer.clip_threshold",
                                             "optimizer.multiply_by_parameter_scale",
                                             "optimizer.factor_threshold",
                                             "optimizer.stochastic_rounding",
                                             "optimizer.split_above",
                                             "optimizer.freeze",
                                             "checkpoint.every",
                                             "checkpoint.keep",
                                             "checkpoint.final",
                                             "checkpoint.background",
                                             "checkpoint.on_failure",
                                             "faults.on_bad_step",
                                             "faults.limit",
                                             "faults.loss_spike",
                                             "faults.norm_spike",
                                             "faults.compare_every",
                                             "data.train",
                                             "data.tasks",
                                             "data.exclude_tasks",
                                             "data.weights",
                                             "data.cap",
                                             "data.submixtures",
                                             "data.held_out",
                                             "data.temperature",
                                             "data.split",
                                             "data.objective",
                                             "data.noise_density",
                                             "data.mean_span",
                                             "data.prefetch",
                                             "data.tokenizer",
                                             "evaluate.shards",
                                             "evaluate.tasks",
                                             "evaluate.split",
                                             "evaluate.every",
                                             "evaluate.limit",
                                             "evaluate.batch_rows",
                                             "evaluate.max_new_tokens",
                                             "evaluate.beams",
                                             "evaluate.length_penalty",
                                             "evaluate.temperature",
                                             "evaluate.top_k",
                                             "evaluate.top_p",
                                             "evaluate.stop",
                                             "evaluate.generate",
                                             "evaluate.rank",
                                             "plan.machine",
                                             "plan.ranks"};
  EXPECT_EQ(table_keys(), expected);
}

}  // namespace
}  // namespace flanmoe
