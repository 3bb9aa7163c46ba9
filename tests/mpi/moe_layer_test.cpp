// A sparse layer alone: who goes where, with hand-made routers and experts whose answers tell who answered. The router
// matrix is the identity, so that inputs are logits; expert e answers (e+1) x.
#include "moe/moe_layer.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "parallel/process_grid.hpp"

namespace flanmoe {
namespace {

constexpr std::int64_t kExperts = 12;  // divides by 1, 2, 3 and 4 ranks; also the width

using Logits = std::vector<double>;             // of one token
using Rows = std::vector<std::vector<Logits>>;  // tokens by row

/// 4 for the first expert, 3 for the second, 1 for the others.
Logits wants(std::int64_t first, std::int64_t second) {
  Logits logits(kExperts, 1.0);
  logits[std::size_t(first)] = 4.0;
  logits[std::size_t(second)] = 3.0;
  return logits;
}

/// Twelve rows, four kinds in turn.
Rows hand_rows() {
  Rows rows;
  for (std::int64_t i = 0; i < 3; ++i) {
    const std::int64_t a = i, b = i + 1;
    rows.push_back({wants(a, b)});                                   // one token
    rows.push_back({wants(5, 7), wants(5, 7), wants(5, 7)});         // one expert that everybody wants
    rows.push_back({Logits(kExperts, 2.0), Logits(kExperts, 2.0)});  // ties
    rows.push_back({wants(a, b), wants(b, a)});                      // second choices that are first choices of others
  }
  return rows;
}

double get(const Tensor& t, std::int64_t row, std::int64_t col) {
  switch (t.dtype) {
    case DType::f32: return double(t.row<float>(row)[col]);
    case DType::f64: return t.row<double>(row)[col];
    case DType::bf16: return double(float(t.row<bf16>(row)[col]));
    case DType::i32: return double(t.row<std::int32_t>(row)[col]);
  }
  return 0;
}
void set(const Tensor& t, std::int64_t row, std::int64_t col, double value) {
  if (t.dtype == DType::f32) t.row<float>(row)[col] = float(value);
  if (t.dtype == DType::f64) t.row<double>(row)[col] = value;
  if (t.dtype == DType::bf16) t.row<bf16>(row)[col] = bf16(float(value));
}

Deck hand_deck() {
  Deck deck;
  deck.model.width = deck.model.hidden = kExperts;
  deck.model.activation = "relu";
  deck.moe.router = "top_k";
  deck.moe.experts = kExperts;
  deck.moe.top_k = 2;
  deck.moe.capacity_factor = deck.moe.capacity_factor_eval = 1.0;  // with few tokens: min_capacity
  deck.moe.min_capacity = 1;
  return deck;
}

/// The cpu's operations, which note whether products may be in TF32: one product for the router, grouped ones for the
/// experts.
struct Noted {
  static inline std::vector<bool> products, grouped;
  static const Kernels& kernels() {
    static const Kernels& k = kernels_for("cpu");
    static const MatmulKernels matmul{[](KernelContext& c, const Tensor& y, const Tensor& a, Transpose ta,
                                         const Tensor& b, Transpose tb, float beta) {
                                        products.push_back(c.tf32);
                                        k.matmul.product(c, y, a, ta, b, tb, beta);
                                      },
                                      [](KernelContext& c, const Tensor& y, const Tensor& x, const Tensor& w,
                                         Transpose tw, std::span<const std::int64_t> first) {
                                        grouped.push_back(c.tf32);
                                        k.matmul.grouped(c, y, x, w, tw, first);
                                      },
                                      k.matmul.grouped_weight_gradient, nullptr, k.matmul.scratch_bytes};
    static const Kernels noting{k.device,    k.transfer,         matmul,          k.norm,       k.layer_norm,
                                k.attention, k.relative_bias,    k.rotary,        k.activation, k.column_scale,
                                k.dropout,   k.embedding,        k.cross_entropy, k.router,     k.permute,
                                k.optimizer, k.adafactor_blocks, k.elementwise};
    return noting;
  }
};

/// One sparse layer over an expert group, and what it did with the rows of this rank.
class Rig {
 public:
  Rig(const Deck& deck, const Communicator& world, const std::string& device, DType compute, const Rows& rows)
      : deck_(deck),
        grid_(world.size(), world.rank(), world.size()),
        communicators_(Communicators::make(world, grid_)),
        k_(device == "noting" ? Noted::kernels() : kernels_for(device)),
        store_(specs(), grid_.coordinates(), compute),
        dispatcher_(communicators_.expert, deck),
        layer_{{0, 3, {0, 1, 2, 0}, {}}, routing_of(deck.moe, true), 4, 1} {
    const auto mine = std::int64_t(rows.size()) / world.size();
    first_row_ = mine * world.rank();
    rows_.assign(rows.begin() + first_row_, rows.begin() + first_row_ + mine);
    bind(std::int64_t(rows.size()));
    lay(compute);
    fill();
  }

