// What the emulated GPU of tests/cuda_host finds: kernels and host code that are wrong on purpose, each beside what is
// right and passes.
#include <gmock/gmock.h>

#include <random>

#include "kernels/cuda/device.cuh"
#include "kernels/kernel_test.hpp"
#include "runtime.hpp"

namespace flanmoe::cuda {
namespace {

using emulation::Fault;
using testing::HasSubstr;
using testing::ThrowsMessage;

/// Floats on the device, by CUDA's own calls: device_memory waits for what is queued before it gives memory back.
struct Floats {
  explicit Floats(std::int64_t n) : count(n), data(nullptr) {
    void* memory = nullptr;
    check(cudaMalloc(&memory, std::size_t(n) * 4), "cudaMalloc");
    data = static_cast<float*>(memory);
  }
  ~Floats() { free(); }
  Floats(const Floats&) = delete;
  Floats& operator=(const Floats&) = delete;
  void free() {
    if (data != nullptr) (void)cudaFree(data);
    data = nullptr;
  }
  std::int64_t count;
  float* data;
};

class Emulation : public testing::Test {
 protected:
  /// Runs what is queued and reads floats back.
  std::vector<float> read(const Floats& x) {
    std::vector<float> out(std::size_t(x.count), 0.0F);
    staging.download(stream.get(), out.data(), x.data, std::size_t(x.count) * 4);
    return out;
  }
  Stream stream, other;
  Staging staging{1 << 16};
};

// ---- barriers ----

template <bool barrier>
__global__ void reverse(float* x) {
  float* room = shared_memory<float>();
  room[threadIdx.x] = float(threadIdx.x);
  if (barrier) __syncthreads();
  x[threadIdx.x] = room[blockDim.x - 1 - threadIdx.x];
}

TEST_F(Emulation, AMissingBarrierGivesWrongResults) {
  Floats x(64);
  std::vector<float> expected;
  for (int i = 63; i >= 0; --i) expected.push_back(float(i));
  launch(reverse<true>, 1, 64, 64 * 4, stream.get(), x.data);
  EXPECT_EQ(read(x), expected);
  launch(reverse<false>, 1, 64, 64 * 4, stream.get(), x.data);
  EXPECT_NE(read(x), expected);
}

__global__ void diverge(int threads) {
  if (int(threadIdx.x) < threads) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void leave_early(int threads) {
  if (int(threadIdx.x) >= threads) return;
  __syncthreads();
}

TEST_F(Emulation, ADivergentBarrierIsAFault) {
  launch(diverge, 2, 64, 0, stream.get(), 64);
  EXPECT_NO_THROW(stream.synchronize());
  launch(diverge, 2, 64, 0, stream.get(), 40);
  EXPECT_THAT([&] { stream.synchronize(); }, ThrowsMessage<Fault>(HasSubstr("wait at different barriers")));
}

TEST_F(Emulation, ABarrierThatAThreadLeftIsAFault) {
  launch(leave_early, 1, 64, 0, stream.get(), 64);
  EXPECT_NO_THROW(stream.synchronize());
  launch(leave_early, 1, 64, 0, stream.get(), 63);
  EXPECT_THAT([&] { stream.synchronize(); }, ThrowsMessage<Fault>(HasSubstr("1 of 64 threads never reach")));
}

// ---- warps ----

__global__ void rotate(float* x, unsigned mask) {
  if ((kAllLanes >> (kWarp - blockDim.x) >> threadIdx.x & 1U) == 0) return;
  x[threadIdx.x] = __shfl_sync(mask, float(threadIdx.x), (int(threadIdx.x) + 1) % int(blockDim.x));
}

TEST_F(Emulation, AWrongShuffleMaskIsAFault) {
  Floats x(32);
  launch(rotate, 1, 32, 0, stream.get(), x.data, kAllLanes);
  EXPECT_EQ(read(x)[31], 0.0F);
  EXPECT_EQ(read(x)[4], 5.0F);
  // A mask that leaves out lanes that take part, and one that names lanes without a thread.
  launch(rotate, 1, 32, 0, stream.get(), x.data, 0xffffU);
  EXPECT_THAT([&] { stream.synchronize(); },
              ThrowsMessage<Fault>(testing::AnyOf(HasSubstr("leaves it out"), HasSubstr("reads lane 16"))));
  launch(rotate, 1, 16, 0, stream.get(), x.data, kAllLanes);
  EXPECT_THAT([&] { stream.synchronize(); }, ThrowsMessage<Fault>(HasSubstr("which has no thread")));
}

__global__ void shuffle_without_some(float* x, int lanes) {
  if (int(threadIdx.x) >= lanes) return;
  x[threadIdx.x] = warp_reduce(1.0F);
}

TEST_F(Emulation, AShuffleWithLanesThatEndedIsAFault) {
  Floats x(32);
  launch(shuffle_without_some, 1, 32, 0, stream.get(), x.data, 32);
  EXPECT_EQ(read(x)[7], 32.0F);
  launch(shuffle_without_some, 1, 32, 0, stream.get(), x.data, 31);
  EXPECT_THAT([&] { stream.synchronize(); },
              ThrowsMessage<Fault>(testing::AnyOf(HasSubstr("whose thread has ended"), HasSubstr("31 (ended)"))));
}

// ---- memory ----

__global__ void count_up(float* x, std::int64_t n) {
  const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n) x[i] = float(i);
}

TEST_F(Emulation, AnOffByOneInTheTailIsFound) {
  Floats whole(40), part(37);
  launch(count_up, 2, 32, 0, stream.get(), whole.data, 40);
  launch(count_up, 2, 32, 0, stream.get(), part.data, 37);
  EXPECT_NO_THROW(stream.synchronize());
  // Behind a last element that fills its 16 bytes comes a closed page; up to there, marked bytes.
  EXPECT_DEATH(
      {
        launch(count_up, 2, 32, 0, stream.get(), whole.data, 41);
        stream.synchronize();
      },
      "byte 160 of 160 bytes of device memory touched, which is outside; by thread");
  launch(count_up, 2, 32, 0, stream.get(), part.data, 38);
  EXPECT_THAT([&] { stream.synchronize(); }, ThrowsMessage<Fault>(HasSubstr("wrote before or behind 148 bytes")));
}

TEST_F(Emulation, UnwrittenOutputIsNotANumber) {
  Floats x(37);
  launch(count_up, 2, 32, 0, stream.get(), x.data, 36);
  const auto values = read(x);
  EXPECT_EQ(values[35], 35.0F);
  EXPECT_TRUE(std::isnan(values[36]));
}

__global__ void copy_rows(float* y, std::int64_t y_stride, const float* x, std::int64_t x_stride) {
  y[blockIdx.x * y_stride + threadIdx.x] = x[blockIdx.x * x_stride + threadIdx.x];
}

TEST_F(Emulation, SwappedStridesGiveWrongResults) {
  Floats x(4 * 7), y(4 * 5);
  launch(count_up, 1, 32, 0, stream.get(), x.data, 28);
  launch(copy_rows, 4, 5, 0, stream.get(), y.data, 5, x.data, 7);
  const auto right = read(y);
  EXPECT_EQ(right[19], 25.0F);
  Floats z(4 * 7);  // larger than needed, so that nothing is outside
  launch(copy_rows, 4, 5, 0, stream.get(), z.data, 7, x.data, 5);
  auto wrong = read(z);
  wrong.resize(20);
  EXPECT_NE(wrong, right);
  EXPECT_DEATH(
      {
        launch(copy_rows, 4, 5, 0, stream.get(), y.data, 7, x.data, 5);
        stream.synchronize();
      },
      "of 80 bytes of device memory touched, which is outside");
}

TEST_F(Emulation, UseAfterFreeIsFound) {
  Floats x(64);
  launch(count_up, 2, 32, 0, stream.get(), x.data, 64);
  EXPECT_DEATH(
      {
        x.free();  // before the stream has run
        stream.synchronize();
      },
      "device memory touched after it was freed; by thread");
  stream.synchronize();
}

TEST_F(Emulation, TheHostCannotTouchDeviceMemory) {
  Floats x(64);
  launch(count_up, 2, 32, 0, stream.get(), x.data, 64);
  stream.synchronize();
  EXPECT_DEATH(x.data[3] = 1, "the host touched byte 12 of 256 bytes of device memory");
  EXPECT_DEATH(fmt::print("{}", x.data[3]), "the host touched byte 12");
}

__global__ void fill_shared(int n) {
  if (int(threadIdx.x) < n) shared_memory<float>()[threadIdx.x] = 1.0F;
}

TEST_F(Emulation, AccessOutsideOfSharedMemoryIsFound) {
  launch(fill_shared, 3, 64, 64 * 4, stream.get(), 64);
  launch(fill_shared, 3, 64, 37 * 4, stream.get(), 37);
  EXPECT_NO_THROW(stream.synchronize());
  launch(fill_shared, 3, 64, 37 * 4, stream.get(), 38);
  EXPECT_THAT([&] { stream.synchronize(); },
              ThrowsMessage<Fault>(HasSubstr("outside of its 148 bytes of shared memory")));
  EXPECT_DEATH(
      {
        launch(fill_shared, 3, 64, 36 * 4, stream.get(), 37);
        stream.synchronize();
      },
      "shared memory touched outside of the block's 144 bytes; by thread \\(36, 0, 0\\)");
}

__global__ void read_shared(float* x) { x[threadIdx.x] = shared_memory<float>()[threadIdx.x]; }

TEST_F(Emulation, SharedMemoryOfTheBlockBeforeIsGone) {
  Floats x(32);
  launch(fill_shared, 1, 32, 32 * 4, stream.get(), 32);
  launch(read_shared, 1, 32, 32 * 4, stream.get(), x.data);
  for (const float value : read(x)) EXPECT_TRUE(std::isnan(value));
}

TEST_F(Emulation, ScratchThatWasGivenBackIsNotANumber) {
  Arena arena("scratch", device_memory);
  arena.allocate(DType::f32, 1, 64);
  arena.commit();
  KernelContext context{&arena, stream.get(), &staging};
  Floats kept(64);
  float* taken = nullptr;
  {
    DeviceScratch scratch(context);
    taken = scratch.take<float>(64);
    launch(count_up, 2, 32, 0, context, taken, 64);
    launch(copy_rows, 1, 64, 0, context, kept.data, 64, taken, 64);
  }
  EXPECT_EQ(read(kept)[63], 63.0F);
  launch(copy_rows, 1, 64, 0, context, kept.data, 64, taken, 64);
  EXPECT_TRUE(std::isnan(read(kept)[63]));
}

// ---- streams ----

TEST_F(Emulation, AMissingEventGivesWrongResultsInSomeOrder) {
  int wrong_with_event = 0, wrong_without = 0;
  const Event written;
  for (int i = 0; i < 40; ++i) {
    const bool with_event = i % 2 == 0;
    Floats x(64), y(64);
    launch(count_up, 2, 32, 0, stream.get(), x.data, 64);
    if (with_event) {
      written.record(stream.get());
      written.hold(other.get());
    }
    launch(copy_rows, 1, 64, 0, other.get(), y.data, 64, x.data, 64);
    other.synchronize();
    const bool wrong = read(y)[63] != 63.0F;
    (with_event ? wrong_with_event : wrong_without) += wrong ? 1 : 0;
  }
  EXPECT_EQ(wrong_with_event, 0);
  EXPECT_GT(wrong_without, 0);
}

TEST_F(Emulation, NothingRunsBeforeTheHostWaits) {
  Floats x(4);
  float* pinned = nullptr;
  check(cudaMallocHost(reinterpret_cast<void**>(&pinned), 16), "cudaMallocHost");
  std::fill(pinned, pinned + 4, 1.0F);
  check(cudaMemcpyAsync(x.data, pinned, 16, cudaMemcpyHostToDevice, stream.get()), "cudaMemcpyAsync");
  pinned[0] = 2;  // too early: the copy has not been made
  EXPECT_EQ(read(x)[0], 2.0F);
  check(cudaFreeHost(pinned), "cudaFreeHost");
}

TEST_F(Emulation, CopiesNeedPinnedMemoryAndAStream) {
  Floats x(4);
  const std::vector<float> pageable(4, 1.0F);
  check(cudaMemcpyAsync(x.data, pageable.data(), 16, cudaMemcpyHostToDevice, stream.get()), "cudaMemcpyAsync");
  EXPECT_THAT([&] { stream.synchronize(); }, ThrowsMessage<Fault>(HasSubstr("are not pinned memory")));
  EXPECT_THROW(launch(count_up, 1, 32, 0, cudaStream_t{nullptr}, x.data, 4), Fault);
}

// ---- what device.cuh has of PTX ----

__global__ void copy_without_waiting(float* x, const float* y, bool wait) {
  float* room = shared_memory<float>();
  if (threadIdx.x < 4) copy_async_16(room + 4 * threadIdx.x, y + 4 * threadIdx.x);
  copy_async_commit();
  if (wait) copy_async_wait<0>();
  __syncthreads();
  x[threadIdx.x] = room[threadIdx.x];
}

TEST_F(Emulation, CopiesThatNobodyWaitsForHaveNotHappened) {
  Floats x(16), y(16);
  launch(count_up, 1, 32, 0, stream.get(), y.data, 16);
  launch(copy_without_waiting, 1, 16, 64, stream.get(), x.data, y.data, true);
  EXPECT_EQ(read(x)[15], 15.0F);
  launch(copy_without_waiting, 1, 16, 64, stream.get(), x.data, y.data, false);
  EXPECT_TRUE(std::isnan(read(x)[15]));
}

/// One product: lane 4 g + t holds what PTX says of m16n8k16.
__global__ void one_product(float* c, const float* a, const float* b) {
  const int g = int(threadIdx.x) / 4, t = int(threadIdx.x) % 4;
  const auto pair = [](float low, float high) {
    return std::uint32_t{round_to<bf16>(low).bits} | std::uint32_t{round_to<bf16>(high).bits} << 16U;
  };
  std::uint32_t fa[4], fb[2];
  for (int r = 0; r < 4; ++r) {
    const float* at = a + (g + 8 * (r % 2)) * 16 + 2 * t + 8 * (r / 2);
    fa[r] = pair(at[0], at[1]);
  }
  for (int r = 0; r < 2; ++r) fb[r] = pair(b[(2 * t + 8 * r) * 8 + g], b[(2 * t + 1 + 8 * r) * 8 + g]);
  float fc[4] = {1, 1, 1, 1};
  mma_16x8x16(fc, fa, fb);
  for (int r = 0; r < 4; ++r) c[(g + 8 * (r / 2)) * 8 + 2 * t + r % 2] = fc[r];
}

TEST_F(Emulation, AProductOfAWarpIsThatOfItsMatrices) {
  std::mt19937 engine(1);
  std::vector<float> a(256), b(128);
  for (std::vector<float>* m : {&a, &b}) {
    for (float& x : *m) x = float(int(engine() % 17) - 8);  // exact in bf16, and so are the sums in fp32
  }
  Floats da(256), db(128), dc(128);
  staging.upload(stream.get(), da.data, a.data(), 256 * 4);
  staging.upload(stream.get(), db.data, b.data(), 128 * 4);
  launch(one_product, 1, 32, 0, stream.get(), dc.data, da.data, db.data);
  const auto c = read(dc);
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) {
      float sum = 1;
      for (int k = 0; k < 16; ++k) sum += a[std::size_t(i * 16 + k)] * b[std::size_t(k * 8 + j)];
      EXPECT_EQ(c[std::size_t(i * 8 + j)], sum) << i << " " << j;
    }
  }
}

}  // namespace
}  // namespace flanmoe::cuda
