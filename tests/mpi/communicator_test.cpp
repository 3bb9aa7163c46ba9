#include "parallel/communicator.hpp"

#include <gtest/gtest.h>

#include <functional>

#include "base/timer.hpp"
#include "parallel/watchdog.hpp"

namespace flanmoe {
namespace {

std::string message_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "(nothing was thrown)";
}

TEST(Communicator, MovedFromIsEmptyAndBothMayBeDestroyed) {
  Communicator a = Communicator::world();
  const int rank = a.rank(), size = a.size();
  Communicator b = std::move(a);

  EXPECT_EQ(a.raw(), MPI_COMM_NULL);  // NOLINT(bugprone-use-after-move): this is what is tested
  EXPECT_EQ(a.size(), 0);
  EXPECT_EQ(b.rank(), rank);
  EXPECT_EQ(b.size(), size);
  EXPECT_EQ(b.name(), "world");
  a = Communicator::duplicate(b.raw());
  a = std::move(b);                   // frees the duplicate
  EXPECT_EQ(b.raw(), MPI_COMM_NULL);  // NOLINT(bugprone-use-after-move)
  EXPECT_EQ(a.all_reduce(std::int32_t{1}, ReduceOp::sum), size);
}

TEST(Communicator, DuplicatesDoNotShareMessagesWithTheOriginal) {
  const Communicator a = Communicator::world();
  const Communicator b = Communicator::duplicate(a.raw());
  int result = MPI_UNEQUAL;
  ASSERT_EQ(MPI_Comm_compare(a.raw(), b.raw(), &result), MPI_SUCCESS);

  EXPECT_EQ(result, MPI_CONGRUENT);
}

TEST(Communicator, BroadcastsValuesAndTexts) {
  const Communicator world = Communicator::world();
  const int root = world.size() - 1;
  std::vector<double> values(7, double(world.rank()));
  world.broadcast(std::span(values), root);
  for (const double v : values) EXPECT_EQ(v, root);

  const std::string text("a\0b\n\xff", 5);
  EXPECT_EQ(world.broadcast(world.rank() == root ? text : "something longer than that", root), text);
  EXPECT_EQ(world.broadcast(std::string(world.rank() == 0 ? "" : "x"), 0), "");
}

template <class T>
class Reduce : public testing::Test {};
using ReduceTypes = testing::Types<std::int32_t, std::int64_t, std::uint64_t, float, double>;
TYPED_TEST_SUITE(Reduce, ReduceTypes);

TYPED_TEST(Reduce, GivesSumMinimumAndMaximumOnEveryRank) {
  using T = TypeParam;
  const Communicator world = Communicator::world();
  const T n = T(world.size()), mine = T(world.rank() + 1);

  EXPECT_EQ(world.all_reduce(mine, ReduceOp::sum), n * (n + 1) / 2);
  EXPECT_EQ(world.all_reduce(mine, ReduceOp::min), T(1));
  EXPECT_EQ(world.all_reduce(mine, ReduceOp::max), n);
  std::vector<T> values{mine, T(10) * mine, T(0)};
  world.all_reduce(std::span(values), ReduceOp::sum);
  EXPECT_EQ(values, (std::vector<T>{n * (n + 1) / 2, T(10) * (n * (n + 1) / 2), T(0)}));
}

TYPED_TEST(Reduce, GathersAndTransposes) {
  using T = TypeParam;
  const Communicator world = Communicator::world();
  const auto n = std::size_t(world.size());
  const std::vector<T> ones = world.all_gather(T(world.rank() + 3));
  std::vector<T> pairs(2 * n), out(2 * n), in(2 * n);
  const std::vector<T> pair{T(world.rank()), T(world.rank() + 100)};
  world.all_gather(std::span(pairs), std::span<const T>(pair));
  for (std::size_t r = 0; r < n; ++r) {
    in[2 * r] = T(world.rank() * 10) + T(r);
    in[2 * r + 1] = T(50);
  }
  world.all_to_all(std::span(out), std::span<const T>(in));

  ASSERT_EQ(ones.size(), n);
  for (std::size_t r = 0; r < n; ++r) {
    EXPECT_EQ(ones[r], T(r + 3));
    EXPECT_EQ(pairs[2 * r], T(r));
    EXPECT_EQ(pairs[2 * r + 1], T(r + 100));
    EXPECT_EQ(out[2 * r], T(r * 10) + T(world.rank()));
    EXPECT_EQ(out[2 * r + 1], T(50));
  }
}

/// Rows that rank s sends to rank d: some pairs send nothing, counts differ both ways.
std::int64_t rows_between(int s, int d) { return (s * 3 + d * 2 + 1) % 5; }

template <class T>
T cell(int s, int d, std::int64_t row, std::int64_t col) {
  return T(float(s * 64 + d * 32 + row * 8 + col));  // below 256: exact in bf16
}

template <class T>
bool same(T a, T b) {
  return a == b;
}
bool same(bf16 a, bf16 b) { return a.bits == b.bits; }

template <class T>
class Rows : public testing::Test {};
using RowTypes = testing::Types<float, double, std::int32_t, bf16>;
TYPED_TEST_SUITE(Rows, RowTypes);

TYPED_TEST(Rows, ArriveOrderedBySourceWithOddCounts) {
  using T = TypeParam;
  const Communicator world = Communicator::world();
  const int n = world.size(), me = world.rank();
  const std::int64_t cols = 7, spare = 2;
  std::vector<std::int64_t> send_rows, receive_rows;
  std::vector<T> send, expected;
  for (int r = 0; r < n; ++r) {
    send_rows.push_back(rows_between(me, r));
    receive_rows.push_back(rows_between(r, me));
    for (std::int64_t i = 0; i < send_rows.back() * cols; ++i) send.push_back(cell<T>(me, r, i / cols, i % cols));
    for (std::int64_t i = 0; i < receive_rows.back() * cols; ++i)
      expected.push_back(cell<T>(r, me, i / cols, i % cols));
  }
  const T guard = cell<T>(3, 1, 3, 7);
  std::vector<T> received(expected.size() + std::size_t(spare * cols), guard);
  expected.resize(received.size(), guard);  // a larger buffer keeps what is behind the rows

  const auto rows_of = [&](const std::vector<T>& v) { return std::int64_t(v.size()) / cols; };
  world.all_to_all_rows(make_tensor(received.data(), rows_of(received), cols), receive_rows,
                        make_tensor(send.data(), rows_of(send), cols), send_rows);

  for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(same(received[i], expected[i])) << "element " << i;
}

/// Two rows for each rank, with a row between those of two ranks, last rank first; they arrive in another order, behind
/// two rows that stay.
TEST(Communicator, RowsToAndFromARankStandAnywhere) {
  const Communicator world = Communicator::world();
  const std::int64_t n = world.size();
  const auto row_of = [](int from, std::int64_t to, std::int64_t i) { return float(100 * from + 10 * to + i); };
  std::vector<float> send(std::size_t(3 * n), -1.0F), receive(std::size_t(2 + 2 * n), -2.0F);
  std::vector<RowRange> out, in;
  for (std::int64_t r = 0; r < n; ++r) {
    out.push_back({3 * (n - 1 - r), 2});
    in.push_back({2 + 2 * ((r + 1) % n), 2});
    for (std::int64_t i = 0; i < 2; ++i) send[std::size_t(out.back().first + i)] = row_of(world.rank(), r, i);
  }
  const Tensor to = make_tensor(receive.data(), 2 + 2 * n, 1), from = make_tensor(send.data(), 3 * n, 1);
  world.start_all_to_all_rows(to, in, from, out).finish();
  EXPECT_EQ(receive[0], -2.0F);
  EXPECT_EQ(receive[1], -2.0F);
  for (std::int64_t r = 0; r < n; ++r) {
    for (std::int64_t i = 0; i < 2; ++i) {
      EXPECT_EQ(receive[std::size_t(in[std::size_t(r)].first + i)], row_of(int(r), world.rank(), i));
    }
  }
  for (const RowRange& wrong : {RowRange{3 * n - 1, 2}, RowRange{-1, 2}, RowRange{0, -1}}) {
    std::vector<RowRange> rows = out;
    rows.back() = wrong;
    EXPECT_THROW((void)world.start_all_to_all_rows(to, in, from, rows), LogicError) << wrong.first;
  }
}

TEST(RowsOfNobody, MayBeExchangedWithoutMemory) {
  const Communicator world = Communicator::world();
  const std::vector<std::int64_t> none(std::size_t(world.size()), 0);

  world.all_to_all_rows(make_tensor<float>(nullptr, 0, 5), none, make_tensor<float>(nullptr, 0, 5), none);
}

TEST(RowsOfNobody, BrokenRequestsAreRefused) {
  const Communicator world = Communicator::world();
  const auto n = std::size_t(world.size());
  std::vector<float> data(n * 8);
  const Tensor t = make_tensor(data.data(), std::int64_t(n), 4);
  const std::vector<std::int64_t> one(n, 1), too_many(n, 2), short_list(n - 1, 1);
  Tensor gaps = t;
  gaps.stride = 8;
  gaps.rows = 2;
  Tensor wide = make_tensor(data.data(), std::int64_t(n), 5);

  EXPECT_THROW(world.all_to_all_rows(t, too_many, t, one), LogicError);
  EXPECT_THROW(world.all_to_all_rows(t, one, t, too_many), LogicError);
  EXPECT_THROW(world.all_to_all_rows(t, short_list, t, one), LogicError);
  EXPECT_THROW(world.all_to_all_rows(gaps, one, t, one), LogicError);
  EXPECT_THROW(world.all_to_all_rows(wide, one, t, one), LogicError);
}

TEST(Communicator, FailuresNameCallCommunicatorRankAndCause) {
  const Communicator world = Communicator::world();
  const Communicator part = world.split(0, world.rank(), "expert");
  std::int32_t value = 0;
  const std::string text = message_of([&] { part.broadcast(std::span(&value, 1), part.size()); });

  EXPECT_NE(text.find("MPI_Bcast"), std::string::npos) << text;
  EXPECT_NE(text.find("communicator expert"), std::string::npos) << text;
  EXPECT_NE(text.find(fmt::format("rank {} of {}", part.rank(), part.size())), std::string::npos) << text;
  EXPECT_NE(text.find("MPI_ERR_ROOT"), std::string::npos) << text;
}

TEST(Communicator, GroupsFollowTheGrid) {
  const Communicator world = Communicator::world();
  for (int degree = 1; degree <= world.size(); ++degree) {
    if (world.size() % degree != 0) continue;
    const ProcessGrid grid(world.size(), world.rank(), degree);
    const Communicators all = Communicators::make(world, grid);

    EXPECT_EQ(all.world.size(), world.size());
    EXPECT_EQ(all.world.rank(), world.rank());
    EXPECT_EQ(all.expert.rank(), grid.expert_rank());
    EXPECT_EQ(all.data.rank(), grid.data_rank());
    const std::vector<std::int32_t> neighbours = all.expert.all_gather(std::int32_t(world.rank()));
    const std::vector<std::int32_t> replicas = all.data.all_gather(std::int32_t(world.rank()));
    ASSERT_EQ(int(neighbours.size()), degree);
    ASSERT_EQ(int(replicas.size()), world.size() / degree);
    for (int i = 0; i < degree; ++i) EXPECT_EQ(neighbours[std::size_t(i)], grid.data_rank() * degree + i);
    for (int i = 0; i < grid.data_size(); ++i) EXPECT_EQ(replicas[std::size_t(i)], i * degree + grid.expert_rank());
  }
}

TEST(Communicator, CountsPayloadAndTime) {
  const Communicator world = Communicator::world();
  const double seconds_before = seconds_in_collectives();
  reset_part_seconds();
  std::vector<double> values(5, 1.0);
  world.all_reduce(std::span(values), ReduceOp::sum);
  std::vector<float> rows(std::size_t(world.size()) * 3, 1.0F), received(rows.size());
  const std::vector<std::int64_t> one(std::size_t(world.size()), 1);
  world.all_to_all_rows(make_tensor(received.data(), world.size(), 3), one, make_tensor(rows.data(), world.size(), 3),
                        one);

  const auto others = std::uint64_t(world.size()) - 1;
  const CollectiveCount none;
  EXPECT_EQ(world.traffic()[CollectiveKind::all_reduce],
            others == 0 ? none : (CollectiveCount{1, others, std::uint64_t{5} * 8}));
  EXPECT_EQ(world.traffic()[CollectiveKind::all_to_all_rows],
            others == 0 ? none : (CollectiveCount{1, others, others * 3 * 4}));
  EXPECT_EQ(world.traffic().total().calls, others == 0 ? 0U : 2U);
  EXPECT_GT(seconds_in_collectives(), seconds_before);
  EXPECT_GT(part_seconds()[std::size_t(Part::communication)], 0.0);
}

/// Notes what it is asked for, and moves nothing.
class NotedTransport : public TensorTransport {
 public:
  struct Notes {
    int started = 0;
    std::vector<Ticket> finished;
  };
  explicit NotedTransport(Notes& notes) : notes_(notes) {}
  Ticket start_all_to_all_rows(const Tensor& /*receive*/, std::span<const RowRange> /*receive_rows*/,
                               const Tensor& /*send*/, std::span<const RowRange> /*send_rows*/) const override {
    return ++notes_.started;
  }
  Ticket start_reduce_scatter_tree(const Tensor& /*flat*/, std::span<const std::int64_t> /*segment_sizes*/,
                                   const Tensor& /*work*/) const override {
    return ++notes_.started;
  }
  Ticket start_all_gather_segments(const Tensor& /*flat*/,
                                   std::span<const std::int64_t> /*segment_sizes*/) const override {
    return ++notes_.started;
  }
  void finish(Ticket ticket) const override { notes_.finished.push_back(ticket); }

