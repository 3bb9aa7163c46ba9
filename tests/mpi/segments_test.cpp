#include "parallel/segments.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>
#include <type_traits>

#include "parallel/communicator.hpp"
#include "parallel/halving.hpp"
#include "parallel/tree.hpp"
#include "tensor/philox.hpp"

namespace flanmoe {
namespace {

/// Contribution of a rank: any sign, magnitudes over six decades, so that every order of adding rounds differently.
template <class T>
T contribution(int rank, std::int64_t i) {
  const RandomKey key{7, RandomPurpose::test, 0, 0};
  const float x = key.uniform(std::uint64_t(rank), std::uint32_t(2 * i)) - 0.5F;
  const float scale = std::pow(10.0F, 6.0F * key.uniform(std::uint64_t(rank), std::uint32_t(2 * i + 1)) - 3.0F);
  if constexpr (std::is_same_v<T, double>) {
    return double(x) * double(scale) * 1.0000000123;
  } else {
    return T(x * scale);
  }
}

/// The definition, written level by level: neighbours are added, an odd one out moves up.
template <class A>
A serial_tree(std::vector<A> values) {
  while (values.size() > 1) {
    std::vector<A> next;
    for (std::size_t i = 0; i + 1 < values.size(); i += 2) next.push_back(values[i] + values[i + 1]);
    if (values.size() % 2 == 1) next.push_back(values.back());
    values = next;
  }
  return values.front();
}

template <class T>
T expected_sum(int ranks, std::int64_t i) {
  using A = std::conditional_t<std::is_same_v<T, double>, double, float>;
  std::vector<A> values;
  for (int r = 0; r < ranks; ++r) values.push_back(A(contribution<T>(r, i)));
  return T(serial_tree(values));
}

template <class T>
bool same_bits(T a, T b) {
  return std::memcmp(&a, &b, sizeof(T)) == 0;
}

template <class T>
class Segments : public testing::Test {};
using SumTypes = testing::Types<float, double, bf16>;
TYPED_TEST_SUITE(Segments, SumTypes);

TYPED_TEST(Segments, TreeHasTheFixedShapeForEveryNumberOfRanks) {
  using T = TypeParam;
  const std::int64_t count = 1111, stride = 1200;  // blocks of the sum, and a rest
  for (int ranks = 1; ranks <= 17; ++ranks) {
    std::vector<T> rows(std::size_t(ranks * stride)), out(count);
    for (int r = 0; r < ranks; ++r) {
      for (std::int64_t i = 0; i < count; ++i) rows[std::size_t(r * stride + i)] = contribution<T>(r, i);
    }
    detail::tree_sum(out.data(), rows.data(), ranks, stride, count);
    for (std::int64_t i = 0; i < count; ++i) {
      ASSERT_TRUE(same_bits(out[std::size_t(i)], expected_sum<T>(ranks, i))) << ranks << " ranks, element " << i;
    }
  }
}

TEST(Tree, SumsOfPartsNest) {
  // Eight leaves on 1, 2, 4 or 8 ranks: the same bits.
  const std::int64_t count = 300;
  std::vector<float> leaves(8 * count), whole(count);
  for (int r = 0; r < 8; ++r) {
    for (std::int64_t i = 0; i < count; ++i) leaves[std::size_t(r * count + i)] = contribution<float>(r, i);
  }
  detail::tree_sum(whole.data(), leaves.data(), 8, count, count);
  for (const int ranks : {2, 4}) {
    std::vector<float> parts(std::size_t(ranks * count)), sum(count);
    const std::int64_t leaves_each = 8 / ranks;
    for (int r = 0; r < ranks; ++r) {
      detail::tree_sum(&parts[std::size_t(r * count)], &leaves[std::size_t(r * leaves_each * count)], leaves_each,
                       count, count);
    }
    detail::tree_sum(sum.data(), parts.data(), ranks, count, count);
    EXPECT_EQ(sum, whole) << ranks << " ranks";
  }
}

TEST(Tree, AddsBf16InFp32) {
  // bf16 holds 8 significant bits: 256 + 1 rounds back to 256, and 257 + 1 never happens.
  const std::vector<bf16> rows{bf16(256.0F), bf16(1.0F), bf16(1.0F)};
  bf16 sum;
  detail::tree_sum(&sum, rows.data(), 3, 1, 1);

  EXPECT_EQ(float(sum), 258.0F);
}

/// Uneven on purpose: an empty segment, one of a single element, one longer than a block of the tree.
std::vector<std::int64_t> uneven_sizes(int ranks) {
  std::vector<std::int64_t> sizes{1301, 0, 1, 77};
  sizes.resize(std::size_t(ranks));
  return sizes;
}

template <class T>
std::vector<T> contributions(int rank, std::int64_t count) {
  std::vector<T> flat;
  for (std::int64_t i = 0; i < count; ++i) flat.push_back(contribution<T>(rank, i));
  return flat;
}

template <class T>
void expect_own_segment_summed(const std::vector<T>& flat, std::span<const std::int64_t> sizes, int rank) {
  const std::int64_t first = std::accumulate(sizes.begin(), sizes.begin() + rank, std::int64_t{0});
  for (std::int64_t i = first; i < first + sizes[std::size_t(rank)]; ++i) {
    ASSERT_TRUE(same_bits(flat[std::size_t(i)], expected_sum<T>(int(sizes.size()), i))) << "element " << i;
  }
}

TYPED_TEST(Segments, ReduceScatterIsTheSerialTreeBitForBit) {
  using T = TypeParam;
  const Communicator world = Communicator::world();
  const std::vector<std::int64_t> sizes = uneven_sizes(world.size());
  const std::int64_t total = std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0});
  std::vector<T> flat = contributions<T>(world.rank(), total);
  std::vector<T> work(std::size_t(Communicator::reduce_scatter_work(sizes, make_tensor(flat.data(), 1, 1).dtype)));
  world.reduce_scatter_tree(make_tensor(flat.data(), 1, total), sizes,
                            make_tensor(work.data(), 1, std::int64_t(work.size())));

