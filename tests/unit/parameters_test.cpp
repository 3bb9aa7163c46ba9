#include "tensor/parameters.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace flanmoe {
namespace {

std::vector<ParameterSpec> some_specs() {
  return {{"embedding", 1, 100, 8, Placement::dense, InitKind::normal, 1.0, false},
          {"norm", 1, 1, 8, Placement::dense, InitKind::ones, 0.0, true},
          {"experts", 4, 8, 16, Placement::expert, InitKind::truncated_normal, 0.5, false},
          {"query", 1, 8, 8, Placement::dense, InitKind::uniform, 0.1, false}};
}

TEST(ParameterStore, SegmentsCoverEveryUnitOnceAndInOwnerOrder) {
  const ShardCoordinates coordinates{4, 1, 2, 0, 2, 1};
  const ParameterStore store(some_specs(), coordinates, DType::f32);
  for (const Placement placement : {Placement::dense, Placement::expert}) {
    std::int64_t offset = 0;
    std::vector<std::int64_t> sums(std::size_t(store.replica_size(placement)), 0);
    for (const ParameterUnit& unit : store.units(placement)) {
      EXPECT_EQ(unit.offset, offset);
      const std::int64_t size = store.specs()[std::size_t(unit.parameter)].matrix_size();
      offset += size;
      sums[std::size_t(unit.owner)] += size;
    }
    EXPECT_EQ(sums, store.owned_sizes(placement));
  }
  EXPECT_EQ(store.units(Placement::dense).size(), 3U);
  EXPECT_EQ(store.units(Placement::expert).size(), 2U);
  EXPECT_EQ(store.first_expert(2), 2);
}

TEST(ParameterStore, BlocksOfAMatrixGoToTheRanksInWhoseSharesTheyLie) {
  std::vector<ParameterSpec> specs = some_specs();
  specs[0].block_rows = 30;  // 30, 30, 30 and 10 rows of 8
  const ParameterStore store(specs, {2, 1, 2, 0, 1, 0}, DType::f32);
  // 800 + 8 + 64 elements on two ranks, 436 each: the second block, 240 to 480, has its middle in the first half.
  const auto& units = store.units(Placement::dense);
  ASSERT_EQ(units.size(), 4U);
  EXPECT_EQ(units[0].owner, 0);
  EXPECT_EQ(units[0].rows, 60);
  EXPECT_EQ(units[1].owner, 1);
  EXPECT_EQ(units[1].first_row, 60);
  EXPECT_EQ(units[1].rows, 40);
  EXPECT_EQ(units[1].offset, 480);
  EXPECT_EQ(units[3].owner, 1);
  EXPECT_EQ(store.owned_sizes(Placement::dense), (std::vector<std::int64_t>{480, 392}));
}

TEST(ParameterStore, ABucketIsARunOfTheFlatBufferWithASegmentForEveryOwner) {
  std::vector<ParameterSpec> specs = some_specs();
  specs[0].bucket = 2;
  specs[0].block_rows = 10;
  specs[1].bucket = 1;
  specs[3].trained = false;
  ParameterStore store(specs, {3, 1, 3, 1, 1, 0}, DType::f32);
  Arena weights("weights"), gradients("gradients");
  store.lay(weights, &gradients);
  for (Arena* arena : {&weights, &gradients}) {
    arena->commit();
    arena->rewind();
  }
  store.lay(weights, &gradients);
  ASSERT_EQ(store.buckets(), 3);
  // Experts are in bucket 0, which has nothing else that is trained; the others have nothing of experts.
  EXPECT_EQ(store.segment_sizes(Placement::dense, 0), (std::vector<std::int64_t>{0, 0, 0}));
  EXPECT_EQ(store.segment_sizes(Placement::expert, 0), (std::vector<std::int64_t>{256, 128, 128}));
  EXPECT_EQ(store.bucket_size(Placement::expert, 2), 0);
  // A vector of 8, which makes the first of three ranks lack less of the ten blocks of 80 behind it.
  EXPECT_EQ(store.segment_sizes(Placement::dense, 1), (std::vector<std::int64_t>{8, 0, 0}));
  EXPECT_EQ(store.segment_sizes(Placement::dense, 2), (std::vector<std::int64_t>{240, 320, 240}));
  EXPECT_EQ(store.owned_sizes(Placement::dense), (std::vector<std::int64_t>{248, 320, 240}));
  EXPECT_EQ(store.gradient_flat(Placement::dense).size(), 808);
  const Tensor norm = store.gradient_bucket(Placement::dense, 1), table = store.gradient_bucket(Placement::dense, 2);
  EXPECT_EQ(norm.data, store.gradient_flat(Placement::dense).data);
  EXPECT_EQ(norm.size(), 8);
  EXPECT_EQ(norm.data, store.gradient(1, 0).data);
  EXPECT_EQ(table.size(), 800);
  EXPECT_EQ(table.data, store.gradient(0, 0).data);
  const auto units = store.units(Placement::dense, 2);
  ASSERT_EQ(units.size(), 3U);
  EXPECT_EQ(units[2].first_row, 70);
  EXPECT_EQ(units[2].offset, 8 + 560);
  EXPECT_EQ(store.frozen_units(Placement::dense).size(), 1U);
}

TEST(ParameterStore, NobodyOwnsMoreThanAShareAndABlock) {
  std::vector<ParameterSpec> specs = {{"w", 1, 1000, 64, Placement::dense, InitKind::zeros, 0.0, false},
                                      {"experts", 8, 300, 50, Placement::expert, InitKind::zeros, 0.0, false},
                                      {"norm", 1, 1, 64, Placement::dense, InitKind::zeros, 0.0, false}};
  for (ParameterSpec& spec : specs) spec.block_rows = block_rows_of(spec.rows, spec.cols, 100);
  EXPECT_EQ(specs[0].block_rows, 16);  // 63 blocks
  EXPECT_EQ(specs[1].block_rows, 16);
  EXPECT_EQ(specs[2].block_rows, 0);
  EXPECT_EQ(block_rows_of(32000, 64, 100), 500);
  EXPECT_EQ(block_rows_of(10, 10, 100), 0) << "no more elements than may stay whole";
  specs[2].bucket = 1;
  for (int layer = 0; layer < 3; ++layer) {
    for (const std::size_t which : {std::size_t{0}, std::size_t{1}}) {
      specs.push_back(specs[which]);
      specs.back().bucket = 2 + layer;
    }
  }
  for (const bool trained : {true, false}) {
    for (ParameterSpec& spec : specs) spec.trained = trained;
    for (const int ranks : {1, 3, 16, 1000}) {
      const ParameterStore store(specs, {ranks, 0, ranks, 0, 1, 0}, DType::f32);
      for (const Placement placement : {Placement::dense, Placement::expert}) {
        std::vector<std::int64_t> owned(std::size_t(ranks), 0), rows_of(specs.size(), 0);
        for (const ParameterUnit& unit : trained ? store.units(placement) : store.frozen_units(placement)) {
          const ParameterSpec& spec = specs[std::size_t(unit.parameter)];
          EXPECT_EQ(rows_of[std::size_t(unit.parameter)] % spec.rows, unit.first_row) << "rows follow each other";
          rows_of[std::size_t(unit.parameter)] += unit.rows;
          owned[std::size_t(unit.owner)] += unit.rows * spec.cols;
        }
        const std::int64_t all = std::accumulate(owned.begin(), owned.end(), std::int64_t{0});
        EXPECT_EQ(all, placement == Placement::dense ? 4 * 64000 + 64 : 4 * 120000);
        EXPECT_LE(*std::max_element(owned.begin(), owned.end()), all / ranks + 16 * 64) << ranks << " ranks";
      }
    }
  }
}

TEST(ParameterStore, GradientsOfDifferentUnitsDoNotOverlap) {
  ParameterStore store(some_specs(), {2, 0, 1, 0, 2, 0}, DType::bf16);
  Arena weights("weights");
  Arena gradients("gradients");
  store.lay(weights, &gradients);
  weights.commit();
  gradients.commit();
  weights.rewind();
  gradients.rewind();
  store.lay(weights, &gradients);
  EXPECT_EQ(store.weight(0).dtype, DType::bf16);
  EXPECT_EQ(store.weight(1).dtype, DType::f32);
  float value = 1.0F;
  for (int p = 0; p < 4; ++p) {
    for (std::int64_t e = 0; e < store.local_experts(p); ++e) {
      for (float& x : store.gradient(p, e).flat<float>()) x += value;
      value *= 2.0F;
    }
  }
  // Every element was written exactly once, so every value is a single power of two.
  for (const Placement placement : {Placement::dense, Placement::expert}) {
    for (const float x : store.gradient_flat(placement).flat<float>()) {
      int exponent = 0;
      EXPECT_EQ(std::frexp(x, &exponent), 0.5F);
    }
  }
}

TEST(Initialization, RowsAreThoseOfTheWholeMatrix) {
  const ParameterSpec spec{"w", 1, 100, 20, Placement::dense, InitKind::normal, 0.5, false};
  std::vector<float> whole(2000), rows(600);
  initialize_matrix(make_tensor(whole.data(), 100, 20), spec, 0, 1);
  initialize_matrix(make_tensor(rows.data(), 30, 20), spec, 0, 1, 50);
  EXPECT_TRUE(std::equal(rows.begin(), rows.end(), whole.begin() + 1000));
}

TEST(Initialization, DependsOnNameAndExpertAndHasTheStatedDeviation) {
  const ParameterSpec spec{"w", 4, 100, 200, Placement::expert, InitKind::truncated_normal, 0.5, false};
  std::vector<float> a(20000);
  std::vector<float> b(20000);
  initialize_matrix(make_tensor(a.data(), 100, 200), spec, 0, 1);
  initialize_matrix(make_tensor(b.data(), 100, 200), spec, 1, 1);
  EXPECT_NE(a, b);
  double square = 0;
  double mean = 0;
  for (const float x : a) {
    square += double(x) * x;
    mean += x;
    EXPECT_LE(std::abs(x), 2.0 * 0.5 / 0.8796);
  }
  // 20,000 draws: the sample deviation is within 4 standard errors (0.5/sqrt(2n) each, less for a cut distribution).
  EXPECT_NEAR(std::sqrt(square / 20000), 0.5, 4 * 0.5 / std::sqrt(2.0 * 20000));
  EXPECT_NEAR(mean / 20000, 0.0, 4 * 0.5 / std::sqrt(20000.0));
}

}  // namespace
}  // namespace flanmoe
