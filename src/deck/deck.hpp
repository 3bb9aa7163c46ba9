// The input deck: every setting of a run, typed. The parameter table (deck/table.cpp) is the one place that knows the
// names, defaults, units, ranges and sentences; everything else about the deck is generated from it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace flanmoe {

struct RunDeck {
  std::string stage = "pretrain";  // pretrain | instruct | finetune | evaluate | plan
  std::string dir = "runs/run";    // run folder
  std::int64_t steps = 100;        // total optimizer steps
  std::int64_t seed = 1;
  std::string device = "cpu";      // cpu | cuda | reference
  std::string precision = "fp32";  // fp32 | tf32 | bf16
  std::string init_from;           // checkpoint folder, or run folder (its newest checkpoint): weights only
  bool upcycle = false;            // init_from is dense: every expert starts as a copy of its feed-forward
  std::int64_t threads = 0;        // per rank; 0: cores this rank may use
  std::int64_t watchdog_seconds = 600;
  std::int64_t log_every = 10;     // progress line
  double stop_after_minutes = 0;   // 0: no limit; otherwise checkpoint and exit 75 (go on by running again)
  double stop_before_minutes = 0;  // the same, before the end of the batch job; 0: not

  bool tf32() const { return precision == "tf32"; }
};
struct ParallelDeck {
  std::int64_t expert = 1;  // ranks of an expert group
};
struct BatchDeck {
  std::int64_t rows = 16;            // packed rows of the global batch
  std::int64_t microbatch_rows = 0;  // rows per rank and microbatch; 0: all rows of the rank
  std::int64_t input_length = 256;   // encoder tokens of a row
  std::int64_t target_length = 64;   // decoder tokens of a row
};
struct ReductionDeck {
  std::int64_t leaves = 8;  // most equal parts of the global batch that are summed along one tree; 0: none
};
struct ModelDeck {
  std::string family = "t5";      // t5 | palm
  std::string preset = "custom";  // see presets() in deck/presets.cpp
  std::int64_t vocabulary = 8192;
  std::int64_t width = 256;      // D
  std::int64_t hidden = 1024;    // F
  std::int64_t heads = 4;        // H
  std::int64_t head_width = 64;  // K
  std::int64_t kv_heads = 0;     // key/value heads; 0: as many as heads
  std::int64_t encoder_layers = 4;
  std::int64_t decoder_layers = 4;
  std::string attention = "causal";       // palm: causal | prefix
  std::string activation = "gated_gelu";  // relu | gated_gelu | gated_swish
  bool multiplicative_bias = false;       // a learned factor for every hidden value of a feed-forward
  std::string norm = "rms";               // rms | layer
  bool tied_logits = false;
  double init_scale = 1.0;
  std::int64_t bias_buckets = 32;
  std::int64_t bias_max_distance = 128;
  double rotary_base = 10000.0;
  double norm_epsilon = 1e-6;
  double dropout = 0.0;
  bool dropout_shared_over_length = true;
  double z_loss = 1e-4;  // output z-loss coefficient