  expect_own_segment_summed(flat, sizes, world.rank());
}

TYPED_TEST(Segments, SumsDoNotDependOnTheSizeOfMessages) {
  using T = TypeParam;
  const Communicator world = Communicator::world();
  const std::vector<std::int64_t> sizes = uneven_sizes(world.size());
  const std::int64_t total = std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0});
  for (const std::int64_t piece : {70, 2000}) {  // shorter than segments, and longer
    std::vector<T> flat = contributions<T>(world.rank(), total);
    std::vector<T> work(std::size_t(world.size() * piece));
    ASSERT_EQ(detail::reduce_in_pieces(world.raw(), flat.data(), sizes, world.rank(), work.data(), piece), MPI_SUCCESS);
    expect_own_segment_summed(flat, sizes, world.rank());
    if constexpr (!std::is_same_v<T, bf16>) {
      if (world.size() == 3) continue;
      flat = contributions<T>(world.rank(), total);
      work.resize(std::size_t(2 * piece));
      ASSERT_EQ(detail::reduce_by_halving(world.raw(), flat.data(), sizes, world.rank(), work.data(), piece),
                MPI_SUCCESS);
      expect_own_segment_summed(flat, sizes, world.rank());
    }
  }
}

/// Halving on ranks that are rows of one vector: what stays is what is summed, in the order of the tree.
TEST(Halving, ManyRanksGiveEverySegmentAwayOnceAndAddUpTheTree) {
  for (const int ranks : {1, 2, 8, 64}) {
    std::vector<std::int64_t> sizes;
    for (int r = 0; r < ranks; ++r) sizes.push_back(r % 5 == 3 ? 0 : 1 + r % 3);
    const std::int64_t total = std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0});
    std::vector<std::vector<float>> flat;
    for (int r = 0; r < ranks; ++r) flat.push_back(contributions<float>(r, total));
    std::vector<std::int64_t> given(std::size_t(ranks), 0);
    for (int distance = 1; distance < ranks; distance *= 2) {
      const auto before = flat;
      for (int r = 0; r < ranks; ++r) {
        detail::HalvingRound mine(sizes, r, distance);
        const detail::HalvingRound theirs(sizes, mine.partner, distance);
        ASSERT_EQ(mine.keep.left(), theirs.give.left());
        given[std::size_t(r)] += mine.give.left();
        mine.keep.take(mine.keep.left(), [&](std::int64_t first, std::int64_t n) {
          for (auto i = std::size_t(first); i < std::size_t(first + n); ++i) {
            flat[std::size_t(r)][i] += before[std::size_t(mine.partner)][i];
          }
        });
      }
    }
    for (int r = 0; r < ranks; ++r) {
      EXPECT_EQ(given[std::size_t(r)], total - sizes[std::size_t(r)]) << ranks << " ranks, rank " << r;
      expect_own_segment_summed(flat[std::size_t(r)], sizes, r);
    }
  }
}

