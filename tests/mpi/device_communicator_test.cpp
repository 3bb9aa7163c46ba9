// Collectives between GPUs, against those between ranks.
#include "parallel/device_communicator.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <vector>

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
  const DeviceCommunicator devices(world, stream());
  const auto sizes = segments(world.size());
  for (const DType dtype : {DType::f32, DType::bf16}) {
    Mirrored flat(dtype, 1, sum(sizes)),
        work(dtype, 1, std::max<std::int64_t>(1, Communicator::reduce_scatter_work(sizes, dtype)));
    fill(flat, world.rank());
    devices.reduce_scatter_tree(flat.device, sizes, work.device);
    const auto got = segment(flat.on_device(), sizes, world.rank(), dtype);
    world.reduce_scatter_tree(flat.host, sizes, work.host);
    EXPECT_EQ(got, segment(flat.on_host(), sizes, world.rank(), dtype)) << name_of(dtype);
  }
}

TEST(DeviceCommunicator, SegmentsReachEveryRank) {
  const auto world = Communicator::world();
  const DeviceCommunicator devices(world, stream());
  const auto sizes = segments(world.size());
  Mirrored flat(DType::bf16, 1, sum(sizes));
  fill(flat, world.rank());
  devices.all_gather_segments(flat.device, sizes);
  const auto got = flat.on_device();
  world.all_gather_segments(flat.host, sizes);
  EXPECT_EQ(got, flat.on_host());
}

/// Rank s sends (3 s + r) % 4 rows to rank r.
TEST(DeviceCommunicator, RowsGoWhereTheHostSendsThem) {
  const auto world = Communicator::world();
  const DeviceCommunicator devices(world, stream());
  std::vector<std::int64_t> out, in;
  for (int r = 0; r < world.size(); ++r) {
    out.push_back((3 * world.rank() + r) % 4);
    in.push_back((3 * r + world.rank()) % 4);
  }
  for (const DType dtype : {DType::f32, DType::bf16}) {
    Mirrored send(dtype, sum(out), 33), receive(dtype, sum(in), 33);
    fill(send, world.rank());
    devices.all_to_all_rows(receive.device, in, send.device, out);
    world.all_to_all_rows(receive.host, in, send.host, out);
    EXPECT_EQ(receive.on_device(), receive.on_host()) << name_of(dtype);
  }
}

TEST(DeviceCommunicator, ReducesCounts) {
  const auto world = Communicator::world();
  const DeviceCommunicator devices(world, stream());
  for (const auto& [op, expected] : {std::pair{ReduceOp::sum, world.size() * (world.size() + 1) / 2},
                                     {ReduceOp::min, 1},
                                     {ReduceOp::max, world.size()}}) {
    Mirrored count(DType::i32, 1, 3);
    for (int i = 0; i < 3; ++i) count.host.as<std::int32_t>()[i] = world.rank() + 1;
    count.upload();
    devices.all_reduce(count.device, op);
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
  const DeviceCommunicator all(world, stream()), part(half, stream());
  EXPECT_EQ(part.size(), half.size());
  Mirrored count(DType::i32, 1, 1);
  *count.host.as<std::int32_t>() = 1 + world.rank() % 2 * 10;
  count.upload();
  part.all_reduce(count.device, ReduceOp::sum);
  all.all_reduce(count.device, ReduceOp::max);
  std::int32_t got = 0;
  std::memcpy(&got, count.on_device().data(), 4);
  const int even = (world.size() + 1) / 2, odd = world.size() / 2;
  EXPECT_EQ(got, std::max(even, 11 * odd));
}

TEST(DeviceCommunicator, CountsThatDoNotFitAreRefused) {
  const auto world = Communicator::world();
  const DeviceCommunicator devices(world, stream());
  Mirrored flat(DType::f32, 1, 8), work(DType::f32, 1, 1);
  const std::vector<std::int64_t> sizes(std::size_t(world.size()), 9), none(std::size_t(world.size()) + 1, 0);
  EXPECT_THROW(devices.reduce_scatter_tree(flat.device, sizes, work.device), LogicError);
  EXPECT_THROW(devices.all_gather_segments(flat.device, none), LogicError);
}

}  // namespace
}  // namespace flanmoe