  void forward(bool training) {
    const LayerContext c{context_, k_, store_, deck_, training, 6};
    statistics_ = {};
    moe_forward(c, y_TD_, saved_, work_, dispatcher_, x_TD_, layer_, groups_, statistics_);
  }
  /// Experts that got token t of row r (global), ascending.
  std::set<int> experts_of(std::int64_t r, std::int64_t t) const {
    std::set<int> experts;
    const std::int64_t token = groups_.first_token[std::size_t(r - first_row_)] + t;
    for (std::int64_t j = 0; j < saved_.router.kept_Tk.cols; ++j) {
      if (get(saved_.router.kept_Tk, token, j) != 0) experts.insert(int(get(saved_.router.choice_Tk, token, j)));
    }
    return experts;
  }
  /// What the layer must answer, by the combine weights and by who got the token.
  void expect_answers() const {
    for (std::int64_t t = 0; t < groups_.tokens(); ++t) {
      double factor = 0;
      for (std::int64_t j = 0; j < saved_.router.kept_Tk.cols; ++j) {
        if (get(saved_.router.kept_Tk, t, j) == 0) continue;
        factor += get(saved_.router.weight_Tk, t, j) * (get(saved_.router.choice_Tk, t, j) + 1);
      }
      for (std::int64_t d = 0; d < kExperts; ++d) {
        const double want = factor * get(x_TD_, t, d);
        ASSERT_NEAR(get(y_TD_, t, d), want, 1e-5 * (1 + want)) << "token " << t;
      }
    }
  }
  std::vector<double> answers() const {
    std::vector<double> all;
    for (std::int64_t t = 0; t < groups_.tokens(); ++t) {
      for (std::int64_t d = 0; d < kExperts; ++d) all.push_back(get(y_TD_, t, d));
    }
    return all;
  }
  bool holds(std::int64_t row) const { return row >= first_row_ && row < first_row_ + std::int64_t(rows_.size()); }
  void set_weight(int parameter, std::int64_t row, std::int64_t col, double value) {
    set(store_.weight(parameter).matrix(0), row, col, value);
  }
  KernelContext& context() { return context_; }
  const RouterActivations& router() const { return saved_.router; }
  const MoeLayerStatistics& statistics() const { return statistics_; }
  const Tensor& x() const { return x_TD_; }
  const Tensor& y() const { return y_TD_; }
  std::int64_t first_row() const { return first_row_; }

