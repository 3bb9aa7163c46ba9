#include "optimizer/optimizer.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>

#include "optimizer_fixture.hpp"
#include "tensor/philox.hpp"

namespace flanmoe {
namespace {

using test::degrees_of;
using test::Rig;
using test::rig_deck;

double gradient_value(int rank, const std::string& name, std::int64_t expert, std::int64_t i, std::int64_t step) {
  const RandomKey key{hash_name(name), RandomPurpose::test, std::uint32_t(step), std::uint32_t(expert)};
  return double(key.uniform(std::uint64_t(rank), std::uint32_t(i))) - 0.5;
}

void zero_gradients(Rig& rig) {
  for (const Placement placement : {Placement::dense, Placement::expert}) {
    rig.kernels.elementwise.zero(rig.context, rig.store.gradient_flat(placement));
  }
}

template <class A>
void fill_gradients(Rig& rig, std::int64_t step) {
  for (int p = 0; p < rig.parameters(); ++p) {
    for (std::int64_t e = 0; e < rig.store.local_experts(p); ++e) {
      const auto g = rig.store.gradient(p, e).flat<A>();
      for (std::size_t i = 0; i < g.size(); ++i) {
        g[i] = A(gradient_value(rig.communicators.world.rank(), rig.spec(p).name, rig.store.first_expert(p) + e,
                                std::int64_t(i), step));
      }
    }
  }
}

/// One matrix of the model on its own: what the update of the whole model must do to it.
template <class A>
struct SerialUnit {
  int parameter = 0;
  std::int64_t expert = 0;  // global
  std::vector<A> p, m, v, row, col, g;
};

template <class A>
class SerialModel {
 public:
  SerialModel(const Rig& rig, const OptimizerDeck& deck) : rig_(rig), deck_(deck) {
    for (int p = 0; p < rig.parameters(); ++p) {
      const ParameterSpec& spec = rig.spec(p);
      const auto n = std::size_t(spec.matrix_size());
      for (std::int64_t e = 0; e < spec.experts; ++e) {
        SerialUnit<A> unit{p,
                           e,
                           std::vector<A>(n),
                           std::vector<A>(n),
                           std::vector<A>(n),
                           std::vector<A>(std::size_t(spec.rows)),
                           std::vector<A>(std::size_t(spec.cols)),
                           std::vector<A>(n)};
        initialize_matrix(make_tensor(unit.p.data(), spec.rows, spec.cols), spec, e, 5);
        units.push_back(std::move(unit));
      }
    }
    scratch_.allocate(DType::f64, 1, 100000);
    scratch_.commit();
  }

  /// Returns the norm.
  double step(std::int64_t step, double rate) {
    double sum = 0.0;
    for (SerialUnit<A>& unit : units) {
      sum_gradients(unit, step);
      const ParameterSpec& spec = rig_.spec(unit.parameter);
      const Tensor g = make_tensor(unit.g.data(), spec.rows, spec.cols);
      const std::int64_t block = spec.block_rows > 0 ? spec.block_rows : spec.rows;
      for (std::int64_t row = 0; row < spec.rows; row += block) {
        std::array<double, 1> squares{};
        rig_.kernels.optimizer.sums_of_squares(context_, squares,
                                               std::array{g.slice_rows(row, std::min(block, spec.rows - row))});
        sum += squares[0];
      }
    }
    const double norm = std::sqrt(sum);
    const double scale = deck_.clip_norm > 0 ? std::min(1.0, deck_.clip_norm / norm) : 1.0;
    for (SerialUnit<A>& unit : units) update(unit, step, rate, scale);
    return norm;
  }

  std::vector<SerialUnit<A>> units;

 private:
  /// Replicas in rank order, added as ((0+1)+(2+3)).
  void sum_gradients(SerialUnit<A>& unit, std::int64_t step) {
    const ParameterSpec& spec = rig_.spec(unit.parameter);
    const int degree = rig_.grid.expert_size();
    const bool dense = spec.placement == Placement::dense;
    const int holder = dense ? 0 : int(unit.expert / (spec.experts / degree));
    for (std::size_t i = 0; i < unit.g.size(); ++i) {
      std::vector<A> values;
      for (int r = holder; r < rig_.grid.world_size(); r += dense ? 1 : degree) {
        values.push_back(A(gradient_value(r, spec.name, unit.expert, std::int64_t(i), step)));
      }
      const A a = values.size() > 1 ? values[0] + values[1] : values[0];
      unit.g[i] = values.size() == 3 ? a + values[2] : values.size() == 4 ? a + (values[2] + values[3]) : a;
    }
  }

