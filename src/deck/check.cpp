// Checks that depend on several keys, on the number of ranks or on files: layout, model, schedule, inputs of the stage.
#include <glob.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <filesystem>
#include <sstream>

#include "base/error.hpp"
#include "deck/table.hpp"

namespace flanmoe {
namespace {

using deck_detail::Problems;
namespace fs = std::filesystem;

template <class... Args>
void add(Problems& problems, fmt::format_string<Args...> format, Args&&... args) {
  problems.add(fmt::format(format, std::forward<Args>(args)...));
}

std::vector<std::string> words(const std::string& text) {
  std::istringstream stream(text);
  std::vector<std::string> all;
  for (std::string word; stream >> word;) all.push_back(word);
  return all;
}

bool any_file(const std::string& pattern) {
  glob_t found{};
  const bool some = glob(pattern.c_str(), 0, nullptr, &found) == 0 && found.gl_pathc > 0;
  globfree(&found);
  return some;
}

/// "28 or 32": the multiples of `step` on both sides of `value`.
std::string nearest_multiples(std::int64_t value, std::int64_t step) {
  const std::int64_t below = value / step * step;
  return below == 0 ? fmt::format("{}", below + step) : fmt::format("{} or {}", below, below + step);
}

bool plans(const Deck& deck) { return deck.run.stage == "plan"; }
bool trains(const Deck& deck) { return deck.run.stage != "evaluate"; }  // or plans to
bool is_sparse(const Deck& deck) { return deck.moe.router != "none"; }

bool freezes_gate(const Deck& deck) {
  const auto sets = words(deck.optimizer.freeze);
  return std::any_of(sets.begin(), sets.end(), [](const auto& set) { return set == "gate" || set == "moe"; });
}

/// Rows of the batch -> ranks -> microbatches -> router groups.
void check_rows(const Deck& deck, int world_size, Problems& problems) {
  const BatchDeck& batch = deck.batch;
  if (batch.rows % world_size != 0) {
    add(problems, "batch.rows = {} does not divide by {} ranks: {} rows each leave {}; nearest is {}", batch.rows,
        world_size, batch.rows / world_size, batch.rows % world_size, nearest_multiples(batch.rows, world_size));
    return;
  }
  const std::int64_t rank_rows = batch.rows / world_size;
  const std::int64_t microbatch_rows = batch.microbatch_rows == 0 ? rank_rows : batch.microbatch_rows;
  if (rank_rows % microbatch_rows != 0) {
    add(problems,
        "batch.microbatch_rows = {} does not divide the rows of a rank: {} rows / {} ranks = {} rows, and {} % {} = {}",
        microbatch_rows, batch.rows, world_size, rank_rows, rank_rows, microbatch_rows, rank_rows % microbatch_rows);
    return;
  }
  if (is_sparse(deck) && microbatch_rows % deck.moe.group_rows != 0)
    add(problems,
        "moe.group_rows = {} does not divide the rows of a microbatch: {} rows / {} ranks / {} microbatches = {} rows, "
        "and {} % {} = {}",
        deck.moe.group_rows, batch.rows, world_size, rank_rows / microbatch_rows, microbatch_rows, microbatch_rows,
        deck.moe.group_rows, microbatch_rows % deck.moe.group_rows);
}

void check_leaves(const Deck& deck, Problems& problems) {
  const std::int64_t leaves = deck.reduction.leaves;
  if (leaves == 0 || std::has_single_bit(std::uint64_t(leaves))) return;
  add(problems, "reduction.leaves = {}: expected a power of two, {} or {}, or 0", leaves,
      std::bit_floor(std::uint64_t(leaves)), std::bit_ceil(std::uint64_t(leaves)));
}

void check_layout(const Deck& deck, int world_size, Problems& problems) {
  const std::int64_t expert = deck.parallel.expert;
  if (is_sparse(deck) && deck.moe.experts % expert != 0)
    add(problems, "moe.experts = {} does not divide by parallel.expert = {}: {} % {} = {}; nearest is {}",
        deck.moe.experts, expert, deck.moe.experts, expert, deck.moe.experts % expert,
        nearest_multiples(deck.moe.experts, expert));
  if (trains(deck)) check_leaves(deck, problems);
  if (world_size == 0) return;
  if (world_size % expert != 0)
    add(problems, "{} ranks do not divide by parallel.expert = {}: world = data x expert, and {} % {} = {}", world_size,
        expert, world_size, expert, world_size % expert);
  if (trains(deck)) check_rows(deck, world_size, problems);
}

void check_family(const Deck& deck, Problems& problems) {
  const ModelDeck& model = deck.model;
  if (model.decoder_only()) {
    if (model.encoder_layers != 0)
      add(problems, "model.encoder_layers = {}: expected 0, model.family = {} has no encoder", model.encoder_layers,
          model.family);
    if (model.head_width % 2 != 0)
      add(problems, "model.head_width = {}: expected an even number, rotary positions turn pairs of columns",
          model.head_width);
  } else {
    if (model.encoder_layers == 0)
      add(problems, "model.encoder_layers = 0: expected at least 1, model.family = {} has an encoder", model.family);
    if (model.attention != "causal")
      add(problems, "model.attention = {} needs model.family = palm: in {} the encoder sees all of the input anyway",
          model.attention, model.family);
    if (trains(deck) && deck.data.objective == "causal_lm")
      add(problems, "data.objective = causal_lm needs model.family = palm: it leaves the encoder of {} without input",
          model.family);
  }
  if (model.heads % model.key_heads() != 0)
    add(problems, "model.kv_heads = {} does not divide model.heads = {}: {} % {} = {}", model.kv_heads, model.heads,
        model.heads, model.key_heads(), model.heads % model.key_heads());
}

void check_model(const Deck& deck, Problems& problems) {
  const ModelDeck& model = deck.model;
  check_family(deck, problems);
  if (model.bias_buckets % 2 != 0)
    add(problems, "model.bias_buckets = {}: expected an even number, half of them for each direction",
        model.bias_buckets);
  if (model.bias_max_distance <= model.bias_buckets / 2)
    add(problems, "model.bias_max_distance = {}: expected more than model.bias_buckets / 2 = {} / 2 = {}",
        model.bias_max_distance, model.bias_buckets, model.bias_buckets / 2);
  if (deck.run.device == "reference" && deck.run.precision == "bf16")
    problems.add("run.precision = bf16 needs run.device = cpu or cuda: the reference computes in fp32 only");
  if (deck.run.precision == "tf32" && deck.run.device != "cuda")
    add(problems, "run.precision = tf32 needs run.device = cuda, found {}: only GPUs multiply in tf32; expected fp32",
        deck.run.device);
}

bool sparse_stack(const Deck& deck, bool encoder) {
  const std::int64_t layers = encoder ? deck.model.encoder_layers : deck.model.decoder_layers;
  return (encoder ? deck.moe.encoder : deck.moe.decoder) && layers / deck.moe.every > 0;
}
bool experts_choose(const Deck& deck, bool encoder) {
  return (encoder ? deck.moe.router : deck.moe.decoder_router) == "expert_choice";
}

/// A token that is generated is a group of its own, which all experts take; in a row each takes a share of the tokens.
void check_generation(const Deck& deck, Problems& problems) {
  const bool generates = deck.evaluate.generate && (!trains(deck) || deck.evaluate.every > 0);
  const double experts = double(deck.moe.experts);
  if (!generates || !sparse_stack(deck, false) || !experts_choose(deck, false)) return;
  if (deck.moe.capacity_factor_eval < experts)
    add(problems,
        "evaluate.generate = true with moe.decoder_router = expert_choice: a generated token is alone and every expert "
        "would take it, unlike in training; expected evaluate.generate = false, or moe.capacity_factor_eval of at "
        "least moe.experts = {}",
        deck.moe.experts);
}

/// Keys that only matter where tokens choose, set where they do not; and what experts that choose need.
void check_expert_choice(const Deck& deck, Problems& problems) {
  const MoeDeck& moe = deck.moe;
  bool some_tokens = false, some_experts = false;
  for (const bool encoder : {true, false}) {
    if (!sparse_stack(deck, encoder)) continue;
    (experts_choose(deck, encoder) ? some_experts : some_tokens) = true;
    const char* key = encoder ? "moe.priority" : "moe.decoder_priority";
    if (experts_choose(deck, encoder) && (encoder ? moe.priority : moe.decoder_priority) != "token_order")
      add(problems, "{} = probability has no effect where experts choose; expected token_order", key);
  }
  if (!some_experts) return;
  for (const auto& [key, factor] :
       {std::pair{"moe.capacity_factor", moe.capacity_factor}, {"moe.capacity_factor_eval", moe.capacity_factor_eval}})
    if (factor == 0) add(problems, "{} = 0: expected above 0, experts that choose take that many tokens each", key);
  if (moe.forced_balance)
    problems.add(
        "moe.forced_balance = true makes tokens take experts in turn; expected moe.router and "
        "moe.decoder_router to be top_k");
  if (some_tokens) return;
  for (const auto& [key, is_set] : {std::pair{"moe.renormalize", moe.renormalize},
                                    {"moe.capacity_times_k", moe.capacity_times_k},
                                    {"moe.second_policy", moe.second_policy != "all"},
                                    {"moe.second_policy_eval", moe.second_policy_eval != "all"},
                                    {"moe.bias_rate", moe.bias_rate > 0}})
    if (is_set) add(problems, "{} has no effect: experts choose in every sparse layer; expected its default", key);
}

void check_token_choice(const Deck& deck, Problems& problems) {
  const MoeDeck& moe = deck.moe;
  if (moe.top_k > moe.experts)
    add(problems, "moe.top_k = {}: expected at most moe.experts = {}", moe.top_k, moe.experts);
  // Weights of 1 keep the function of a dense model that is upcycled; elsewhere they are a mistake, unless the router
  // is not to learn at all.
  if (moe.renormalize && moe.top_k == 1 && trains(deck) && !deck.run.upcycle && !freezes_gate(deck))
    problems.add(
        "moe.renormalize = true with moe.top_k = 1: every weight would be 1 and the router could not learn from "
        "the task; expected moe.top_k of at least 2, or optimizer.freeze = gate, or run.upcycle = true");
  if (moe.top_k == 1)
    for (const auto& [key, policy] :
         {std::pair{"moe.second_policy", moe.second_policy}, {"moe.second_policy_eval", moe.second_policy_eval}})
      if (policy != "all")
        add(problems, "{} = {} with moe.top_k = 1: there is no second choice; expected all", key, policy);
  // Without bias p_2 <= p_1, so that p_2 <= 1/2 and p_2 / (p_1 + p_2) <= 1/2.
  const bool by_probability = moe.bias_rate == 0 && !moe.forced_balance;
  if (moe.top_k > 1 && moe.second_threshold >= 0.5 && by_probability)
    for (const auto& [key, policy] :
         {std::pair{"moe.second_policy", moe.second_policy}, {"moe.second_policy_eval", moe.second_policy_eval}})
      if (policy == "threshold")
        add(problems,
            "{} = threshold with moe.second_threshold = {}: no later choice weighs more than the first, so none is "
            "above 1/2; expected a threshold below 0.5, or the policy none",
            key, moe.second_threshold);
  if (moe.bias_rate > 0 && moe.forced_balance)
    problems.add("moe.bias_rate has no effect with moe.forced_balance = true; expected 0");
}

void check_moe(const Deck& deck, Problems& problems) {
  const MoeDeck& moe = deck.moe;
  if (deck.model.decoder_only()) {
    if (moe.router == "expert_choice")
      add(problems,
          "moe.router = expert_choice is for an encoder, model.family = {} has none; expected top_k, and "
          "moe.decoder_router says who chooses",
          deck.model.family);
    if (moe.priority != "token_order")
      add(problems,
          "moe.priority = {} is for an encoder, model.family = {} has none; expected token_order, and "
          "moe.decoder_priority says who comes first",
          moe.priority, deck.model.family);
  }
  check_token_choice(deck, problems);
  check_expert_choice(deck, problems);
  check_generation(deck, problems);
  if (moe.router == "expert_choice" && !deck.model.decoder_only() && !sparse_stack(deck, true) &&
      sparse_stack(deck, false))
    problems.add(
        "moe.router = expert_choice has no effect: no layer of the encoder is sparse; expected top_k, and "
        "moe.decoder_router says who chooses in the decoder");
  if (moe.buffer_factor > 0 && moe.buffer_factor < 1)
    add(problems,
        "moe.buffer_factor = {}: expected 0 or at least 1, a rank receives as many rows as it sends on average",
        moe.buffer_factor);
  if (!sparse_stack(deck, true) && !sparse_stack(deck, false))
    add(problems,
        "moe.router = {} but no layer is sparse: moe.every = {} with {} encoder layers (moe.encoder = {}) and {} "
        "decoder "
        "layers (moe.decoder = {})",
        moe.router, moe.every, deck.model.encoder_layers, moe.encoder, deck.model.decoder_layers, moe.decoder);
}

void check_optimizer(const Deck& deck, Problems& problems) {
  const OptimizerDeck& optimizer = deck.optimizer;
  const bool falls = optimizer.schedule == "linear" || optimizer.schedule == "cosine";
  if (falls && optimizer.warmup_steps >= deck.run.steps)
    add(problems, "optimizer.warmup_steps = {}: expected below run.steps = {}, the {} schedule falls in what is left",
        optimizer.warmup_steps, deck.run.steps, optimizer.schedule);
}

void check_rounding(const Deck& deck, Problems& problems) {
  if (deck.optimizer.stochastic_rounding && deck.run.precision != "bf16")
    add(problems,
        "optimizer.stochastic_rounding = true has no effect with run.precision = {}: its working weights are the "
        "masters; expected bf16",
        deck.run.precision);
}

void check_shards(const char* key, const std::string& patterns, const std::string& stage, Problems& problems) {
  const auto all = words(patterns);
  if (all.empty()) add(problems, "{} is empty: the {} stage needs shard files", key, stage);
  for (const std::string& pattern : all)
    if (!any_file(pattern)) add(problems, "{}: expected shard files, found none that match {}", key, pattern);
}

void check_weights(const std::string& weights, Problems& problems) {
  for (const std::string& word : words(weights)) {
    const auto equals = word.rfind('=');
    double weight = -1;
    bool good = equals != std::string::npos && equals > 0;
    if (good) {
      const char* end = word.data() + word.size();
      const auto [stop, error] = std::from_chars(word.data() + equals + 1, end, weight);
      good = error == std::errc() && stop == end && weight >= 0;
    }
    if (!good) add(problems, "data.weights: expected pattern=weight with a weight at least 0, found '{}'", word);
  }
}

void check_decoding(const EvaluateDeck& evaluate, Problems& problems) {
  if (evaluate.beams > 1 && evaluate.temperature > 0)
    add(problems, "evaluate.beams = {} and evaluate.temperature = {}: expected beam search or sampling, not both",
        evaluate.beams, evaluate.temperature);
  if (evaluate.temperature == 0 && (evaluate.top_k > 0 || evaluate.top_p < 1))
    add(problems,
        "evaluate.top_k = {} and evaluate.top_p = {} choose among drawn tokens, but evaluate.temperature = 0 draws "
        "none",
        evaluate.top_k, evaluate.top_p);
  try {
    stop_strings(evaluate);
  } catch (const UsageError& error) {
    problems.add(error.what());
  }
}

/// What the evaluate stage needs, and a training that measures itself.
void check_evaluation(const Deck& deck, Problems& problems) {
  check_shards("evaluate.shards", deck.evaluate.shards, deck.run.stage, problems);
  if (deck.data.tokenizer.empty()) problems.add("data.tokenizer is empty: an evaluation compares text and needs it");
  if (!deck.evaluate.generate && !deck.evaluate.rank)
    problems.add("evaluate.generate and evaluate.rank are both false: expected at least one to measure");
  check_decoding(deck.evaluate, problems);
}

void check_upcycle(const Deck& deck, Problems& problems) {
  if (!trains(deck)) problems.add("run.upcycle = true: the evaluate stage takes weights as they are; expected false");
  if (!is_sparse(deck)) problems.add("run.upcycle = true with moe.router = none: there are no experts to fill");
  if (deck.run.init_from.empty())
    problems.add("run.upcycle = true with an empty run.init_from: expected the checkpoint of a dense model");
}

void check_inputs(const Deck& deck, Problems& problems) {
  if (!deck.plan.machine.empty() && !fs::is_regular_file(deck.plan.machine))
    add(problems, "plan.machine: expected the description of a machine, found none at {}", deck.plan.machine);
  if (plans(deck)) return;
  if (trains(deck)) {
    check_shards("data.train", deck.data.train, deck.run.stage, problems);
    check_weights(deck.data.weights, problems);
    if (deck.evaluate.every > 0) check_evaluation(deck, problems);
    if (!deck.data.submixtures.empty() && deck.data.cap > 0)
      add(problems, "data.cap = {}: expected 0 with data.submixtures, which have caps of their own", deck.data.cap);
    if (!deck.data.held_out.empty() && !fs::is_regular_file(deck.data.held_out))
      add(problems, "data.held_out: expected a file, found none at {}", deck.data.held_out);
  } else {
    check_evaluation(deck, problems);
    if (deck.run.init_from.empty() && !fs::is_directory(fs::path(deck.run.dir) / "checkpoints"))
      add(problems,
          "run.init_from is empty and {}/checkpoints does not exist: the evaluate stage needs trained weights",
          deck.run.dir);
  }
  if (!deck.data.tokenizer.empty() && !fs::is_regular_file(deck.data.tokenizer))
    add(problems, "data.tokenizer: expected a SentencePiece model file, found none at {}", deck.data.tokenizer);
  const bool goes_on = deck.run.stage != "evaluate" && fs::is_directory(fs::path(deck.run.dir) / "checkpoints");
  if (!deck.run.init_from.empty() && !goes_on && !fs::is_directory(deck.run.init_from))
    add(problems, "run.init_from: expected a checkpoint folder or a run folder, found none at {}", deck.run.init_from);
  if (deck.run.upcycle) check_upcycle(deck, problems);
  if (fs::exists(deck.run.dir) && !fs::is_directory(deck.run.dir))
    add(problems, "run.dir: expected a folder, found a file at {}", deck.run.dir);
}

void check_faults(const FaultsDeck& faults, Problems& problems) {
  const auto check = [&](const char* key, double factor) {
    if (factor > 0 && factor <= 1)
      add(problems, "faults.{} = {}: expected 0 (never) or a factor above 1: half of all values are above the median",
          key, factor);
  };
  check("loss_spike", faults.loss_spike);
  check("norm_spike", faults.norm_spike);
}

}  // namespace

std::int64_t leaves_of(const Deck& deck) {
  const std::int64_t rows = deck.batch.rows, microbatch = deck.batch.microbatch_rows;
  if (deck.run.device == "cuda") return 0;  // its kernels sum all tokens of a call together
  for (std::int64_t leaves = deck.reduction.leaves; leaves > 1; leaves /= 2) {
    if (rows % leaves != 0) continue;
    const std::int64_t leaf = rows / leaves;
    const bool groups = !is_sparse(deck) || leaf % deck.moe.group_rows == 0;
    const bool microbatches =
        microbatch == 0 || (microbatch % leaf == 0 && std::has_single_bit(std::uint64_t(microbatch / leaf)));
    if (groups && microbatches) return leaves;
  }
  return 0;
}

bool uses_leaves(const Deck& deck, std::int64_t ranks) {
  const std::int64_t leaves = leaves_of(deck);
  return leaves > 0 && leaves % ranks == 0;
}

void check_deck(const Deck& deck, int world_size, const std::vector<std::string>& more) {
  FLANMOE_EXPECT(world_size >= 0, "{} ranks", world_size);
  Problems problems;
  check_layout(deck, world_size, problems);
  check_model(deck, problems);
  if (is_sparse(deck)) check_moe(deck, problems);
  if (trains(deck)) {
    check_optimizer(deck, problems);
    check_rounding(deck, problems);
  }
  check_faults(deck.faults, problems);
  check_inputs(deck, problems);
  for (const std::string& problem : more) problems.add(problem);
  problems.throw_if_any(world_size == 0 ? std::string("the deck") : fmt::format("the deck on {} ranks", world_size));
}

}  // namespace flanmoe