 private:
  static std::vector<ParameterSpec> specs() {
    const std::int64_t E = kExperts;
    return {{"router", 1, E, E, Placement::dense, InitKind::zeros, 0, true},
            {"up", E, E, E, Placement::expert, InitKind::zeros, 0, false},
            {"down", E, E, E, Placement::expert, InitKind::zeros, 0, false},
            {"router_bias", 1, 1, E, Placement::dense, InitKind::zeros, 0, true}};
  }
  void bind(std::int64_t step_rows) {
    groups_.first_token.assign(1, 0);
    for (std::size_t r = 0; r < rows_.size(); ++r) {
      for (std::size_t t = 0; t < rows_[r].size(); ++t) {
        row_T_.push_back(first_row_ + std::int64_t(r));
        position_T_.push_back(std::int32_t(t));
      }
      groups_.first_token.push_back(std::int64_t(row_T_.size()));
    }
    leaf_token_ = {0, groups_.tokens()};
    groups_.leaf_token = leaf_token_;
    groups_.row_T = row_T_;
    groups_.position_T = position_T_;
    groups_.step_groups = step_rows;
  }
  void lay(DType compute) {
    const std::int64_t tokens = std::max<std::int64_t>(40, groups_.tokens()), groups = std::int64_t(rows_.size());
    const std::int64_t ranks = grid_.expert_size();
    const RowLimits limits = row_limits(deck_.moe, layer_.routing, true, ranks, tokens, groups);
    for (const bool real : {false, true}) {
      store_.lay(memory_, nullptr);
      x_TD_ = memory_.allocate(compute, groups_.tokens(), kExperts);
      y_TD_ = memory_.allocate(compute, groups_.tokens(), kExperts);
      saved_.lay(memory_, deck_, layer_.routing, compute, tokens, groups, 1, limits, ranks);
      work_.lay(memory_, deck_, layer_.routing.columns, compute, tokens, groups, 1, limits);
      dispatcher_.lay(memory_, k_.transfer, compute, limits.received, kExperts, 1);
      if (real) break;
      const std::size_t bytes = k_.matmul.scratch_bytes() + k_.router.scratch_bytes(tokens, kExperts) + 4096;
      scratch_.allocate(DType::f64, 1, std::int64_t(bytes / 8));
      for (Arena* arena : {&memory_, &scratch_}) {
        arena->commit();
        arena->rewind();
      }
    }
    context_.scratch = &scratch_;
  }
  void fill() {
    for (std::int64_t d = 0; d < kExperts; ++d) {
      set_weight(0, d, d, 1.0);
      for (std::int64_t e = 0; e < store_.local_experts(1); ++e) {
        set(store_.weight(1).matrix(e), d, d, 1.0);
        set(store_.weight(2).matrix(e), d, d, double(store_.first_expert(2) + e + 1));
      }
    }
    std::int64_t t = 0;
    for (const auto& row : rows_) {
      for (const Logits& logits : row) {
        for (std::int64_t d = 0; d < kExperts; ++d) set(x_TD_, t, d, logits[std::size_t(d)]);
        ++t;
      }
    }
  }