  void update(SerialUnit<A>& unit, std::int64_t step, double rate, double scale) {
    const ParameterSpec& spec = rig_.spec(unit.parameter);
    const auto view = [&](std::vector<A>& x) { return make_tensor(x.data(), spec.rows, spec.cols); };
    const OptimizerKernels& k = rig_.kernels.optimizer;
    const bool decays = spec.name != "encoder/relative_bias" && spec.rows > 1;
    const double decay = decays ? deck_.weight_decay : 0.0;
    if (deck_.name == "adamw") {
      k.adamw(context_, std::array{AdamWMatrix{view(unit.p), view(unit.m), view(unit.v), view(unit.g)}},
              {rate, deck_.beta1, deck_.beta2, deck_.epsilon, decay, step, scale});
      return;
    }
    const AdafactorStep now{rate,
                            1.0 - std::pow(double(step + 1), -deck_.decay_exponent),
                            1e-30,
                            1e-3,
                            deck_.clip_threshold,
                            deck_.multiply_by_parameter_scale,
                            decay,
                            scale};
    if (spec.block_rows > 0) {
      update_in_blocks(unit, now);
    } else if (spec.placement == Placement::expert || spec.name == "logits") {
      const Tensor row = make_tensor(unit.row.data(), spec.rows, 1), col = make_tensor(unit.col.data(), 1, spec.cols);
      k.adafactor(context_, std::array{AdafactorMatrix{view(unit.p), view(unit.g), row, col, {}}}, now);
    } else {
      k.adafactor(context_, std::array{AdafactorMatrix{view(unit.p), view(unit.g), {}, {}, view(unit.v)}}, now);
    }
  }

  void update_in_blocks(SerialUnit<A>& unit, const AdafactorStep& step) {
    const ParameterSpec& spec = rig_.spec(unit.parameter);
    const AdafactorBlockKernels& k = rig_.kernels.adafactor_blocks;
    const BlockCut cut{spec.rows, spec.block_rows};
    const auto view = [](std::vector<A>& x, std::int64_t rows) {
      return make_tensor(x.data(), rows, std::int64_t(x.size()) / rows);
    };
    const Tensor p = view(unit.p, spec.rows), g = view(unit.g, spec.rows), row = view(unit.row, spec.rows);
    const Tensor col = view(unit.col, 1);
    std::vector<double> sums(std::size_t(spec.blocks() * (spec.cols + 2))), totals(std::size_t(spec.cols + 2));
    std::vector<double> squares(std::size_t(spec.blocks())), square(1);
    const Tensor sums_b = make_tensor(sums.data(), spec.blocks(), spec.cols + 2);
    const Tensor total = make_tensor(totals.data(), 1, spec.cols + 2);
    const Tensor squares_b = make_tensor(squares.data(), spec.blocks(), 1), square_1 = make_tensor(square.data(), 1, 1);
    k.sums(context_, sums_b, row, p, g, cut, step);
    k.add(context_, total, sums_b);
    k.update_sums(context_, squares_b, row, col, g, total, cut, step);
    k.add(context_, square_1, squares_b);
    k.apply(context_, p, row, col, g, total, square_1, cut, step);
  }

