#include "train/leaf_sums.hpp"

#include <array>
#include <bit>
#include <cstring>

#include "tensor/arena.hpp"

namespace flanmoe {
namespace {

constexpr std::array kPlacements = {Placement::dense, Placement::expert};

}  // namespace

std::optional<GradientSums> leaf_sums(const Deck& deck, const ProcessGrid& grid) {
  if (!uses_leaves(deck, grid.world_size())) return std::nullopt;
  const std::int64_t leaves = deck.reduction.leaves / grid.world_size();
  return GradientSums{std::int64_t(std::bit_width(std::uint64_t(leaves))), grid.expert_size()};
}

LeafSums::LeafSums(KernelContext& context, const Kernels& kernels, ParameterStore& store)
    : context_(context), kernels_(kernels), store_(store) {}

void LeafSums::begin_leaf(StepStatistics& statistics) {
  statistics.reset();
  store_.begin_level(std::int64_t(waiting_.size()));
}

void LeafSums::end_leaf(const StepStatistics& statistics) {
  waiting_.push_back(statistics.pack());
  ++leaves_;
  // As in a binary counter: every second leaf completes a pair, every fourth a pair of pairs.
  for (std::int64_t n = leaves_; n % 2 == 0; n /= 2) merge_levels(std::int64_t(waiting_.size()) - 2);
}

void LeafSums::finish(StepStatistics& statistics) {
  FLANMOE_EXPECT(waiting_.size() == 1, "{} leaves are not a power of two", leaves_);
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

bool rows_are_independent(const Kernels& kernels, KernelContext context, DType compute) {
  constexpr std::int64_t kMost = 200, kDepth = 192, kCols = 160;
  Arena memory("rows", *kernels.transfer.memory), scratch("rows scratch", *kernels.transfer.memory);
  scratch.allocate(DType::f32, 1, std::int64_t(kernels.matmul.scratch_bytes() / sizeof(float)));
  scratch.commit();
  scratch.rewind();
  Tensor x, w, all, some;
  const auto lay = [&] {
    x = memory.allocate(compute, kMost, kDepth);
    w = memory.allocate(compute, kDepth, kCols);
    for (Tensor* y : {&all, &some}) *y = memory.allocate(compute, kMost, kCols);
  };
  lay();
  memory.commit();
  memory.rewind();
  lay();
  context.scratch = &scratch;
  for (const Tensor& t : {x, w}) {
    std::vector<float> numbers(std::size_t(t.size()));
    for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = float(i * 7919 % 1021) / 512 - 1;
    kernels.transfer.upload(context, t, make_tensor(numbers.data(), t.rows, t.cols));
  }
  HostRoom all_on_host(kernels.transfer), part_on_host(kernels.transfer);
  kernels.matmul.product(context, all, x, Transpose::no, w, Transpose::no, 0.0F);
  const Tensor expected = all_on_host.read(context, all);
  for (const std::int64_t rows : {1, 7, 8, 17, 40, 64, 65, 100}) {
    const Tensor part = some.slice_rows(0, rows);
    kernels.matmul.product(context, part, x.slice_rows(0, rows), Transpose::no, w, Transpose::no, 0.0F);
    if (std::memcmp(part_on_host.read(context, part).data, expected.data, part.bytes()) != 0) return false;
  }
  return true;
}

}  // namespace flanmoe