  Deck deck_;
  ProcessGrid grid_;
  Communicators communicators_;
  const Kernels& k_;
  ParameterStore store_;
  Dispatcher dispatcher_;
  MoeLayer layer_;
  Rows rows_;
  std::int64_t first_row_ = 0;
  std::vector<std::int64_t> row_T_, leaf_token_;
  std::vector<std::int32_t> position_T_;
  RoutingGroups groups_;
  Arena memory_{"memory"}, scratch_{"scratch"};
  KernelContext context_;
  Tensor x_TD_, y_TD_;
  MoeActivations saved_;
  MoeWork work_;
  MoeLayerStatistics statistics_;
};

/// Runs on reference and cpu, over all ranks and alone; checks what the experts answered, that the devices and the
/// layouts agree to the bit on who goes where, and calls check(rig) for hand-made expectations.
template <class F>
void on_all_paths(const Deck& deck, const Rows& rows, bool training, const F& check) {
  const Communicator world = Communicator::world();
  const Communicator alone = world.split(world.rank(), 0, "alone");
  // 5 chunks of 12, 6, 4 or 3 experts: of unequal sizes, and less than asked for.
  Deck chunked = deck;
  chunked.moe.dispatch_chunks = 5;
  for (const auto& [device, spread] : {std::pair{"reference", deck}, {"cpu", deck}, {"cpu", chunked}}) {
    SCOPED_TRACE(fmt::format("{}, {} chunks", device, spread.moe.dispatch_chunks));
    Rig one(deck, alone, device, DType::f32, rows), all(spread, world, device, DType::f32, rows);
    for (Rig* rig : {&one, &all}) {
      rig->forward(training);
      rig->expect_answers();
      check(*rig);
    }
    for (std::int64_t r = 0; r < std::int64_t(rows.size()); ++r) {
      if (!all.holds(r)) continue;
      for (std::int64_t t = 0; t < std::int64_t(rows[std::size_t(r)].size()); ++t) {
        EXPECT_EQ(all.experts_of(r, t), one.experts_of(r, t)) << "row " << r << " token " << t;
      }
    }
    // A row of a product has the same bits whoever computes it; so have the answers.
    std::int64_t before = 0;
    for (std::int64_t r = 0; r < all.first_row(); ++r) before += std::int64_t(rows[std::size_t(r)].size());
    const std::vector<double> mine = all.answers(), whole = one.answers();
    for (std::size_t i = 0; i < mine.size(); ++i) ASSERT_EQ(mine[i], whole[std::size_t(before * kExperts) + i]) << i;
  }
}

using Experts = std::set<int>;

/// expected[r][t] for the rows of hand_rows().
void expect_experts(const Rig& rig, const std::vector<std::vector<Experts>>& expected) {
  for (std::size_t r = 0; r < expected.size(); ++r) {
    if (!rig.holds(std::int64_t(r))) continue;
    for (std::size_t t = 0; t < expected[r].size(); ++t) {
      EXPECT_EQ(rig.experts_of(std::int64_t(r), std::int64_t(t)), expected[r][t]) << "row " << r << " token " << t;
    }
  }
}

TEST(MoeLayer, ChunksOfExperts) {
  Deck deck = hand_deck();  // 12 experts
  EXPECT_EQ(dispatch_chunks(deck, 2), 1);
  deck.run.device = "cuda";
  EXPECT_EQ(dispatch_chunks(deck, 1), 1) << "nothing travels";
  EXPECT_EQ(dispatch_chunks(deck, 2), 2);
  EXPECT_EQ(dispatch_chunks(deck, 12), 1) << "an expert each";
  for (const char* device : {"cpu", "cuda"}) {
    deck.run.device = device;
    deck.moe.dispatch_chunks = 4;
    EXPECT_EQ(dispatch_chunks(deck, 1), 1);
    EXPECT_EQ(dispatch_chunks(deck, 2), 4);
    EXPECT_EQ(dispatch_chunks(deck, 4), 3);
  }
}

TEST(MoeLayer, Top2WithOneSlotByHand) {
  on_all_paths(hand_deck(), hand_rows(), true, [](const Rig& rig) {
    std::vector<std::vector<Experts>> expected;
    for (int i = 0; i < 3; ++i) {
      expected.push_back({{i, i + 1}});
      expected.push_back({{5, 7}, {}, {}});
      expected.push_back({{0, 1}, {}});    // ties go to the lower experts
      expected.push_back({{i}, {i + 1}});  // second choices find the slots taken
    }
    expect_experts(rig, expected);
  });
}

TEST(MoeLayer, Top1AndNoSecondChoicesAreTheSameByHand) {
  Deck one = hand_deck(), none = hand_deck();
  one.moe.top_k = 1;
  none.moe.second_policy = "none";
  for (const Deck& deck : {one, none}) {
    on_all_paths(deck, hand_rows(), true, [](const Rig& rig) {
      std::vector<std::vector<Experts>> expected;
      for (int i = 0; i < 3; ++i) {
        expected.push_back({{i}});
        expected.push_back({{5}, {}, {}});
        expected.push_back({{0}, {}});
        expected.push_back({{i}, {i + 1}});
      }
      expect_experts(rig, expected);
    });
  }
}

TEST(MoeLayer, ThresholdOfRenormalizedWeightsByHand) {
  Deck deck = hand_deck();
  deck.moe.renormalize = true;
  deck.moe.second_policy = "threshold";
  deck.moe.second_threshold = 0.3;  // e^3 / (e^4 + e^3) = 0.269 stays below, the ties' 0.5 above
  deck.moe.capacity_factor = 0;     // all slots
  on_all_paths(deck, hand_rows(), true, [](const Rig& rig) {
    std::vector<std::vector<Experts>> expected;
    for (int i = 0; i < 3; ++i) {
      expected.push_back({{i}});
      expected.push_back({{5}, {5}, {5}});
      expected.push_back({{0, 1}, {0, 1}});
      expected.push_back({{i}, {i + 1}});
    }
    expect_experts(rig, expected);
  });
}

TEST(MoeLayer, ExpertChoiceByHand) {
  Deck deck = hand_deck();
  deck.moe.router = "expert_choice";
  Experts every;
  for (int e = 0; e < int(kExperts); ++e) every.insert(e);
  on_all_paths(deck, hand_rows(), true, [&](const Rig& rig) {
    std::vector<std::vector<Experts>> expected;
    for (int i = 0; i < 3; ++i) {
      Experts rest = every;
      rest.erase(i + 1);
      expected.push_back({every});          // a token alone goes to every expert
      expected.push_back({every, {}, {}});  // equal tokens: the earlier one, for each expert
      expected.push_back({every, {}});
      expected.push_back({rest, {i + 1}});  // each expert takes the token that wants it more, ties to the earlier
    }
    expect_experts(rig, expected);
    double unrouted = 0;
    for (const double load : rig.statistics().load_E) EXPECT_EQ(load, rig.statistics().load_E[0]);
    for (std::int64_t r = 0; r < 12; ++r) unrouted += rig.holds(r) ? (r % 4 == 1 ? 2 : r % 4 == 2 ? 1 : 0) : 0;
    EXPECT_EQ(rig.statistics().unrouted, unrouted);
    EXPECT_EQ(rig.statistics().dropped, 0);
    EXPECT_EQ(rig.statistics().balance, 0);
  });
}

TEST(MoeLayer, AllExpertsWhenKIsE) {
  Deck deck = hand_deck();
  deck.moe.top_k = kExperts;
  deck.moe.capacity_factor = 0;
  on_all_paths(deck, hand_rows(), true, [](const Rig& rig) {
    for (std::int64_t r = 0; r < 12; ++r) {
      if (!rig.holds(r)) continue;
      EXPECT_EQ(rig.experts_of(r, 0).size(), std::size_t(kExperts));
    }
    EXPECT_EQ(rig.statistics().unrouted, 0);
  });
}

TEST(MoeLayer, ChoicesInTurnLoadExpertsEvenly) {
  Deck deck = hand_deck();
  deck.moe.forced_balance = true;
  deck.moe.capacity_factor = 0;
  Rows rows(12, std::vector<Logits>(6, wants(3, 4)));
  on_all_paths(deck, rows, true, [](const Rig& rig) {
    for (const double load : rig.statistics().load_E) EXPECT_EQ(load, rig.statistics().load_E[0]);
    EXPECT_GT(rig.statistics().load_E[0], 0);
  });
}

TEST(MoeLayer, LossesByHand) {
  const Communicator alone = Communicator::world().split(Communicator::world().rank(), 0, "alone");
  const Rows rows = {{wants(0, 1), wants(0, 2)}};
  const double sum = std::exp(4.0) + std::exp(3.0) + 10 * std::exp(1.0);
  const double p4 = std::exp(4.0) / sum, p3 = std::exp(3.0) / sum, p1 = std::exp(1.0) / sum;
  struct Case {
    const char *choices, *scale;
    double balance;
  };
  // Both tokens choose expert 0 first: share 1, mean probability p4. Experts 1 and 2 are the second choice of one of
  // two tokens each: share 1/2, mean probability (p3 + p1) / 2.
  for (const Case& c : {Case{"all", "switch", 12 * (p4 + 2 * 0.5 * (p3 + p1) / 2)},
                        {"first", "switch", 12 * p4},
                        {"first", "gshard", p4 / 12}}) {
    for (const char* device : {"reference", "cpu"}) {
      Deck deck = hand_deck();
      deck.moe.balance_choices = c.choices;
      deck.moe.balance_scale = c.scale;
      Rig rig(deck, alone, device, DType::f32, rows);
      rig.forward(true);
      EXPECT_NEAR(rig.statistics().balance, c.balance, 1e-5) << c.choices << " " << c.scale;
      EXPECT_NEAR(rig.statistics().z, 2 * std::log(sum) * std::log(sum), 1e-4);  // divided by the tokens of the step: 1
      // One slot an expert: token 1 loses its first choice, and both keep their second one.
      EXPECT_EQ(rig.statistics().dropped, 1);
      EXPECT_EQ(rig.statistics().unrouted, 0);
      EXPECT_EQ(rig.statistics().tokens, 2);
    }
  }
}

TEST(MoeLayer, TheBiasMovesChoices) {
  const Communicator alone = Communicator::world().split(Communicator::world().rank(), 0, "alone");
  Deck deck = hand_deck();
  deck.moe.bias_rate = 0.1;
  deck.moe.top_k = 1;
  deck.moe.capacity_factor = 0;
  Rig rig(deck, alone, "cpu", DType::f32, hand_rows());
  rig.set_weight(3, 0, 9, 1.0);  // a probability is never as large
  rig.forward(true);
  EXPECT_EQ(rig.experts_of(0, 0), Experts{9});
  EXPECT_EQ(rig.statistics().load_E[9], 24.0);
  EXPECT_LT(get(rig.router().weight_Tk, 0, 0), 0.1) << "the weight is the probability, without the bias";
}

TEST(MoeLayer, TheRouterOfABf16RunSeesFp32Weights) {
  const Communicator alone = Communicator::world().split(Communicator::world().rank(), 0, "alone");
  Deck deck = hand_deck();
  deck.moe.top_k = 1;
  Rows rows(1, {Logits(kExperts, 0.0)});
  rows[0][0][0] = 1.0;
  Rig rig(deck, alone, "cpu", DType::bf16, rows);
  rig.set_weight(0, 0, 2, 1.0 + 0x1p-12);  // rounds to 1 in bf16, where expert 0 would win the tie
  rig.forward(true);
  EXPECT_EQ(rig.experts_of(0, 0), Experts{2});
}

TEST(MoeLayer, TheRouterOfATf32RunMultipliesInFp32) {
  Rig rig(hand_deck(), Communicator::world(), "noting", DType::f32, hand_rows());
  rig.context().tf32 = true;
  Noted::products.clear();
  Noted::grouped.clear();
  rig.forward(true);
  EXPECT_EQ(Noted::products, std::vector<bool>{false});
  EXPECT_EQ(Noted::grouped, (std::vector<bool>{true, true}));
  EXPECT_TRUE(rig.context().tf32);
}

TEST(MoeLayer, ExpertDropoutHasOneMaskForAllTokensOfAnExpert) {
  const Communicator alone = Communicator::world().split(Communicator::world().rank(), 0, "alone");
  Deck deck = hand_deck();
  deck.moe.top_k = 1;
  deck.moe.capacity_factor = 0;
  deck.moe.expert_dropout = 0.5;
  Rows rows;
  for (int r = 0; r < 4; ++r) rows.push_back({wants(1, 2), wants(2, 1), wants(1, 3)});
  Rig rig(deck, alone, "cpu", DType::f32, rows);
  rig.forward(true);
  const auto dropped = [&](std::int64_t t) {
    std::set<std::int64_t> columns;
    for (std::int64_t d = 0; d < kExperts; ++d) {
      if (get(rig.y(), t, d) == 0) columns.insert(d);
    }
    return columns;
  };
  for (std::int64_t t = 0; t < 12; ++t) EXPECT_EQ(dropped(t), dropped(t % 3 == 1 ? 1 : 0)) << t;
  EXPECT_NE(dropped(0), dropped(1));
  EXPECT_GT(dropped(0).size(), 0U);
  rig.forward(false);
  EXPECT_EQ(dropped(0).size(), 0U);
}

}  // namespace
}  // namespace flanmoe