TEST(Halving, NeedsLittleRoomHoweverManyRanksThereAre) {
  for (const int ranks : {2, 3, 96, 1000, 16384}) {
    const std::vector<std::int64_t> sizes(std::size_t(ranks), std::int64_t{1} << 24);
    const std::int64_t work = Communicator::reduce_scatter_work(sizes, DType::f32);
    EXPECT_LE(work, std::max(std::int64_t{1} << 19, std::int64_t{4096} * ranks)) << ranks;
    EXPECT_GT(work, 0) << ranks;
  }
  EXPECT_EQ(Communicator::reduce_scatter_work(std::vector<std::int64_t>{7}, DType::f32), 0);
  EXPECT_EQ(Communicator::reduce_scatter_work(std::vector<std::int64_t>{7, 5}, DType::f32), 24);
  EXPECT_EQ(Communicator::reduce_scatter_work(std::vector<std::int64_t>{7, 5}, DType::bf16), 14);
}

TYPED_TEST(Segments, GatherReturnsEverySegmentToEveryRank) {
  using T = TypeParam;
  const Communicator world = Communicator::world();
  const std::vector<std::int64_t> sizes = uneven_sizes(world.size());
  const std::int64_t total = std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0});
  for (const bool far : {false, true}) {
    std::vector<T> flat(std::size_t(total), T(-1.0F));
    std::int64_t first = 0;
    for (int r = 0; r < world.rank(); ++r) first += sizes[std::size_t(r)];
    for (std::int64_t i = 0; i < sizes[std::size_t(world.rank())]; ++i) {
      flat[std::size_t(first + i)] = contribution<T>(world.rank(), first + i);
    }
    const Tensor t = make_tensor(flat.data(), 1, total);
    if (far) {
      ASSERT_EQ(detail::gather_far_segments(world.raw(), t, sizes), MPI_SUCCESS);
    } else {
      world.all_gather_segments(t, sizes);
    }
    std::int64_t i = 0;
    for (int r = 0; r < world.size(); ++r) {
      for (std::int64_t end = i + sizes[std::size_t(r)]; i < end; ++i) {
        ASSERT_TRUE(same_bits(flat[std::size_t(i)], contribution<T>(r, i))) << "far " << far << ", element " << i;
      }
    }
  }
}

TEST(SumTree, IsTheSerialTreeOnEveryRank) {
  const Communicator world = Communicator::world();
  std::vector<double> values = contributions<double>(world.rank(), 37);
  world.sum_tree(std::span(values));

  for (std::size_t i = 0; i < values.size(); ++i) {
    EXPECT_TRUE(same_bits(values[i], expected_sum<double>(world.size(), std::int64_t(i)))) << "element " << i;
  }
}

TEST(SegmentSizes, ThatDoNotFitAreRefused) {
  const Communicator world = Communicator::world();
  std::vector<float> flat(10), work(100);
  const Tensor f = make_tensor(flat.data(), 1, 10), w = make_tensor(work.data(), 1, 100);
  const std::vector<std::int64_t> too_long(std::size_t(world.size()), 11), too_many(std::size_t(world.size()) + 1, 0);

  EXPECT_THROW(world.reduce_scatter_tree(f, too_long, w), LogicError);
  EXPECT_THROW(world.all_gather_segments(f, too_many), LogicError);
  if (world.size() > 1) {
    std::vector<std::int64_t> sizes(std::size_t(world.size()), 0);
    sizes[std::size_t(world.rank())] = 10;
    EXPECT_THROW(world.reduce_scatter_tree(f, sizes, w.slice_cols(0, 19)), LogicError);
    std::vector<std::int32_t> integers(10);
    EXPECT_THROW(world.reduce_scatter_tree(make_tensor(integers.data(), 1, 10), sizes, f), LogicError);
  }
}

}  // namespace
}  // namespace flanmoe