  const Rig& rig_;
  OptimizerDeck deck_;
  Arena scratch_{"serial scratch"};
  KernelContext context_{.scratch = &scratch_};
};

/// Working weights of this rank equal the serial masters, converted to C where the parameter is not kept precise.
template <class A, class C>
void expect_weights(const Rig& rig, const SerialModel<A>& serial) {
  for (const SerialUnit<A>& unit : serial.units) {
    const std::int64_t local = unit.expert - rig.store.first_expert(unit.parameter);
    if (local < 0 || local >= rig.store.local_experts(unit.parameter)) continue;
    const ParameterSpec& spec = rig.spec(unit.parameter);
    const Tensor weight = rig.store.weight(unit.parameter).matrix(local);
    for (std::size_t i = 0; i < unit.p.size(); ++i) {
      const double found = spec.full_precision ? double(weight.flat<A>()[i]) : double(A(weight.flat<C>()[i]));
      const double expected = spec.full_precision ? double(unit.p[i]) : double(A(C(unit.p[i])));
      ASSERT_EQ(found, expected) << spec.name << ", expert " << unit.expert << ", element " << i;
    }
  }
}

template <class A, class C>
void expect_steps_equal_serial(const OptimizerDeck& deck, DType compute, const std::string& device) {
  const Communicator world = Communicator::world();
  for (const int degree : degrees_of(world.size())) {
    SCOPED_TRACE(fmt::format("{} {} degree {}", deck.name, device, degree));
    Rig rig(world, degree, deck, compute, device);
    SerialModel<A> serial(rig, deck);
    rig.optimizer.initialize(rig.context, 5);
    expect_weights<A, C>(rig, serial);
    for (std::int64_t step = 0; step < 3; ++step) {
      fill_gradients<A>(rig, step);
      const Optimizer::StepResult result = rig.optimizer.step(rig.context, step, 0.01);
      const double norm = serial.step(step, 0.01);

      EXPECT_TRUE(result.finite);
      EXPECT_EQ(result.gradient_norm, norm);
      expect_weights<A, C>(rig, serial);
    }
  }
}

TEST(Optimizer, StepsEqualSerialUpdatesOfTheWholeModelBitForBit) {
  for (const char* device : {"reference", "cpu"}) {
    for (const char* name : {"adafactor", "adamw"}) {
      OptimizerDeck deck = rig_deck(name);
      deck.weight_decay = 0.1;
      deck.clip_norm = 3.0;  // below the norm of these gradients
      expect_steps_equal_serial<float, float>(deck, DType::f32, device);
      deck.clip_norm = 1e6;  // above it
      expect_steps_equal_serial<float, bf16>(deck, DType::bf16, device);
    }
  }
}

std::vector<char> bytes_of(const Rig& rig) {
  std::vector<char> all;
  const auto append = [&](const Tensor& t) {
    all.insert(all.end(), static_cast<char*>(t.data), static_cast<char*>(t.data) + t.bytes());
  };
  for (int p = 0; p < rig.parameters(); ++p) append(rig.store.weight(p));
  rig.optimizer.visit_state([&](const StateTensor& s) { append(s.tensor); });
  return all;
}

/// The bf16 working weights of this rank are what the reference rounds the serial masters to in front of `step`.
void expect_rounded_weights(const Rig& rig, SerialModel<float>& serial, std::uint64_t seed, std::uint32_t step) {
  const RandomKey key{seed, RandomPurpose::rounding, step, 0};
  for (SerialUnit<float>& unit : serial.units) {
    const ParameterSpec& spec = rig.spec(unit.parameter);
    const std::int64_t local = unit.expert - rig.store.first_expert(unit.parameter);
    if (spec.full_precision || local < 0 || local >= rig.store.local_experts(unit.parameter)) continue;
    std::vector<bf16> expected(unit.p.size());
    KernelContext none;
    reference::optimizer_kernels.write_weights(none,
                                               std::array{WeightCopy{make_tensor(expected.data(), spec.rows, spec.cols),
                                                                     make_tensor(unit.p.data(), spec.rows, spec.cols),
                                                                     hash_name(spec.name), std::uint32_t(unit.expert)}},
                                               &key);
    const auto found = rig.store.weight(unit.parameter).matrix(local).flat<bf16>();
    for (std::size_t i = 0; i < expected.size(); ++i) {
      ASSERT_EQ(found[i].bits, expected[i].bits) << spec.name << ", expert " << unit.expert << ", element " << i;
    }
  }
}

TEST(Optimizer, WeightsRoundedAtRandomAreTheSameInEveryLayoutAndAfterARestart) {
  const Communicator world = Communicator::world();
  OptimizerDeck deck = rig_deck("adafactor");
  deck.stochastic_rounding = true;
  for (const int degree : degrees_of(world.size())) {
    Rig rig(world, degree, deck, DType::bf16, "cpu", test::rig_parameters(), 9);
    SerialModel<float> serial(rig, deck);
    rig.optimizer.initialize(rig.context, 5);
    expect_rounded_weights(rig, serial, 9, 0);
    for (std::int64_t step = 0; step < 2; ++step) {
      fill_gradients<float>(rig, step);
      rig.optimizer.step(rig.context, step, 0.01);
      serial.step(step, 0.01);
      expect_rounded_weights(rig, serial, 9, std::uint32_t(step + 1));
    }
    // A restart from a checkpoint of two steps publishes the masters again; one step further they are rounded anew.
    const std::vector<char> before = bytes_of(rig);
    rig.optimizer.publish_weights(rig.context, 2);
    EXPECT_EQ(bytes_of(rig), before);
    rig.optimizer.publish_weights(rig.context, 3);
    EXPECT_NE(bytes_of(rig), before);
  }
}

TEST(Optimizer, KeepsDoubleMastersInDoubleRuns) {
  expect_steps_equal_serial<double, double>(rig_deck("adafactor"), DType::f64, "reference");
  expect_steps_equal_serial<double, double>(rig_deck("adamw"), DType::f64, "reference");
}

TEST(Optimizer, NormCountsEveryParameterOnceInEveryLayout) {
  const Communicator world = Communicator::world();
  for (const int degree : degrees_of(world.size())) {
    Rig rig(world, degree, rig_deck("adamw"));
    rig.optimizer.initialize(rig.context, 5);
    zero_gradients(rig);
    double expected = 0.0;
    for (int p = 0; p < rig.parameters(); ++p) {
      expected += double(rig.spec(p).global_size());
      const int replica = rig.store.replica_rank(rig.spec(p).placement);
      for (std::int64_t e = 0; e < rig.store.local_experts(p) && replica == 0; ++e) {
        for (float& g : rig.store.gradient(p, e).flat<float>()) g = 1.0F;
      }
    }

    EXPECT_EQ(rig.optimizer.step(rig.context, 0, 0.01).gradient_norm, std::sqrt(expected)) << "degree " << degree;
  }
}

/// The next contribution to each gradient is the first one.
bool gradients_are_forgotten(Rig& rig) {
  bool all = true;
  for (int p = 0; p < rig.parameters(); ++p) all = rig.store.first_contribution(p) && all;
  return all;
}

TEST(Optimizer, ANonFiniteGradientOnOneRankChangesNothingAnywhere) {
  const Communicator world = Communicator::world();
  for (const float poison : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    for (const char* parameter : {"encoder/layer_00/norm", "encoder/layer_00/expert_down"}) {
      Rig rig(world, world.size(), rig_deck("adafactor"));
      rig.optimizer.initialize(rig.context, 5);
      fill_gradients<float>(rig, 0);
      EXPECT_TRUE(rig.optimizer.step(rig.context, 0, 0.01).finite);
      EXPECT_TRUE(gradients_are_forgotten(rig));
      const std::vector<char> before = bytes_of(rig);

      fill_gradients<float>(rig, 1);
      if (world.rank() == world.size() - 1) rig.store.gradient(rig.store.find(parameter), 0).flat<float>()[1] = poison;
      const Optimizer::StepResult result = rig.optimizer.step(rig.context, 1, 0.01);

      EXPECT_FALSE(result.finite);
      EXPECT_EQ(bytes_of(rig), before);
      EXPECT_TRUE(gradients_are_forgotten(rig));
    }
  }
}

TEST(Optimizer, WeightDecayShrinksMatricesOnly) {
  for (const char* name : {"adafactor", "adamw"}) {
    OptimizerDeck deck = rig_deck(name);
    deck.weight_decay = 0.5;
    Rig rig(Communicator::world(), 1, deck);
    rig.optimizer.initialize(rig.context, 5);
    std::vector<float> before;
    for (int p = 0; p < rig.parameters(); ++p) before.push_back(rig.store.weight(p).flat<float>()[1]);
    zero_gradients(rig);
    rig.optimizer.step(rig.context, 0, 0.5);

    for (int p = 0; p < rig.parameters(); ++p) {
      const std::string& parameter = rig.spec(p).name;
      const bool decays = parameter != "encoder/layer_00/norm" && parameter != "encoder/relative_bias";
      EXPECT_FLOAT_EQ(rig.store.weight(p).flat<float>()[1], before[std::size_t(p)] * (decays ? 0.75F : 1.0F))
          << name << " " << parameter;
    }
  }
}

TEST(Optimizer, FactorsExpertsAndLargeMatricesOnly) {
  const Communicator world = Communicator::world();
  Rig rig(world, 1, rig_deck("adafactor"));
  const auto state = rig.state_tensors();
  const std::map<std::string, bool> factored{{"embedding", false},
                                             {"encoder/layer_00/norm", false},
                                             {"encoder/relative_bias", false},
                                             {"encoder/layer_00/query", false},
                                             {"encoder/layer_00/expert_up", true},
                                             {"encoder/layer_00/expert_down", true},
                                             {"logits", true}};
  std::int64_t masters = 0;
  for (const auto& [name, tensor] : state) {
    if (!name.ends_with("/master")) continue;
    masters += tensor.size();
    const std::string unit = name.substr(0, name.size() - 6);
    const bool expected = factored.at(unit.substr(0, unit.find_last_of('/', unit.size() - 2)));
    EXPECT_EQ(state.count(unit + "row"), expected ? 1U : 0U) << unit;
    EXPECT_EQ(state.count(unit + "col"), expected ? 1U : 0U) << unit;
    EXPECT_EQ(state.count(unit + "v"), expected ? 0U : 1U) << unit;
    EXPECT_EQ(state.count(unit + "m"), 0U) << unit;
    if (expected) {
      EXPECT_EQ(state.at(unit + "row").rows, tensor.rows);
      EXPECT_EQ(state.at(unit + "col").cols, tensor.cols);
    }
  }
  // Every element of the model has one owner.
  std::int64_t elements = 0;
  for (const ParameterSpec& spec : rig.store.specs()) elements += spec.global_size();
  EXPECT_EQ(world.all_reduce(masters, ReduceOp::sum), elements);
}

TEST(Optimizer, OwnsBlocksOfMatricesInEqualShares) {
  const Communicator world = Communicator::world();
  if (world.size() == 1) return;
  std::vector<ParameterSpec> specs = test::rig_parameters();
  specs[0].block_rows = 3;  // not factored, which is fine with AdamW
  Rig rig(world, 1, rig_deck("adamw"), DType::f32, "reference", specs);
  std::int64_t own = 0, all = 0, several = 0;
  for (const auto& [name, tensor] : rig.state_tensors()) own += name.ends_with("/master") ? tensor.size() : 0;
  for (const ParameterSpec& spec : specs) all += spec.global_size();
  for (const ParameterUnit& unit : rig.store.units(Placement::dense)) several += unit.first_row > 0 ? 1 : 0;
  // Of either placement a share and a block: at most 5 rows of 31 and a whole matrix of 10 x 12.
  EXPECT_LE(own, all / world.size() + 5 * 31 + 10 * 12);
  EXPECT_GT(several, 0);

  SerialModel<float> serial(rig, rig_deck("adamw"));
  rig.optimizer.initialize(rig.context, 5);
  fill_gradients<float>(rig, 0);
  rig.optimizer.step(rig.context, 0, 0.01);
  serial.step(0, 0.01);
  expect_weights<float, float>(rig, serial);
}

TEST(Optimizer, InitialWeightsDoNotDependOnTheLayoutAndMomentsStartAtZero) {
  const Communicator world = Communicator::world();
  for (const int degree : degrees_of(world.size())) {
    Rig rig(world, degree, rig_deck("adamw"));
    rig.optimizer.visit_state([](const StateTensor& s) {
      for (float& x : s.tensor.flat<float>()) x = 7.0F;
    });
    rig.optimizer.initialize(rig.context, 5);

    for (const auto& [name, tensor] : rig.state_tensors()) {
      if (name.ends_with("/master")) continue;
      for (const float x : tensor.flat<float>()) ASSERT_EQ(x, 0.0F) << name;
    }
    expect_weights<float, float>(rig, SerialModel<float>(rig, rig_deck("adamw")));
  }
}

TEST(Optimizer, PublishedMastersReachEveryRank) {
  const Communicator world = Communicator::world();
  for (const int degree : degrees_of(world.size())) {
    Rig rig(world, degree, rig_deck("adafactor"), DType::bf16);
    rig.optimizer.visit_state([&](const StateTensor& s) {
      const double global = double(rig.store.first_expert(s.parameter) + s.expert);
      for (float& x : s.tensor.flat<float>()) x = float(s.parameter * 100) + float(global);
    });
    rig.optimizer.publish_weights(rig.context, 0);

    for (int p = 0; p < rig.parameters(); ++p) {
      for (std::int64_t e = 0; e < rig.store.local_experts(p); ++e) {
        const Tensor weight = rig.store.weight(p).matrix(e);
        const float expected = float(p * 100) + float(rig.store.first_expert(p) + e);
        for (std::int64_t i = 0; i < weight.size(); ++i) {
          const float found = rig.spec(p).full_precision ? weight.flat<float>()[std::size_t(i)]
                                                         : float(weight.flat<bf16>()[std::size_t(i)]);
          ASSERT_EQ(found, float(bf16(expected))) << rig.spec(p).name << " expert " << e;
        }
      }
    }
    EXPECT_TRUE(gradients_are_forgotten(rig));
  }
}

TEST(Optimizer, ABalancedParameterFollowsTheCountsOfAllRanksAndIsNoPartOfTheNorm) {
  const Communicator world = Communicator::world();
  std::vector<ParameterSpec> specs = test::rig_parameters();
  specs.push_back({"router_bias", 1, 1, 3, Placement::dense, InitKind::zeros, 0.0, true, 0.25});
  for (const char* name : {"adafactor", "adamw"}) {
    Rig rig(world, world.size(), rig_deck(name), DType::bf16, "cpu", specs);
    rig.optimizer.initialize(rig.context, 1);
    const int bias = rig.store.find("router_bias");
    const Tensor count = rig.store.gradient(bias, 0);
    for (int step = 0; step < 2; ++step) {
      // Of n ranks, 6n, 1 and 3n claims: the mean, 3n + 1/3, is just above those of expert 2, which the ranks after the
      // first one cannot see.
      zero_gradients(rig);
      count.as<float>()[0] = 6;
      count.as<float>()[1] = world.rank() == 0 ? 1 : 0;
      count.as<float>()[2] = 3;
      EXPECT_EQ(rig.optimizer.step(rig.context, step, 0.1).gradient_norm, 0.0);
    }
    const auto b = rig.store.weight(bias).flat<float>();
    EXPECT_EQ(b[0], -0.5F);
    EXPECT_EQ(b[1], 0.5F);
    EXPECT_EQ(b[2], 0.5F);
    for (const auto& [key, tensor] : rig.state_tensors()) {
      EXPECT_TRUE(!key.starts_with("router_bias") || key == "router_bias/0/master") << key;
    }
  }
}

TEST(Optimizer, AnnouncesTheMemoryItUses) {
  const Communicator world = Communicator::world();
  const ProcessGrid grid(world.size(), world.rank(), 1);
  const Communicators communicators = Communicators::make(world, grid);
  ParameterStore store(test::rig_parameters(), grid.coordinates(), DType::f32);
  Optimizer optimizer(rig_deck("adamw"), store, communicators, kernels_for("reference"));
  Arena state("state"), scratch("scratch");
  optimizer.lay(state, scratch);
  // Master and two moments of what this rank owns, and the messages of the sum of gradients.
  const std::int64_t owned = store.owned_sizes(Placement::dense)[std::size_t(world.rank())] +
                             store.owned_sizes(Placement::expert)[std::size_t(world.rank())];
  std::int64_t tensors = 1;
  optimizer.visit_state([&](const StateTensor&) { ++tensors; });
  std::int64_t received = 0;
  for (std::int64_t b = 0; b < store.buckets(); ++b) {
    for (const auto& sizes : {store.segment_sizes(Placement::dense, b), store.segment_sizes(Placement::expert, b)}) {
      received = std::max(received, Communicator::reduce_scatter_work(sizes, DType::f32));
    }
  }
  const std::int64_t bytes = 4 * (3 * owned + received);

  EXPECT_GE(std::int64_t(state.measured()), bytes);
  EXPECT_LT(std::int64_t(state.measured()), bytes + 64 * tensors);
}

}  // namespace
}  // namespace flanmoe
