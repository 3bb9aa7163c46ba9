#include "kernels/transfer.hpp"

#include <numeric>

#include "kernels/elementwise.hpp"
#include "kernels/kernel_test.hpp"
#include "kernels/on_device.hpp"

namespace flanmoe {
namespace {

using test::Buffer;
using test::DeviceBench;

/// Memory of the device for one tensor.
class OnDevice {
 public:
  OnDevice(DType dtype, std::int64_t rows, std::int64_t cols) : memory_("memory", cuda::device_memory) {
    memory_.allocate(dtype, rows, cols);
    memory_.commit();
    view = memory_.allocate(dtype, rows, cols);
  }
  Tensor view;

 private:
  Arena memory_;
};

KernelContext& context() { return DeviceBench::instance().context; }

TEST(Transfer, NothingMovesWhereTheHostReachesTensors) {
  for (const TransferKernels* transfer : {&reference::transfer_kernels, &cpu::transfer_kernels}) {
    EXPECT_TRUE(transfer->host_reaches());
    KernelContext none;
    Buffer x(DType::f32, 3, 5);
    x.randomize(1);
    HostRoom room(*transfer);
    EXPECT_EQ(room.read(none, x).data, x.view().data);
    EXPECT_EQ(room.like(x).data, x.view().data);
    const std::vector<std::int32_t> list = {4, 7};
    EXPECT_EQ(list_on_device(none, *transfer, {}, list).data, list.data());
    Arena arena("lists");
    EXPECT_EQ(list_room(*transfer, arena, 1000).size(), 0);
    Buffer copy(DType::f32, 3, 5), narrow(DType::bf16, 3, 5), expected(DType::bf16, 3, 5);
    transfer->download(none, copy, x);
    EXPECT_TRUE(same_bits(copy, x));
    transfer->upload(none, narrow, x);
    reference::elementwise_kernels.convert(none, expected, x);
    EXPECT_TRUE(same_bits(narrow, expected));
  }
}

/// Larger than what is converted, or staged, at one time.
TEST(Transfer, TensorsComeBackFromTheDeviceAsTheyWere) {
  ASSERT_FALSE(cuda::transfer_kernels.host_reaches());
  const OnDevice there(DType::f32, 3, 700001);
  Buffer x(DType::f32, 3, 700001), back(DType::f32, 3, 700001);
  x.randomize(1);
  cuda::transfer_kernels.upload(context(), there.view, x);
  const Buffer sent = std::move(x);
  cuda::transfer_kernels.download(context(), back, there.view);
  EXPECT_TRUE(same_bits(back, sent));
  HostRoom room(cuda::transfer_kernels);
  const Tensor read = room.read(context(), there.view);
  EXPECT_NE(read.data, there.view.data);
  EXPECT_EQ(std::memcmp(read.data, sent.view().data, read.bytes()), 0);
}

TEST(Transfer, UploadRoundsToTheTypeOfTheTensor) {
  const OnDevice there(DType::bf16, 1, 300001);
  Buffer x(DType::f32, 1, 300001), expected(DType::bf16, 1, 300001), back(DType::bf16, 1, 300001);
  x.randomize(2, 50);
  reference::elementwise_kernels.convert(context(), expected, x);
  cuda::transfer_kernels.upload(context(), there.view, x);
  x.fill(0);  // the owner may change it at once
  cuda::transfer_kernels.download(context(), back, there.view);
  EXPECT_TRUE(same_bits(back, expected));
}

TEST(Transfer, WhatTheHostFillsAndItsListsReachTheDevice) {
  const OnDevice there(DType::f64, 2, 9), lists(DType::i32, 100, 1);
  HostRoom room(cuda::transfer_kernels);
  const auto filled = room.like(there.view).flat<double>();
  std::iota(filled.begin(), filled.end(), 3.0);
  room.write(context(), there.view);
  const auto back = room.read(context(), there.view).flat<double>();
  for (std::size_t i = 0; i < back.size(); ++i) EXPECT_EQ(back[i], 3.0 + double(i));

  std::vector<std::int32_t> list(60);
  std::iota(list.begin(), list.end(), 7);
  const Tensor on_device = list_on_device(context(), cuda::transfer_kernels, lists.view, list);
  EXPECT_EQ(on_device.rows, 60);
  std::fill(list.begin(), list.end(), 0);
  const auto arrived = room.read(context(), on_device).flat<std::int32_t>();
  for (std::size_t i = 0; i < arrived.size(); ++i) EXPECT_EQ(arrived[i], 7 + int(i));
  EXPECT_THROW(list_on_device(context(), cuda::transfer_kernels, lists.view, std::vector<std::int32_t>(101)),
               LogicError);
}

TEST(Transfer, WrongOperandsAreRefused) {
  Buffer x(DType::f32, 2, 3), y(DType::f32, 3, 2), wide(DType::f64, 2, 3), strided(DType::f32, 2, 3, 1);
  for (const TransferKernels* transfer :
       {&reference::transfer_kernels, &cpu::transfer_kernels, &cuda::transfer_kernels}) {
    EXPECT_THROW(transfer->upload(context(), x, y), LogicError);
    EXPECT_THROW(transfer->upload(context(), x, strided), LogicError);
    EXPECT_THROW(transfer->download(context(), wide, x), LogicError);
  }
}

}  // namespace
}  // namespace flanmoe