 private:
  Notes& notes_;
};

TEST(Communicator, WhatIsStartedIsFinishedOnce) {
  Communicator world = Communicator::world();
  EXPECT_FALSE(world.overlaps());
  NotedTransport::Notes notes;
  world.carry_by(std::make_unique<NotedTransport>(notes));
  EXPECT_TRUE(world.overlaps());
  const std::vector<RowRange> one(std::size_t(world.size()), {0, 1});
  const std::vector<std::int64_t> counts(std::size_t(world.size()), 1);
  std::vector<float> rows(std::size_t(world.size() * 3), 0.0F);
  const Tensor t = make_tensor(rows.data(), world.size(), 3);
  {
    Pending first = world.start_all_to_all_rows(t, one, t, one);
    EXPECT_EQ(world.traffic()[CollectiveKind::all_to_all_rows].calls, world.size() > 1 ? 1U : 0U) << "counted at once";
    Communicator moved = std::move(world);  // takes its transport along
    Pending second = moved.start_all_to_all_rows(t, one, t, one), third = std::move(first);
    EXPECT_TRUE(notes.finished.empty());
    second.finish();
    second.finish();
    EXPECT_EQ(notes.finished, std::vector<int>{2});
    second = moved.start_all_to_all_rows(t, one, t, one);
    second = Pending();  // what was there is finished
    EXPECT_EQ(notes.finished, (std::vector<int>{2, 3}));
    world = std::move(moved);
  }
  EXPECT_EQ(notes.finished, (std::vector<int>{2, 3, 1})) << "at the end of its life";
  world.all_to_all_rows(t, counts, t, counts);
  EXPECT_EQ(notes.finished.back(), 4) << "finished at once";
  EXPECT_EQ(notes.started, 4);
}

/// The same calls on real and on imagined ranks.
void call_all(const Communicator& world, std::vector<float>& flat, std::vector<float>& work) {
  const auto n = std::size_t(world.size());
  std::vector<std::int64_t> sizes(n, 2), rows(n, 0);
  sizes[n - 1] = 0;
  rows[0] = 3;
  std::int64_t total = 0;
  for (const std::int64_t size : sizes) total += size;
  flat.assign(std::size_t(std::max<std::int64_t>(1, total)), 1.0F);
  work.assign(4 * n, 0.0F);
  const Tensor flat_tensor = make_tensor(flat.data(), 1, total);
  world.reduce_scatter_tree(flat_tensor, sizes, make_tensor(work.data(), 1, std::int64_t(work.size())));
  world.all_gather_segments(flat_tensor, sizes);
  std::vector<double> numbers(7, 0.5);
  world.sum_tree(numbers);
  world.all_reduce(std::span(numbers), ReduceOp::max);
  std::vector<std::int64_t> in(3 * n, 1), out(3 * n, 0);
  world.all_to_all<std::int64_t>(out, in);
  std::vector<float> send(6, 1.0F), receive(6 * n, 0.0F);
  std::vector<std::int64_t> arriving(n, world.rank() == 0 ? 3 : 0);
  world.all_to_all_rows(make_tensor(receive.data(), 3 * world.size(), 2), arriving, make_tensor(send.data(), 3, 2),
                        rows);
  world.broadcast(std::span(numbers), 0);
}

TEST(Communicator, ImaginedRanksCountWhatRealOnesDo) {
  const Communicator world = Communicator::world();
  const Communicator imagined = Communicator::imagined(world.rank(), world.size(), "world");
  std::vector<float> flat, work;
  call_all(world, flat, work);
  call_all(imagined, flat, work);

  EXPECT_EQ(imagined.traffic(), world.traffic());
  // By hand: two elements of a sum to each owner but the last, by way of a partner at each distance where the ranks are
  // a power of two; three rows of two to rank 0, a broadcast by rank 0.
  const auto n = std::uint64_t(world.size()), rank = std::uint64_t(world.rank());
  if (n == 1) return;
  const bool last = rank == n - 1;
  const Traffic& t = world.traffic();
  const std::uint64_t receivers = n == 3 ? n - 1 - (last ? 0 : 1) : n == 4 ? (rank == 1 ? 1 : 2) : rank;
  EXPECT_EQ(t[CollectiveKind::reduce_scatter_tree], (CollectiveCount{1, receivers, (n - 1 - (last ? 0 : 1)) * 2 * 4}));
  EXPECT_EQ(t[CollectiveKind::all_gather_segments], (CollectiveCount{1, last ? 0 : n - 1, last ? 0U : 8U}));
  EXPECT_EQ(t[CollectiveKind::all_reduce], (CollectiveCount{2, 2 * (n - 1), 112}));
  EXPECT_EQ(t[CollectiveKind::all_to_all], (CollectiveCount{1, n - 1, 24 * (n - 1)}));
  EXPECT_EQ(t[CollectiveKind::all_to_all_rows], (CollectiveCount{1, rank == 0 ? 0U : 1U, rank == 0 ? 0U : 24U}));
  EXPECT_EQ(t[CollectiveKind::broadcast], (CollectiveCount{1, rank == 0 ? n - 1 : 0, rank == 0 ? 56U : 0U}));
}

}  // namespace
}  // namespace flanmoe