  bool decoder_only() const { return family == "palm"; }
  bool gated() const { return activation != "relu"; }
  std::int64_t key_heads() const { return kv_heads == 0 ? heads : kv_heads; }
};
struct MoeDeck {
  std::string router = "none";           // none | top_k | expert_choice; none: no sparse layer anywhere
  std::string decoder_router = "top_k";  // top_k | expert_choice
  std::int64_t experts = 8;              // E
  std::int64_t shared_experts = 0;       // feed-forwards that every token passes
  std::int64_t top_k = 1;
  std::int64_t every = 2;  // layer l (from 0) is sparse iff l % every == every-1
  bool encoder = true;     // sparse layers in the encoder
  bool decoder = true;
  bool extra_feed_forward = false;    // a dense one behind each sparse one
  double capacity_factor = 1.25;      // training; 0: dropless
  double capacity_factor_eval = 2.0;  // evaluation; 0: dropless
  bool capacity_times_k = false;
  std::string capacity_rounding = "nearest";  // nearest | down
  std::int64_t min_capacity = 4;
  std::int64_t group_rows = 1;                   // rows that compete for the slots of an expert
  std::string priority = "token_order";          // token_order | probability; of the encoder
  std::string decoder_priority = "token_order";  // token_order | probability
  bool renormalize = false;                      // combine weights over the chosen experts sum to 1
  std::string second_policy = "all";             // all | none | threshold | random
  std::string second_policy_eval = "all";        // all | none | threshold
  double second_threshold = 0.2;
  double jitter = 0.0;  // of the router's input, while training
  double balance_coefficient = 0.01;
  std::string balance_choices = "all";         // all | first
  std::string balance_scale = "switch";        // switch | gshard
  double bias_rate = 0.0;                      // change of the selection bias in a step; 0: no bias
  bool forced_balance = false;                 // choices without regard to the tokens, for measurements
  double z_coefficient = 0.0;                  // router z-loss
  std::string auxiliary_over_layers = "mean";  // mean | sum
  double router_init = 0.02;                   // standard deviation
  double expert_dropout = 0.0;
  double buffer_factor = 0.0;        // received rows per rank at most factor * sent; 0: worst case
  bool packed_weights = true;        // copies of experts' matrices in the order that products read
  std::int64_t dispatch_chunks = 0;  // of a rank's experts, exchanged one by one; 0: see dispatch_chunks()
};
struct OptimizerDeck {
  std::string name = "adafactor";  // adafactor | adamw
  std::string schedule = "rsqrt";  // constant | rsqrt | linear | cosine
  double learning_rate = 1.0;
  std::int64_t warmup_steps = 1000;
  double final_fraction = 0.0;  // linear and cosine: last rate / peak rate
  double clip_norm = 0.0;       // 0: none
  double weight_decay = 0.0;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double decay_exponent = 0.8;  // adafactor
  double clip_threshold = 1.0;  // adafactor
  bool multiply_by_parameter_scale = true;
  std::int64_t factor_threshold = 128;  // adafactor: smaller side at least this to be factored (dense matrices)
  bool stochastic_rounding = false;     // of bf16 working weights
  std::int64_t split_above = 1 << 20;  // elements: larger matrices are cut into blocks of rows with owners of their own
  std::string freeze;                  // sets and patterns of parameters that are not trained
};
struct CheckpointDeck {
  std::int64_t every = 100;  // steps; 0: only at the end
  std::int64_t keep = 2;
  bool final = true;
  bool background = true;           // copied to memory, then written while the training goes on
  std::string on_failure = "stop";  // stop | continue
};
struct FaultsDeck {
  std::string on_bad_step = "stop";  // stop | skip: back to the last checkpoint; bad again: the batch is skipped
  std::int64_t limit = 3;            // bad steps that are forgiven between two starts
  double loss_spike = 0;             // times the median of recent losses; 0: only what is not finite is bad
  double norm_spike = 0;             // the same of the gradient norm
  std::int64_t compare_every = 0;    // steps between comparisons of replicas; 0: never
};
struct DataDeck {
  std::string train;          // shard files: space-separated paths or globs
  std::string tasks = "*";    // space-separated patterns of task names
  std::string exclude_tasks;  // held-out tasks: space-separated patterns
  std::string weights;        // "pattern=weight ...": rate of matching tasks is multiplied by weight
  std::int64_t cap = 0;       // rate of a task: min(examples, cap); 0: no cap
  std::string submixtures;    // "name=share:cap:tasks:pattern,pattern ...": nested mixture
  std::string held_out;       // file of task patterns that may not be trained on
  double temperature = 1.0;
  std::string split = "train";
  std::string objective = "span_corruption";  // for text shards: span_corruption | prefix_lm | causal_lm
  double noise_density = 0.15;
  double mean_span = 3.0;
  std::int64_t prefetch = 2;  // batches read ahead
  std::string tokenizer;      // SentencePiece model; needed where text is written or compared
};
struct EvaluateDeck {
  std::string shards;  // shard files with evaluation examples
  std::string tasks = "*";
  std::string split = "test";
  std::int64_t every = 0;        // inside a training, after so many steps; 0: never
  std::int64_t limit = 0;        // examples per task and variant; 0: all
  std::int64_t batch_rows = 32;  // examples decoded together on a rank
  std::int64_t max_new_tokens = 64;
  std::int64_t beams = 1;       // 1: no beam search
  double length_penalty = 0.6;  // of beam search
  double temperature = 0;       // 0: the most likely token, otherwise sampling
  std::int64_t top_k = 0;       // of sampling; 0: all tokens
  double top_p = 1;             // of sampling
  std::string stop;             // texts that end an answer; see stop_strings()
  bool generate = true;         // exact match of the generated answer
  bool rank = true;             // choices ranked by log-likelihood
};
struct PlanDeck {
  std::string machine;     // description of a machine; empty: none
  std::int64_t ranks = 0;  // of the plan stage; 0: all of the machine
};
struct Deck {
  RunDeck run;
  ParallelDeck parallel;
  BatchDeck batch;
  ReductionDeck reduction;
  ModelDeck model;
  MoeDeck moe;
  OptimizerDeck optimizer;
  CheckpointDeck checkpoint;
  FaultsDeck faults;
  DataDeck data;
  EvaluateDeck evaluate;
  PlanDeck plan;
};

/// Reads an INI deck and `--section.key=value` overrides (which win), applies model.preset to every key that neither
/// set, and checks types, ranges and unknown names. Throws UsageError listing ALL problems, one a line, each with file
/// and line (or "command line"), what was expected, what was found, and the nearest valid name.
Deck parse_deck(const std::string& path, const std::vector<std::string>& overrides);
/// The same of a text; `name` stands for the file in messages.
Deck parse_deck_text(const std::string& name, const std::string& text, const std::vector<std::string>& overrides);

/// Leaves of the global batch: equal parts of its rows that are summed along one tree. The largest power of two, up to
/// reduction.leaves, for which a leaf holds whole rows and, in sparse models, whole groups of moe.group_rows, and for
/// which batch.microbatch_rows, if given, is a power of two of leaves. 0 where that is fewer than two, and on GPUs,
/// whose kernels know no leaves yet.
std::int64_t leaves_of(const Deck& deck);
/// Whether leaves shape the sums over a world of so many ranks, which must divide them.
bool uses_leaves(const Deck& deck, std::int64_t ranks);

/// Checks what depends on several keys and on the number of ranks: rows divide by ranks and microbatches, experts by
/// the expert degree, the world by the expert degree, files exist. Throws UsageError listing all problems with the
/// arithmetic. `world_size` 0 skips what depends on it. `more`: problems that were found elsewhere, to be listed too.
void check_deck(const Deck& deck, int world_size, const std::vector<std::string>& more = {});

/// The texts of evaluate.stop: separated by |, where \n, \t, \| and \\ stand for line end, tab, | and \.
/// Throws UsageError naming the key when one is empty or another character is escaped.
std::vector<std::string> stop_strings(const EvaluateDeck& evaluate);

/// The resolved deck as an INI text that parse_deck reads back to the same values; table order.
std::string print_deck(const Deck& deck);
/// 64-bit hash of print_deck, to compare ranks and restarts.
std::uint64_t hash_deck(const Deck& deck);
/// Help of one key, or of all keys when empty. Throws UsageError with the nearest name when unknown.
std::string describe_keys(const std::string& key);
/// The text of input/README.md.
std::string deck_reference();

}  // namespace flanmoe
