// Collectives between GPUs, against those between ranks.
#include "parallel/device_communicator.hpp"

#include <gtest/gtest.h>
#include <nccl.h>

#include <array>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/elementwise.hpp"
#include "kernels/on_device.hpp"
#include "tensor/philox.hpp"

namespace flanmoe {
namespace {

/// Memory of the device and of the host with the same content.
class Mirrored {
 public:
  Mirrored(DType dtype, std::int64_t rows, std::int64_t cols) : bytes_(std::size_t(rows * cols) * size_of(dtype)) {
    host = {bytes_.data(), dtype, 1, rows, cols, cols};
    device = host;
    device.data = cuda::device_memory.take(bytes_.size() + 16);
  }
  ~Mirrored() { cuda::device_memory.give_back(device.data, bytes_.size() + 16); }
  Mirrored(const Mirrored&) = delete;
  Mirrored& operator=(const Mirrored&) = delete;
  void upload() const { bench().staging.upload(bench().stream.get(), device.data, host.data, bytes_.size()); }
  std::vector<char> on_device() const {
    std::vector<char> copy(bytes_.size());
    bench().staging.download(bench().stream.get(), copy.data(), device.data, copy.size());
    return copy;
  }
  const std::vector<char>& on_host() const { return bytes_; }
  Tensor host, device;

  static test::DeviceBench& bench() { return test::DeviceBench::instance(); }

