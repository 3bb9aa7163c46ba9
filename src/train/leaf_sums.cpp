#include "train/leaf_sums.hpp"

#include <array>
#include <bit>
#include <cstring>

#include "model/tensors.hpp"
#include "tensor/arena.hpp"
#include "train/trainer.hpp"

namespace flanmoe {
namespace {

constexpr std::array kPlacements = {Placement::dense, Placement::expert};

}  // namespace

std::optional<GradientSums> leaf_sums(const Deck& deck, const ProcessGrid& grid) {
  if (!uses_leaves(deck, grid.world_size())) return std::nullopt;
  const RankRows rows = RankRows::of(deck, grid);
  const std::int64_t levels = std::bit_width(std::uint64_t(rows.rows / rows.microbatch));
  const int table = deck.model.tied_logits ? model_tensors(deck.model, deck.moe).embedding_VD : -1;
  return GradientSums{levels, levels > 1 ? grid.expert_size() : 1, true, table};
}

LeafSums::LeafSums(KernelContext& context, const Kernels& kernels, ParameterStore& store)
    : context_(context), kernels_(kernels), store_(store) {}

void LeafSums::begin_microbatch(StepStatistics& statistics) {
  statistics.reset();
  store_.begin_level(std::int64_t(waiting_.size()));
}

void LeafSums::end_microbatch(const StepStatistics& statistics) {
  waiting_.push_back(statistics.pack());
  ++microbatches_;
  // As in a binary counter: every second one completes a pair, every fourth a pair of pairs.
  for (std::int64_t n = microbatches_; n % 2 == 0; n /= 2) merge_levels(std::int64_t(waiting_.size()) - 2);
}

void LeafSums::finish(StepStatistics& statistics) {
  FLANMOE_EXPECT(waiting_.size() == 1, "{} microbatches are not a power of two", microbatches_);
  statistics.unpack(waiting_.front());
  merge_sources();
  store_.begin_level(0);
}

void LeafSums::add(const Tensor& to, const Tensor& from) {
  if (to.size() > 0) kernels_.elementwise.add(context_, to, from);
}

/// The sum that waits at `level` takes up the one above it.
void LeafSums::merge_levels(std::int64_t level) {
  for (const Placement placement : kPlacements) {
    const std::int64_t sources = placement == Placement::expert ? store_.sums().sources : 1;
    for (std::int64_t s = 0; s < sources; ++s) {
      add(store_.gradient_flat(placement, level, s), store_.gradient_flat(placement, level + 1, s));
    }
  }
  if (!store_.lookup_flat().absent()) add(store_.lookup_flat(level), store_.lookup_flat(level + 1));
  std::vector<double>& sum = waiting_[std::size_t(level)];
  for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += waiting_.back()[i];
  waiting_.pop_back();
}

void LeafSums::merge_sources() {
  const std::int64_t sources = store_.sums().sources;
  for (std::int64_t stride = 1; stride < sources; stride *= 2) {
    for (std::int64_t s = 0; s + stride < sources; s += 2 * stride) {
      add(store_.gradient_flat(Placement::expert, 0, s), store_.gradient_flat(Placement::expert, 0, s + stride));
    }
  }
}

namespace {

/// Memory of a small product, and its context; of a device that the host reaches, as all are that sum leaf by leaf.
class Trial {
 public:
  explicit Trial(const Kernels& kernels) : kernels_(kernels) {
    scratch_.allocate(DType::f32, 1, std::int64_t(kernels.matmul.scratch_bytes() / sizeof(float)));
    scratch_.commit();
    scratch_.rewind();
    context.scratch = &scratch_;
    memory_.allocate(DType::f32, 1, kFloats);
    memory_.commit();
    memory_.rewind();
  }
  Tensor take(DType type, std::int64_t rows, std::int64_t cols) { return memory_.allocate(type, rows, cols); }
  /// The same, with numbers in it.
  Tensor filled(DType type, std::int64_t rows, std::int64_t cols) {
    const Tensor t = take(type, rows, cols);
    std::vector<float> numbers(std::size_t(t.size()));
    for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = float(i * 7919 % 1021) / 512 - 1;
    kernels_.transfer.upload(context, t, make_tensor(numbers.data(), rows, cols));
    return t;
  }
  KernelContext context;

 private:
  static constexpr std::int64_t kFloats = 1 << 21;
  const Kernels& kernels_;
  Arena memory_{"trial"}, scratch_{"trial scratch"};
};

}  // namespace

bool rows_are_independent(const Kernels& kernels, DType compute) {
  constexpr std::int64_t kMost = 200, kDepth = 192, kCols = 160;
  Trial trial(kernels);
  const Tensor x = trial.filled(compute, kMost, kDepth), w = trial.filled(compute, kDepth, kCols);
  const Tensor all = trial.take(compute, kMost, kCols), some = trial.take(compute, kMost, kCols);
  kernels.matmul.product(trial.context, all, x, Transpose::no, w, Transpose::no, 0.0F);
  for (const std::int64_t rows : {1, 7, 8, 17, 40, 64, 65, 100}) {
    const Tensor part = some.slice_rows(0, rows);
    kernels.matmul.product(trial.context, part, x.slice_rows(0, rows), Transpose::no, w, Transpose::no, 0.0F);
    if (std::memcmp(part.data, all.data, part.bytes()) != 0) return false;
  }
  return true;
}

bool leaves_are_independent(const Kernels& kernels, DType compute) {
  // Alone, a leaf of few rows is multiplied by far more columns at a time than together with others, and by oneDNN.
  constexpr std::array<std::int64_t, 9> kFirst = {0, 40, 57, 90, 154, 186, 250, 251, 300};
  constexpr std::int64_t kRows = 72, kCols = 1200;
  Trial trial(kernels);
  const Tensor x = trial.filled(compute, kFirst.back(), kRows), dy = trial.filled(compute, kFirst.back(), kCols);
  const Tensor together = trial.take(DType::f32, kRows, kCols);
  kernels.matmul.grouped_weight_gradient(trial.context, {&together, 1}, x, dy, kFirst, 0.0F);
  std::array<Tensor, 8> alone;
  for (std::size_t leaf = 0; leaf < alone.size(); ++leaf) {
    const std::int64_t first = kFirst[leaf], count = kFirst[leaf + 1] - first;
    alone[leaf] = trial.take(DType::f32, kRows, kCols);
    kernels.matmul.grouped_weight_gradient(trial.context, {&alone[leaf], 1}, x.slice_rows(first, count),
                                           dy.slice_rows(first, count), std::array<std::int64_t, 2>{0, count}, 0.0F);
  }
  for (std::size_t n = alone.size(); n > 1; n /= 2) {
    for (std::size_t i = 0; i < n / 2; ++i) {
      kernels.elementwise.add(trial.context, alone[2 * i], alone[2 * i + 1]);
      alone[i] = alone[2 * i];
    }
  }
  return std::memcmp(alone[0].data, together.data, together.bytes()) == 0;
}

}  // namespace flanmoe
