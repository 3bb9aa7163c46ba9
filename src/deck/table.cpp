// The parameter table. Defaults are those of the structs in deck.hpp.
#include "deck/table.hpp"

namespace flanmoe::deck_detail {
namespace {

Range at_least(double low) { return {.low = low}; }
Range above(double low) { return {.low = low, .low_open = true}; }
Range between(double low, double high) { return {.low = low, .high = high}; }
Range from_to_below(double low, double high) { return {.low = low, .high = high, .high_open = true}; }
Range above_to(double low, double high) { return {.low = low, .high = high, .low_open = true}; }
Range strictly_between(double low, double high) {
  return {.low = low, .high = high, .low_open = true, .high_open = true};
}

/// Adds the rows of one section.
template <class Section>
class SectionRows {
 public:
  SectionRows(std::vector<Parameter>& table, std::string name, Section Deck::*section)
      : table_(table), name_(std::move(name)), section_(section) {}
  template <class Value>
  void number(const char* name, Value Section::*member, Range range, const char* unit, const char* sentence) {
    table_.push_back({name_ + "." + name, Member(section_, member), unit, range, {}, false, sentence});
  }
  void choice(const char* name, std::string Section::*member, std::vector<std::string> choices, const char* sentence) {
    table_.push_back({name_ + "." + name, Member(section_, member), "", {}, std::move(choices), true, sentence});
  }
  void text(const char* name, std::string Section::*member, const char* sentence) {
    table_.push_back({name_ + "." + name, Member(section_, member), "", {}, {}, false, sentence});
  }
  void required_text(const char* name, std::string Section::*member, const char* sentence) {
    table_.push_back({name_ + "." + name, Member(section_, member), "", {}, {}, true, sentence});
  }
  void flag(const char* name, bool Section::*member, const char* sentence) {
    table_.push_back({name_ + "." + name, Member(section_, member), "", {}, {}, false, sentence});
  }