 private:
  std::vector<char> bytes_;
};

cudaStream_t stream() { return Mirrored::bench().stream.get(); }
/// Where collectives run.
cudaStream_t beside() {
  static const cuda::Stream urgent(true);
  return urgent.get();
}

/// Any sign, magnitudes over six decades, so that every order of adding rounds differently.
float number(int rank, std::int64_t i) {
  const RandomKey key{7, RandomPurpose::test, 0, 0};
  const float x = key.uniform(std::uint64_t(rank), std::uint32_t(2 * i)) - 0.5F;
  return x * std::pow(10.0F, 6.0F * key.uniform(std::uint64_t(rank), std::uint32_t(2 * i + 1)) - 3.0F);
}
void fill(const Mirrored& x, int rank) {
  for (std::int64_t i = 0; i < x.host.size(); ++i) {
    if (x.host.dtype == DType::f32) x.host.as<float>()[i] = number(rank, i);
    if (x.host.dtype == DType::bf16) x.host.as<bf16>()[i] = bf16(number(rank, i));
  }
  x.upload();
}

/// Segments of different sizes, one of them empty where there are three ranks or more.
std::vector<std::int64_t> segments(int size) {
  std::vector<std::int64_t> sizes;
  for (int r = 0; r < size; ++r) sizes.push_back(r == 2 ? 0 : 500 + 37 * r);
  return sizes;
}
std::int64_t sum(const std::vector<std::int64_t>& list) {
  return std::accumulate(list.begin(), list.end(), std::int64_t{0});
}
/// The bytes of segment `rank`.
std::vector<char> segment(const std::vector<char>& bytes, const std::vector<std::int64_t>& sizes, int rank,
                          DType dtype) {
  const auto at = std::accumulate(sizes.begin(), sizes.begin() + rank, std::int64_t{0});
  const auto element = std::int64_t(size_of(dtype));
  return {bytes.begin() + at * element, bytes.begin() + (at + sizes[std::size_t(rank)]) * element};
}

TEST(DeviceCommunicator, ReduceScatterGivesTheBitsOfTheHost) {
  const auto world = Communicator::world();
  const DeviceCommunicator devices(world, stream(), beside());
  const auto sizes = segments(world.size());
  for (const DType dtype : {DType::f32, DType::bf16}) {
    Mirrored flat(dtype, 1, sum(sizes)),
        work(dtype, 1, std::max<std::int64_t>(1, Communicator::reduce_scatter_work(sizes, dtype)));
    fill(flat, world.rank());
    devices.finish(devices.start_reduce_scatter_tree(flat.device, sizes, work.device));
    const auto got = segment(flat.on_device(), sizes, world.rank(), dtype);
    world.reduce_scatter_tree(flat.host, sizes, work.host);
    EXPECT_EQ(got, segment(flat.on_host(), sizes, world.rank(), dtype)) << name_of(dtype);
  }
}

TEST(DeviceCommunicator, SegmentsReachEveryRank) {
  const auto world = Communicator::world();
  const DeviceCommunicator devices(world, stream(), beside());
  const auto sizes = segments(world.size());
  Mirrored flat(DType::bf16, 1, sum(sizes));
  fill(flat, world.rank());
  devices.finish(devices.start_all_gather_segments(flat.device, sizes));
  const auto got = flat.on_device();
  world.all_gather_segments(flat.host, sizes);
  EXPECT_EQ(got, flat.on_host());
}

/// Rank s sends (3 s + r) % 4 rows to rank r; there are four for every rank, and those of the last rank stand first.
TEST(DeviceCommunicator, RowsGoWhereTheHostSendsThem) {
  const auto world = Communicator::world();
  const DeviceCommunicator devices(world, stream(), beside());
  std::vector<RowRange> out, in;
  for (int r = 0; r < world.size(); ++r) {
    const std::int64_t first = 4 * (world.size() - 1 - r);
    out.push_back({first, (3 * world.rank() + r) % 4});
    in.push_back({first, (3 * r + world.rank()) % 4});
  }
  for (const DType dtype : {DType::f32, DType::bf16}) {
    Mirrored send(dtype, 4 * world.size(), 33), receive(dtype, 4 * world.size(), 33);
    fill(send, world.rank());
    receive.upload();  // what nobody sends stays
    devices.finish(devices.start_all_to_all_rows(receive.device, in, send.device, out));
    world.start_all_to_all_rows(receive.host, in, send.host, out).finish();
    EXPECT_EQ(receive.on_device(), receive.on_host()) << name_of(dtype);
  }
}

TEST(DeviceCommunicator, ReducesCounts) {
  const auto world = Communicator::world();
  const DeviceCommunicator devices(world, stream(), beside());
  for (const auto& [op, expected] : {std::pair{ReduceOp::sum, world.size() * (world.size() + 1) / 2},
                                     {ReduceOp::min, 1},
                                     {ReduceOp::max, world.size()}}) {
    Mirrored count(DType::i32, 1, 3);
    for (int i = 0; i < 3; ++i) count.host.as<std::int32_t>()[i] = world.rank() + 1;
    count.upload();
    devices.finish(devices.start_all_reduce(count.device, op));
    const auto bytes = count.on_device();
    for (int i = 0; i < 3; ++i) {
      std::int32_t got = 0;
      std::memcpy(&got, bytes.data() + 4 * i, 4);
      EXPECT_EQ(got, expected);
    }
  }
}

/// Groups of a split have communicators of their own, used one after another and behind one another on one stream.
TEST(DeviceCommunicator, GroupsDoNotMix) {
  const auto world = Communicator::world();
  const auto half = world.split(world.rank() % 2, world.rank(), "half");
  const DeviceCommunicator all(world, stream(), beside()), part(half, stream(), beside());
  EXPECT_EQ(part.size(), half.size());
  Mirrored count(DType::i32, 1, 1);
  *count.host.as<std::int32_t>() = 1 + world.rank() % 2 * 10;
  count.upload();
  part.finish(part.start_all_reduce(count.device, ReduceOp::sum));
  all.finish(all.start_all_reduce(count.device, ReduceOp::max));
  std::int32_t got = 0;
  std::memcpy(&got, count.on_device().data(), 4);
  const int even = (world.size() + 1) / 2, odd = world.size() / 2;
  EXPECT_EQ(got, std::max(even, 11 * odd));
}

/// Three rows to every rank from every rank, computed right before they are sent and used right behind their arrival:
/// `sent` holds a copy of what the host wrote, and `used` a copy of what arrived.
class Rows {
 public:
  explicit Rows(int ranks)
      : written_(DType::f32, 3 * ranks, 33),
        sent_(DType::f32, 3 * ranks, 33),
        arrived_(DType::f32, 3 * ranks, 33),
        used_(DType::f32, 3 * ranks, 33) {
    for (int r = 0; r < ranks; ++r) n_.push_back({3 * r, 3});
  }
  void compute(int rank, int round) const {
    fill(written_, rank + 100 * round);
    copy(sent_, written_);
  }
  Pending start(const Communicator& world) const {
    return world.start_all_to_all_rows(arrived_.device, n_, sent_.device, n_);
  }
  std::vector<char> use() const {
    copy(used_, arrived_);
    return used_.on_device();
  }
  std::vector<char> expected(const Communicator& host) const {
    host.start_all_to_all_rows(arrived_.host, n_, written_.host, n_).finish();
    return arrived_.on_host();
  }

