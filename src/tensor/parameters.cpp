#include "tensor/parameters.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>
#include <utility>

#include "tensor/ownership.hpp"
#include "tensor/philox.hpp"

namespace flanmoe {

std::int64_t block_rows_of(std::int64_t rows, std::int64_t cols, std::int64_t split_above) {
  // Sums over the rows of a block are kept for every column: 16 rows make them a small part of the matrix.
  constexpr std::int64_t most_blocks = 64, fewest_rows = 16;
  if (rows * cols <= split_above) return 0;
  const std::int64_t block_rows = std::max(fewest_rows, (rows + most_blocks - 1) / most_blocks);
  return block_rows < rows ? block_rows : 0;
}

ParameterStore::ParameterStore(std::vector<ParameterSpec> specs, ShardCoordinates coordinates, DType compute)
    : specs_(std::move(specs)), coordinates_(coordinates), compute_(compute), weights_(specs_.size()) {
  for (auto& copies : packed_) copies.resize(specs_.size());
  matrix_offset_.resize(specs_.size());
  forget_gradients();
  for (std::size_t p = 0; p < specs_.size(); ++p) {
    if (specs_[p].placement == Placement::expert) {
      FLANMOE_EXPECT(specs_[p].experts % coordinates_.expert_size == 0, "{}: {} experts over {} ranks", specs_[p].name,
                     specs_[p].experts, coordinates_.expert_size);
    }
    matrix_offset_[p].resize(std::size_t(local_experts(int(p))));
    buckets_ = std::max(buckets_, specs_[p].bucket + 1);
  }
  for (const Placement placement : {Placement::dense, Placement::expert}) plan(placement);
}

std::int64_t ParameterStore::local_experts(int parameter) const {
  const ParameterSpec& spec = specs_[std::size_t(parameter)];
  return spec.placement == Placement::expert ? spec.experts / coordinates_.expert_size : spec.experts;
}

std::int64_t ParameterStore::first_expert(int parameter) const {
  const ParameterSpec& spec = specs_[std::size_t(parameter)];
  return spec.placement == Placement::expert ? coordinates_.expert_rank * local_experts(parameter) : 0;
}

int ParameterStore::replica_rank(Placement placement) const {
  return placement == Placement::dense ? coordinates_.world_rank : coordinates_.data_rank;
}

int ParameterStore::replica_size(Placement placement) const {
  return placement == Placement::dense ? coordinates_.world_size : coordinates_.data_size;
}

namespace {

/// Appends the units of some parameters, which form a bucket, to `units`, which were `before` elements until here.
void share_out(std::vector<ParameterUnit>& units, Ownership& ownership, const ParameterStore& store,
               const std::vector<int>& parameters, std::int64_t before) {
  std::int64_t all = 0;
  for (const int p : parameters) all += store.local_experts(p) * store.specs()[std::size_t(p)].matrix_size();
  ownership.begin_bucket(all);
  for (const int p : parameters) {
    const ParameterSpec& spec = store.specs()[std::size_t(p)];
    for (std::int64_t i = 0; i < store.local_experts(p) * spec.blocks(); ++i) {
      const std::int64_t expert = i / spec.blocks(), first = i % spec.blocks() * spec.block_rows;
      const std::int64_t rows = spec.block_rows > 0 ? std::min(spec.block_rows, spec.rows - first) : spec.rows;
      const int owner = ownership.next(rows * spec.cols);
      if (first > 0 && units.back().owner == owner) {
        units.back().rows += rows;
      } else {
        units.push_back({p, expert, first, rows, owner, before});
      }
      before += rows * spec.cols;
    }
  }
}

}  // namespace

void ParameterStore::plan(Placement placement) {
  Side& side = sides_[int(placement)];
  std::vector<std::vector<int>> trained(static_cast<std::size_t>(buckets_));
  std::vector<int> frozen;
  for (std::size_t p = 0; p < specs_.size(); ++p) {
    if (specs_[p].placement != placement) continue;
    (specs_[p].trained ? trained[std::size_t(specs_[p].bucket)] : frozen).push_back(int(p));
  }
  Ownership ownership(replica_size(placement));
  side.buckets.resize(std::size_t(buckets_));
  std::int64_t first = 0;
  for (std::size_t b = 0; b < trained.size(); ++b) {
    const std::size_t first_unit = side.units.size();
    share_out(side.units, ownership, *this, trained[b], first);
    Bucket& bucket = side.buckets[b];
    bucket = {first, 0, first_unit, side.units.size() - first_unit, {}};
    bucket.segments.assign(ownership.owned().size(), 0);
    for (const ParameterUnit& unit : units(placement, std::int64_t(b))) {
      const std::int64_t size = unit.rows * specs_[std::size_t(unit.parameter)].cols;
      bucket.segments[std::size_t(unit.owner)] += size;
      bucket.size += size;
      if (unit.first_row == 0) matrix_offset_[std::size_t(unit.parameter)][std::size_t(unit.expert)] = unit.offset;
    }
    first += bucket.size;
  }
  side.owned = ownership.owned();
  Ownership of_frozen(replica_size(placement));
  share_out(side.frozen, of_frozen, *this, frozen, 0);
}

std::span<const ParameterUnit> ParameterStore::units(Placement placement, std::int64_t bucket) const {
  const Bucket& b = side(placement).buckets[std::size_t(bucket)];
  return std::span(side(placement).units).subspan(b.first_unit, b.units);
}

Tensor ParameterStore::gradient_bucket(Placement placement, std::int64_t bucket) const {
  const Bucket& b = side(placement).buckets[std::size_t(bucket)];
  return gradient_flat(placement).slice_cols(b.first, b.size);
}

void ParameterStore::lay(Arena& weights, Arena* gradients, GradientSums sums, std::span<const PackedSizes> packed) {
  const DType accumulate = accumulate_dtype(compute_);
  for (std::size_t p = 0; p < specs_.size(); ++p) {
    const ParameterSpec& spec = specs_[p];
    weights_[p] =
        weights.allocate(spec.full_precision ? accumulate : compute_, spec.rows, spec.cols, local_experts(int(p)));
    const PackedSizes sizes = packed.empty() ? PackedSizes{} : packed[p];
    for (const bool transposed : {false, true}) {
      const std::int64_t size = transposed ? sizes.transposed : sizes.straight;
      Tensor& copy = packed_[std::size_t(transposed)][p];
      copy = size > 0 ? weights.allocate(weights_[p].dtype, 1, size, local_experts(int(p))) : Tensor{};
    }
  }
  for (auto& due : packed_due_) due.assign(specs_.size(), true);
  sums_ = sums;
  has_gradients_ = gradients != nullptr;
  if (gradients == nullptr) return;
  for (const Placement placement : {Placement::dense, Placement::expert}) {
    const auto& owned = owned_sizes(placement);
    const std::int64_t total = std::accumulate(owned.begin(), owned.end(), std::int64_t{0});
    const std::int64_t buffers = sums.levels * (placement == Placement::expert ? sums.sources : 1);
    Side& side = sides_[int(placement)];
    side.flat.clear();
    for (std::int64_t b = 0; b < buffers; ++b) side.flat.push_back(gradients->allocate(accumulate, 1, total));
  }
  lay_lookups(*gradients);
}

void ParameterStore::lay_lookups(Arena& gradients) {
  lookups_.clear();
  lookup_segments_.clear();
  if (sums_.table < 0 || !trained(sums_.table)) return;
  const std::int64_t size = specs_[std::size_t(sums_.table)].matrix_size();
  for (std::int64_t level = 0; level < sums_.levels; ++level) {
    lookups_.push_back(gradients.allocate(accumulate_dtype(compute_), 1, size));
  }
  lookup_segments_.assign(std::size_t(replica_size(Placement::dense)), 0);
  for (const ParameterUnit& unit : units(Placement::dense)) {
    const std::int64_t owned = unit.rows * specs_[std::size_t(unit.parameter)].cols;
    if (unit.parameter == sums_.table) lookup_segments_[std::size_t(unit.owner)] += owned;
  }
}

Tensor ParameterStore::lookup_gradient(int parameter) const {
  Tensor t = parameter == sums_.table ? lookup_flat(level_) : Tensor{};
  if (t.absent()) return t;
  const ParameterSpec& spec = specs_[std::size_t(parameter)];
  t.rows = spec.rows;
  t.cols = t.stride = spec.cols;
  return t;
}

Tensor ParameterStore::gradient(int parameter, std::int64_t expert, std::int64_t source) const {
  FLANMOE_EXPECT(has_gradients_, "this store was laid without gradients");
  const ParameterSpec& spec = specs_[std::size_t(parameter)];
  if (!spec.trained) return {};
  const Tensor flat = gradient_flat(spec.placement, level_, source);
  Tensor t = flat.offset_by(matrix_offset_[std::size_t(parameter)][std::size_t(expert)]);
  t.rows = spec.rows;
  t.cols = t.stride = spec.cols;
  return t;
}

bool ParameterStore::first_contribution(int parameter) {
  const bool first = !contributed_[std::size_t(parameter)];
  FLANMOE_EXPECT(first || !sums_.leaves, "{}: a second contribution to a gradient that is a sum over leaves",
                 specs_[std::size_t(parameter)].name);
  contributed_[std::size_t(parameter)] = true;
  return first;
}

void ParameterStore::weights_changed(bool trained) {
  for (auto& due : packed_due_) {
    for (std::size_t p = 0; p < specs_.size(); ++p) due[p] = due[p] || specs_[p].trained == trained;
  }
}

bool ParameterStore::packing_due(int parameter, bool transposed) {
  std::vector<bool>& of_copies = packed_due_[std::size_t(transposed)];
  const bool due = of_copies[std::size_t(parameter)];
  of_copies[std::size_t(parameter)] = false;
  return due;
}

void ParameterStore::begin_level(std::int64_t level) {
  FLANMOE_EXPECT(level >= 0 && level < sums_.levels, "level {} of {} levels of gradients", level, sums_.levels);
  level_ = level;
  contributed_.assign(specs_.size(), false);
}

int ParameterStore::find(const std::string& name) const {
  const auto it = std::find_if(specs_.begin(), specs_.end(), [&](const auto& spec) { return spec.name == name; });
  FLANMOE_EXPECT(it != specs_.end(), "no parameter is named {}", name);
  return int(it - specs_.begin());
}

namespace {

/// Standard normal by Box-Muller from words 0 and 1 of the element's block.
double normal_of(const std::array<std::uint32_t, 4>& words) {
  const double u = (double(words[0]) + 1.0) * 0x1.0p-32;  // in (0, 1]
  const double v = double(words[1]) * 0x1.0p-32;
  return std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * v);
}

double draw(const ParameterSpec& spec, std::array<std::uint32_t, 2> key, std::uint32_t expert, std::uint64_t element) {
  // RandomKey::words with row = expert and upper half of the element, position = its lower half, block = attempt; the
  // key is hashed once for the whole matrix.
  const auto words = [&](std::uint32_t attempt) {
    return philox4x32({std::uint32_t(element >> 32), expert, std::uint32_t(element), attempt}, key);
  };
  if (spec.init == InitKind::uniform) return (double(words(0)[0]) * 0x1.0p-31 - 1.0) * spec.init_scale;
  if (spec.init == InitKind::normal) return normal_of(words(0)) * spec.init_scale;
  for (std::uint32_t attempt = 0;; ++attempt) {
    const double x = normal_of(words(attempt));
    // Cutting at two sigma shrinks the deviation to 0.87962566; dividing restores it.
    if (std::abs(x) <= 2.0) return x / 0.87962566103423978 * spec.init_scale;
  }
}

template <class T>
void fill(const Tensor& out, const ParameterSpec& spec, std::int64_t expert, const RandomKey& key,
          std::int64_t first_element) {
  const auto values = out.flat<T>();
  const auto count = std::int64_t(values.size());
  const auto philox_key = key.philox_key();
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < count; ++i) {
    double value = 0.0;
    if (spec.init == InitKind::ones) {
      value = 1.0;
    } else if (spec.init != InitKind::zeros) {
      value = draw(spec, philox_key, std::uint32_t(expert), std::uint64_t(first_element + i));
    }
    values[std::size_t(i)] = T(value);
  }
}

}  // namespace

void initialize_matrix(const Tensor& out, const ParameterSpec& spec, std::int64_t global_expert, std::uint64_t seed,
                       std::int64_t first_row) {
  const RandomKey key{seed ^ hash_name(spec.name), RandomPurpose::init, 0, 0};
  if (out.dtype == DType::f64) {
    fill<double>(out, spec, global_expert, key, first_row * spec.cols);
  } else {
    fill<float>(out, spec, global_expert, key, first_row * spec.cols);
  }
}

}  // namespace flanmoe