 private:
  std::vector<Parameter>& table_;
  std::string name_;
  Section Deck::*section_;
};

void add_run(std::vector<Parameter>& table) {
  SectionRows rows(table, "run", &Deck::run);
  using S = RunDeck;
  rows.choice(
      "stage", &S::stage, {"pretrain", "instruct", "finetune", "evaluate", "plan"},
      "What the run does: train on raw text, train on instructions, train on chosen tasks, measure, or say what a "
      "training would take, without running it.");
  rows.required_text("dir", &S::dir, "Run folder: metrics, log, checkpoints and summary are written here.");
  rows.number("steps", &S::steps, at_least(1), "steps", "Optimizer steps in all, counted from the start of this run.");
  rows.number("seed", &S::seed, at_least(0), "", "Seed of weights, data order, masks and dropout.");
  rows.choice("device", &S::device, {"cpu", "cuda", "reference"},
              "What to compute on: the cores of the host, a GPU for every rank (executed in emulation only so far), or "
              "the scalar reference that both are tested against.");
  rows.choice("precision", &S::precision, {"fp32", "tf32", "bf16"},
              "Type of activations and matrix products; master weights, router and losses stay fp32. tf32 (GPUs only): "
              "fp32, with operands of matrix products rounded to 10 bits of fraction.");
  rows.text("init_from", &S::init_from,
            "Start from these weights: a checkpoint folder, or a run folder (its newest checkpoint); the optimizer "
            "starts fresh.");
  rows.flag(
      "upcycle", &S::upcycle,
      "run.init_from is a dense model and this one is sparse: every expert starts as a copy of the feed-forward in "
      "its place, routers start fresh.");
  rows.number("threads", &S::threads, at_least(0), "threads",
              "OpenMP threads per rank; 0: the cores this rank may use.");
  rows.number("watchdog_seconds", &S::watchdog_seconds, at_least(0), "s",
              "A collective that hangs longer than this ends all ranks and is named; 0: never.");
  rows.number("log_every", &S::log_every, at_least(1), "steps", "A progress line every this many steps.");
  rows.number("stop_after_minutes", &S::stop_after_minutes, at_least(0), "min",
              "Write a checkpoint and exit with code 75 after this time, to go on by running again; 0: no limit.");
  rows.number("stop_before_minutes", &S::stop_before_minutes, at_least(0), "min",
              "The same so long before the end of the batch job (SLURM_JOB_END_TIME, which Slurm 23.02 and jobs/submit "
              "set); a step and a checkpoint must fit; 0: not.");
}

void add_parallel(std::vector<Parameter>& table) {
  SectionRows rows(table, "parallel", &Deck::parallel);
  rows.number("expert", &ParallelDeck::expert, at_least(1), "ranks",
              "Ranks that share one copy of all experts; divides the number of ranks and moe.experts.");
}

void add_batch(std::vector<Parameter>& table) {
  SectionRows rows(table, "batch", &Deck::batch);
  using S = BatchDeck;
  rows.number("rows", &S::rows, at_least(1), "rows", "Packed rows of the global batch, over all ranks.");
  rows.number("microbatch_rows", &S::microbatch_rows, at_least(0), "rows",
              "Rows that a rank computes at a time; gradients add up over them; 0: all rows of the rank.");
  rows.number("input_length", &S::input_length, at_least(8), "tokens", "Input tokens of a row.");
  rows.number("target_length", &S::target_length, at_least(4), "tokens", "Target tokens of a row.");
}

void add_reduction(std::vector<Parameter>& table) {
  SectionRows rows(table, "reduction", &Deck::reduction);
  rows.number(
      "leaves", &ReductionDeck::leaves, at_least(0), "parts",
      "Most equal parts of the global batch, a power of two, whose sums over tokens meet in one fixed binary tree: all "
      "rank counts that divide them train the same bits, with any parallel.expert and any microbatches of 1, 2, 4, ... "
      "parts; others agree to rounding, as all do with 0 and on GPUs. Halved until a part holds whole rows and whole "
      "groups of moe.group_rows; none where batch.microbatch_rows is not a power of two of parts; the run says how "
      "many it has. A rank with several microbatches keeps more than one sum of gradients.");
}

void add_model(std::vector<Parameter>& table) {
  SectionRows rows(table, "model", &Deck::model);
  using S = ModelDeck;
  rows.choice("family", &S::family, {"t5", "palm"},
              "Architecture: t5 is the encoder-decoder of T5 1.0 and 1.1; palm is decoder-only, with attention and "
              "feed-forward side by side on one norm, rotary positions, and input and target of an example as one "
              "sequence.");
  rows.choice("preset", &S::preset,
              {"custom", "t5_1_0", "t5_1_1", "palm", "switch", "gshard", "token_choice", "expert_choice", "st_moe"},
              "A named set of defaults for keys that are not set; see the presets below.");
  rows.number("vocabulary", &S::vocabulary, at_least(8), "pieces",
              "Rows of the embedding table; at least the tokenizer's pieces and sentinels.");
  rows.number("width", &S::width, at_least(1), "", "D, the width of the residual stream.");
  rows.number("hidden", &S::hidden, at_least(1), "", "F, the hidden width of a feed-forward layer or expert.");
  rows.number("heads", &S::heads, at_least(1), "heads", "H, the attention heads.");
  rows.number("head_width", &S::head_width, at_least(1), "", "K, the width of an attention head.");
  rows.number(
      "kv_heads", &S::kv_heads, at_least(0), "heads",
      "Key/value heads, each shared by as many query heads; divides heads; 1: multi-query attention, 0: one for "
      "each head.");
  rows.number("encoder_layers", &S::encoder_layers, at_least(0), "layers", "Layers of the encoder; palm has none.");
  rows.number("decoder_layers", &S::decoder_layers, at_least(1), "layers", "Layers of the decoder.");
  rows.choice("attention", &S::attention, {"causal", "prefix"},
              "palm: a token sees what stands before it (causal), or all of its input as well (prefix).");
  rows.choice("activation", &S::activation, {"relu", "gated_gelu", "gated_swish"},
              "Activation of feed-forward layers and experts; gated_swish is SwiGLU.");
  rows.flag("multiplicative_bias", &S::multiplicative_bias,
            "A learned factor, 1 at first, for every hidden value of feed-forward layers and experts.");
  rows.choice("norm", &S::norm, {"rms", "layer"},
              "RMSNorm, or LayerNorm without a bias, which subtracts the mean as well.");
  rows.flag("tied_logits", &S::tied_logits,
            "Logits use the embedding table, over the root of width (T5 1.0, PaLM), instead of a matrix of their own.");
  rows.number("init_scale", &S::init_scale, above(0), "",
              "Variance scale of the initial weights, embedding and router excepted; 0.1 steadies MoE models.");
  rows.number("bias_buckets", &S::bias_buckets, at_least(4), "buckets",
              "t5: buckets of the relative position bias; even.");
  rows.number("bias_max_distance", &S::bias_max_distance, at_least(3), "tokens",
              "t5: distances from here on share the last bucket.");
  rows.number("rotary_base", &S::rotary_base, above(1), "",
              "palm: column pair i of a head of width K turns by position * base^(-2i/K).");
  rows.number("norm_epsilon", &S::norm_epsilon, above(0), "", "Added to the mean square in norms.");
  rows.number("dropout", &S::dropout, from_to_below(0, 1), "",
              "Dropout rate while training; attention probabilities have one mask per key/value head.");
  rows.flag("dropout_shared_over_length", &S::dropout_shared_over_length,
            "One dropout mask for all positions of a row, as in T5.");
  rows.number("z_loss", &S::z_loss, at_least(0), "", "Coefficient of the squared log-normaliser of the output.");
}

void add_moe(std::vector<Parameter>& table) {
  SectionRows rows(table, "moe", &Deck::moe);
  using S = MoeDeck;
  rows.choice(
      "router", &S::router, {"none", "top_k", "expert_choice"},
      "Who chooses in the encoder's sparse layers: each token its experts, or each expert its tokens; none makes "
      "every feed-forward of the model dense.");
  rows.choice("decoder_router", &S::decoder_router, {"top_k", "expert_choice"},
              "Who chooses in the decoder's sparse layers; experts that choose look at later tokens too.");
  rows.number("experts", &S::experts, at_least(1), "experts", "E, the experts of a sparse layer.");
  rows.number("shared_experts", &S::shared_experts, at_least(0), "experts",
              "Experts that every token passes besides, side by side as one feed-forward, unweighted.");
  rows.number("top_k", &S::top_k, at_least(1), "experts", "k, the experts that each token chooses.");
  rows.number("every", &S::every, at_least(1), "layers",
              "Layer l, from 0, is sparse when l % every == every - 1: 2 makes every other layer sparse.");
  rows.flag("encoder", &S::encoder, "The encoder has sparse layers.");
  rows.flag("decoder", &S::decoder, "The decoder has sparse layers.");
  rows.flag("extra_feed_forward", &S::extra_feed_forward, "A dense feed-forward layer follows each sparse one.");
  rows.number("capacity_factor", &S::capacity_factor, at_least(0), "",
              "Slots of an expert while training, times tokens of the group over experts; 0: no limit, none dropped.");
  rows.number("capacity_factor_eval", &S::capacity_factor_eval, at_least(0), "",
              "The same while evaluating; 0: no limit, none dropped.");
  rows.flag("capacity_times_k", &S::capacity_times_k,
            "Where tokens choose, slots are counted per choice: the capacity factors are multiplied by top_k.");
  rows.choice("capacity_rounding", &S::capacity_rounding, {"nearest", "down"},
              "How the slots of an expert become a whole number; nearest takes halves to the even one.");
  rows.number(
      "min_capacity", &S::min_capacity, at_least(1), "tokens",
      "Where tokens choose, an expert has at least this many slots; experts that choose take at least one token.");
  rows.number("group_rows", &S::group_rows, at_least(1), "rows",
              "Rows whose tokens compete for the slots of an expert; divides the rows of a microbatch.");
}

/// The rest of the section.
void add_moe_policies(std::vector<Parameter>& table) {
  SectionRows rows(table, "moe", &Deck::moe);
  using S = MoeDeck;
  rows.choice(
      "priority", &S::priority, {"token_order", "probability"},
      "Who gets the slots of a full expert in the encoder: earlier tokens, or tokens surer of their first choice.");
  rows.choice("decoder_priority", &S::decoder_priority, {"token_order", "probability"},
              "The same in the decoder; probability looks at later tokens too.");
  rows.flag("renormalize", &S::renormalize, "The weights of a token's chosen experts are scaled to sum to 1.");
  rows.choice("second_policy", &S::second_policy, {"all", "none", "threshold", "random"},
              "Which choices after the first claim a slot while training: all, none, those whose weight is above "
              "second_threshold, or each with probability weight / second_threshold.");
  rows.choice("second_policy_eval", &S::second_policy_eval, {"all", "none", "threshold"},
              "The same while evaluating, where nothing is left to chance.");
  rows.number("second_threshold", &S::second_threshold, above_to(0, 1), "", "See second_policy.");
  rows.number("jitter", &S::jitter, from_to_below(0, 1), "",
              "While training the router's input is multiplied by factors from 1 - jitter to 1 + jitter.");
  rows.number("balance_coefficient", &S::balance_coefficient, at_least(0), "",
              "Coefficient of the balance loss, where tokens choose.");
  rows.choice("balance_choices", &S::balance_choices, {"all", "first"},
              "Choices of a token that the balance loss counts.");
  rows.choice("balance_scale", &S::balance_scale, {"switch", "gshard"},
              "The sum over experts of share chosen times mean probability is multiplied by E, or divided by E as "
              "GShard writes it; the coefficient must fit.");
  rows.number("bias_rate", &S::bias_rate, at_least(0), "",
              "Balance without a loss: a bias per expert, added where tokens choose but not to weights, moves by this "
              "much a step towards even load; 0: no bias.");
  rows.flag("forced_balance", &S::forced_balance,
            "For measurements of speed: tokens take experts in turn, whatever the router says.");
  rows.number("z_coefficient", &S::z_coefficient, at_least(0), "", "Coefficient of the router z-loss.");
  rows.choice("auxiliary_over_layers", &S::auxiliary_over_layers, {"mean", "sum"},
              "Balance and router z-loss are averaged or added up over the sparse layers.");
  rows.number("router_init", &S::router_init, at_least(0), "", "Standard deviation of the initial router weights.");
  rows.number("expert_dropout", &S::expert_dropout, from_to_below(0, 1), "",
              "Dropout rate inside the experts; one mask for all tokens of an expert.");
  rows.number(
      "buffer_factor", &S::buffer_factor, at_least(0), "",
      "Rows that a rank may receive in one exchange, times the rows that it sends; 0: room for the worst case.");
  rows.flag("packed_weights", &S::packed_weights,
            "On cpu, where weights serve six or more microbatches, or the stage evaluate: keep copies of the experts' "
            "matrices in "
            "the order in which the processor multiplies; training takes the memory of their working weights twice "
            "more, evaluation once, and both save time where experts have few tokens.");
  rows.number(
      "dispatch_chunks", &S::dispatch_chunks, at_least(0), "chunks",
      "The experts of a rank are cut into so many chunks, at most one an expert: on GPUs the rows of one travel "
      "while another computes; on CPUs more messages, no gain. The same results. 0: 2 on GPUs, 1 on CPUs.");
}

void add_optimizer(std::vector<Parameter>& table) {
  SectionRows rows(table, "optimizer", &Deck::optimizer);
  using S = OptimizerDeck;
  rows.choice("name", &S::name, {"adafactor", "adamw"}, "Update rule.");
  rows.choice("schedule", &S::schedule, {"constant", "rsqrt", "linear", "cosine"},
              "Learning rate after warm-up: constant, one over the root of the step, or falling to final_fraction.");
  rows.number("learning_rate", &S::learning_rate, above(0), "",
              "Base rate; rsqrt divides it by the root of max(step, warmup_steps), the others reach it after warm-up.");
  rows.number("warmup_steps", &S::warmup_steps, at_least(0), "steps", "Length of the warm-up.");
  rows.number("final_fraction", &S::final_fraction, between(0, 1), "",
              "Last rate over peak rate of the linear and cosine schedules.");
  rows.number("clip_norm", &S::clip_norm, at_least(0), "", "Gradients are scaled down to this global norm; 0: never.");
  rows.number("weight_decay", &S::weight_decay, at_least(0), "", "Decoupled weight decay.");
  rows.number("beta1", &S::beta1, from_to_below(0, 1), "", "AdamW: decay of the first moment.");
  rows.number("beta2", &S::beta2, from_to_below(0, 1), "", "AdamW: decay of the second moment.");
  rows.number("epsilon", &S::epsilon, above(0), "", "AdamW: added to the root of the second moment.");
  rows.number("decay_exponent", &S::decay_exponent, strictly_between(0, 1), "",
              "Adafactor: the second moment decays by 1 - step^-exponent.");
  rows.number("clip_threshold", &S::clip_threshold, above(0), "",
              "Adafactor: the root mean square of an update is at most this.");
  rows.flag("multiply_by_parameter_scale", &S::multiply_by_parameter_scale,
            "Adafactor: the rate is relative to the root mean square of the tensor.");
  rows.number("factor_threshold", &S::factor_threshold, at_least(1), "",
              "Adafactor: a dense matrix is factored when its smaller side is at least this.");
  rows.flag("stochastic_rounding", &S::stochastic_rounding,
            "bf16 runs: fp32 masters become working weights by rounding up or down at random, so that the mean is the "
            "master; false: to the nearest. Masters themselves are never rounded.");
  rows.number("split_above", &S::split_above, at_least(1), "elements",
              "A matrix with more is cut into blocks of rows, which different ranks may own (with Adafactor, if it is "
              "factored): the state of a rank shrinks with the number of ranks until shares are as small as blocks.");
  rows.text("freeze", &S::freeze,
            "Parameters that stay as they are: sets (gate, experts, moe, all_but_moe, attention, feed_forward, norms, "
            "embeddings) and patterns of names such as encoder/*, separated by spaces.");
}

void add_checkpoint(std::vector<Parameter>& table) {
  SectionRows rows(table, "checkpoint", &Deck::checkpoint);
  using S = CheckpointDeck;
  rows.number("every", &S::every, at_least(0), "steps", "A checkpoint every this many steps; 0: only at the end.");
  rows.number("keep", &S::keep, at_least(1), "checkpoints", "The newest ones that are kept.");
  rows.flag("final", &S::final, "A checkpoint after the last step.");
  rows.flag("background", &S::background,
            "Copy the state to memory (as much again as weights and optimizer state take) and write it while the "
            "training goes on; false: the training stands still and nothing is copied.");
  rows.choice(
      "on_failure", &S::on_failure, {"stop", "continue"},
      "When a checkpoint or a line of metrics.jsonl cannot be written: end the run, or go on and try at the next "
      "one. The last checkpoint of a run that ends must be written, and no checkpoint is without its metrics.");
}

void add_faults(std::vector<Parameter>& table) {
  SectionRows rows(table, "faults", &Deck::faults);
  using S = FaultsDeck;
  rows.choice("on_bad_step", &S::on_bad_step, {"stop", "skip"},
              "When loss or gradient norm are not finite or spike, or weights that must be equal differ, before the "
              "update: end the run, or go back to the last checkpoint and, if the batch is bad again, skip it.");
  rows.number("limit", &S::limit, at_least(1), "steps", "So many bad steps are forgiven until the run is ended.");
  rows.number("loss_spike", &S::loss_spike, at_least(0), "",
              "A loss of more than this times the median of the last 32 is bad; 0: only one that is not finite.");
  rows.number("norm_spike", &S::norm_spike, at_least(0), "", "The same of the gradient norm before clipping.");
  rows.number(
      "compare_every", &S::compare_every, at_least(0), "steps",
      "Compare the weights of all ranks that hold the same ones, and the factors of Adafactor that owners of a "
      "matrix share, every this many steps, and in each step behind which a checkpoint may be written; 0: never.");
}

void add_data(std::vector<Parameter>& table) {
  SectionRows rows(table, "data", &Deck::data);
  using S = DataDeck;
  rows.text("train", &S::train, "Training shards: paths or patterns such as data/*.h5, separated by spaces.");
  rows.text("tasks", &S::tasks, "Tasks to train on: name patterns, separated by spaces.");
  rows.text("exclude_tasks", &S::exclude_tasks,
            "Tasks held out from training, and averaged apart by an evaluation: name patterns, separated by spaces.");
  rows.text("weights", &S::weights, "pattern=weight, separated by spaces: multiplies the rate of matching tasks.");
  rows.number("cap", &S::cap, at_least(0), "examples",
              "A task counts at most this many examples towards its rate; 0: no cap.");
  rows.text(
      "submixtures", &S::submixtures,
      "Groups of tasks with a share of the draws each, separated by spaces: name=share:cap:tasks:pattern,pattern; "
      "cap bounds the examples that a task counts, tasks is how many a complete group has (0: not known).");
  rows.text("held_out", &S::held_out,
            "File that names tasks which no training may contain, as input/shards/held_out.txt does.");
  rows.number("temperature", &S::temperature, above(0), "",
              "Rates are raised to one over this; above 1 evens them out.");
  rows.required_text("split", &S::split, "Split of the shards to train on.");
  rows.choice("objective", &S::objective, {"span_corruption", "prefix_lm", "causal_lm"},
              "What is asked of raw text: fill in masked spans, go on after a prefix, or (palm) predict every token.");
  rows.number("noise_density", &S::noise_density, strictly_between(0, 1), "", "Share of the tokens that are masked.");
  rows.number("mean_span", &S::mean_span, at_least(1), "tokens", "Mean length of a masked span.");
  rows.number("prefetch", &S::prefetch, at_least(1), "batches", "Batches that are read ahead.");
  rows.text("tokenizer", &S::tokenizer, "SentencePiece model; needed where text is written or compared.");
}

void add_evaluate(std::vector<Parameter>& table) {
  SectionRows rows(table, "evaluate", &Deck::evaluate);
  using S = EvaluateDeck;
  rows.text("shards", &S::shards, "Evaluation shards: paths or patterns, separated by spaces.");
  rows.text("tasks", &S::tasks, "Tasks to evaluate: name patterns, separated by spaces.");
  rows.required_text("split", &S::split, "Split of the shards to evaluate on.");
  rows.number("every", &S::every, at_least(0), "steps",
              "A training measures itself after so many steps, into RUN/evaluations; 0: never.");
  rows.number("limit", &S::limit, at_least(0), "examples", "Examples of each task and variant; 0: all.");
  rows.number("batch_rows", &S::batch_rows, at_least(1), "examples", "Examples that a rank decodes together.");
  rows.number("max_new_tokens", &S::max_new_tokens, at_least(1), "tokens", "Longest answer that is generated.");
  rows.number("beams", &S::beams, at_least(1), "beams", "Beams of the beam search; 1: no search.");
  rows.number("length_penalty", &S::length_penalty, at_least(0), "",
              "Beam search compares hypotheses by log-likelihood / ((5 + tokens) / 6)^length_penalty.");
  rows.number("temperature", &S::temperature, at_least(0), "",
              "0: the most likely token; otherwise tokens are drawn from softmax(logits / temperature).");
  rows.number("top_k", &S::top_k, at_least(0), "tokens", "Draw from this many most likely tokens; 0: from all.");
  rows.number("top_p", &S::top_p, {.low = 0, .high = 1, .low_open = true}, "",
              "Draw from the fewest most likely tokens that hold this share of what top_k left.");
  rows.text("stop", &S::stop,
            "Texts that end an answer and are cut off with all behind them, separated by |; \\n, \\t, \\| and \\\\ are "
            "line end, tab, | and backslash.");
  rows.flag("generate", &S::generate, "Generate an answer and compare it.");
  rows.flag("rank", &S::rank, "Rank the given choices by log-likelihood.");
}

void add_plan(std::vector<Parameter>& table) {
  SectionRows rows(table, "plan", &Deck::plan);
  using S = PlanDeck;
  rows.text("machine", &S::machine,
            "Description of a machine, as flanmoe calibrate writes it; empty: the plan stage predicts no time, and a "
            "training predicts from the speeds that it measures at its start.");
  rows.number("ranks", &S::ranks, between(0, 1 << 20), "ranks",
              "Ranks that the plan stage plans for; 0: all of the described machine, or 1.");
}

}  // namespace

const std::vector<Parameter>& parameter_table() {
  static const std::vector<Parameter> table = [] {
    std::vector<Parameter> rows;
    add_run(rows);
    add_parallel(rows);
    add_batch(rows);
    add_reduction(rows);
    add_model(rows);
    add_moe(rows);
    add_moe_policies(rows);
    add_optimizer(rows);
    add_checkpoint(rows);
    add_faults(rows);
    add_data(rows);
    add_evaluate(rows);
    add_plan(rows);
    return rows;
  }();
  return table;
}

const std::vector<SectionNote>& section_notes() {
  static const std::vector<SectionNote> notes = {
      {"run", "What is run, where and for how long."},
      {"parallel", "How the ranks are used: world = data x expert."},
      {"batch", "The global batch, which does not depend on the number of ranks."},
      {"reduction", "In which order sums over the tokens of the batch are added up."},
      {"model", "The dense part of the model."},
      {"moe", "Sparse feed-forward layers."},
      {"optimizer", "The update of the weights."},
      {"checkpoint", "When and how the state is saved."},
      {"faults", "What is done when something goes wrong in a step."},
      {"data", "What is trained on."},
      {"evaluate", "What is measured, in the evaluate stage."},
      {"plan", "What time a training is predicted to take, in the plan stage and beside what a training measures."},
  };
  return notes;
}

}  // namespace flanmoe::deck_detail