 private:
  static void copy(const Mirrored& to, const Mirrored& from) {
    cuda::elementwise_kernels.convert(Mirrored::bench().context, to.device, from.device);
  }
  std::vector<RowRange> n_;
  Mirrored written_, sent_, arrived_, used_;
};

constexpr int kRounds = 20;  // the emulation draws another order of the streams in each

/// Communicators whose tensors travel between devices; kernels run on `compute` as far as the communicator knows.
Communicator between_devices(const Communicator& host, cudaStream_t compute, cudaStream_t communication) {
  Communicator result = Communicator::duplicate(host.raw());
  result.carry_by(std::make_unique<DeviceCommunicator>(result, compute, communication));
  return result;
}

TEST(DeviceCommunicator, CollectivesKeepTheirPlaceAmongKernels) {
  const auto host = Communicator::world();
  const Communicator world = between_devices(host, stream(), beside());
  EXPECT_TRUE(world.overlaps());
  const Rows rows(world.size()), others(world.size());
  for (int round = 0; round < kRounds; ++round) {
    rows.compute(world.rank(), round);
    Pending first = rows.start(world);
    others.compute(world.rank(), round + kRounds);  // beside the first exchange
    Pending second = others.start(world);
    first.finish();
    EXPECT_EQ(rows.use(), rows.expected(host)) << "round " << round;
    second.finish();
    EXPECT_EQ(others.use(), others.expected(host)) << "round " << round;
  }
}

#if FLANMOE_CUDA_EMULATED
/// Rounds in which somebody used something else than what should have arrived.
template <class F>
int wrong_rounds(const Communicator& world, const F& exchange) {
  const auto host = Communicator::world();
  const Rows rows(world.size());
  int wrong = 0;
  for (int round = 0; round < kRounds; ++round) {
    rows.compute(world.rank(), round);
    exchange(rows);
    wrong += rows.use() != rows.expected(host) ? 1 : 0;
    cuda::check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  }
  return host.all_reduce(std::int32_t(wrong), ReduceOp::sum);
}

TEST(DeviceCommunicator, EmulationFindsACommunicatorOnTwoStreams) {
  ncclUniqueId id{};
  ncclComm_t alone = nullptr;
  Mirrored count(DType::i32, 1, 1);
  const auto reduce_on = [&](cudaStream_t on) {
    return ncclAllReduce(count.device.data, count.device.data, 1, ncclInt32, ncclSum, alone, on);
  };
  ASSERT_EQ(ncclGetUniqueId(&id), ncclSuccess);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  EXPECT_NE(ncclCommInitRankConfig(&alone, 1, id, 0, &config), ncclSuccess) << "as many blocks as NCCL likes";
  config.maxCTAs = 32;
  ASSERT_EQ(ncclCommInitRankConfig(&alone, 1, id, 0, &config), ncclSuccess);
  EXPECT_EQ(reduce_on(stream()), ncclSuccess);
  EXPECT_THROW(reduce_on(beside()), emulation::Fault);
  EXPECT_EQ(ncclCommDestroy(alone), ncclSuccess);
}

TEST(DeviceCommunicator, EmulationFindsAnExchangeThatNobodyFinishes) {
  const Communicator world = between_devices(Communicator::world(), stream(), beside());
  std::vector<Pending> unfinished;
  EXPECT_GT(wrong_rounds(world, [&](const Rows& rows) { unfinished.push_back(rows.start(world)); }), 0);
  EXPECT_EQ(wrong_rounds(world, [&](const Rows& rows) { rows.start(world).finish(); }), 0);
}

TEST(DeviceCommunicator, EmulationFindsAnExchangeThatDoesNotWaitForKernels) {
  const cuda::Stream idle;
  const Communicator world = between_devices(Communicator::world(), idle.get(), beside());
  const cuda::Event arrived;
  EXPECT_GT(wrong_rounds(world,
                         [&](const Rows& rows) {
                           rows.start(world).finish();  // holds the idle stream only
                           arrived.record(beside());
                           arrived.hold(stream());
                         }),
            0);
}
#endif

/// Rank 0 computes, and reads the result, while its exchange waits for the others, which start theirs only then. Once
/// before, since NCCL connects ranks, with the host waiting, when they meet for the first time.
TEST(DeviceCommunicator, ComputingGoesOnWhileAnExchangeWaits) {
  const auto host = Communicator::world();
  const Communicator world = between_devices(host, stream(), beside());
  const Rows rows(world.size());
  Mirrored other(DType::f32, 4, 33);
  for (int round = 0; round < 2; ++round) {
    rows.compute(world.rank(), round);
    Pending pending;
    if (world.rank() == 0 || round == 0) pending = rows.start(world);
    fill(other, round);
    EXPECT_EQ(other.on_device(), other.on_host());
    host.barrier();
    if (world.rank() != 0 && round == 1) pending = rows.start(world);
    pending.finish();
    EXPECT_EQ(rows.use(), rows.expected(host));
  }
}

/// The host of rank 0 waits in a sum for the others, which come only when they have its rows.
TEST(DeviceCommunicator, AnExchangeGoesOnWhileTheHostWaitsForOtherRanks) {
  const auto host = Communicator::world();
  const Communicator world = between_devices(host, stream(), beside());
  const Rows rows(world.size());
  rows.compute(world.rank(), 0);
  Pending pending = rows.start(world);
  std::array<double, 1> ranks = {1.0};
  if (world.rank() == 0) host.sum_tree(ranks);
  pending.finish();
  const std::vector<char> used = rows.use();
  if (world.rank() != 0) host.sum_tree(ranks);
  EXPECT_EQ(ranks[0], double(world.size()));
  EXPECT_EQ(used, rows.expected(host));
}

/// As gradient sums of all ranks and rows of a group do: both under way, on streams of their own.
TEST(DeviceCommunicator, TwoCommunicatorsMayBeUnderWay) {
  const auto host = Communicator::world();
  const auto half = host.split(host.rank() % 2, host.rank(), "half");
  const cuda::Stream sums(true);
  const Communicator world = between_devices(host, stream(), sums.get()),
                     part = between_devices(half, stream(), beside());
  const auto sizes = segments(world.size());
  Mirrored flat(DType::f32, 1, sum(sizes)),
      work(DType::f32, 1, std::max<std::int64_t>(1, Communicator::reduce_scatter_work(sizes, DType::f32)));
  const Rows rows(part.size());
  for (int round = 0; round < kRounds; ++round) {
    fill(flat, world.rank() + round);
    Pending summed = world.start_reduce_scatter_tree(flat.device, sizes, work.device);
    rows.compute(part.rank(), round);
    Pending moved = rows.start(part);
    if (round % 2 == 0) moved.finish();
    summed.finish();
    moved.finish();
    EXPECT_EQ(rows.use(), rows.expected(half)) << "round " << round;
    const auto got = segment(flat.on_device(), sizes, world.rank(), DType::f32);
    host.reduce_scatter_tree(flat.host, sizes, work.host);
    EXPECT_EQ(got, segment(flat.on_host(), sizes, world.rank(), DType::f32)) << "round " << round;
  }
}

TEST(DeviceCommunicator, CountsThatDoNotFitAreRefused) {
  const auto world = Communicator::world();
  const DeviceCommunicator devices(world, stream(), beside());
  Mirrored flat(DType::f32, 1, 8), work(DType::f32, 1, 1);
  const std::vector<std::int64_t> sizes(std::size_t(world.size()), 9), none(std::size_t(world.size()) + 1, 0);
  EXPECT_THROW(devices.start_reduce_scatter_tree(flat.device, sizes, work.device), LogicError);
  EXPECT_THROW(devices.start_all_gather_segments(flat.device, none), LogicError);
}

}  // namespace
}  // namespace flanmoe
