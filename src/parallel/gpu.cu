// One rank, one GPU.
#include <algorithm>
#include <array>
#include <vector>

#include "base/host.hpp"
#include "kernels/cuda/runtime.hpp"
#include "parallel/device.hpp"
#include "parallel/device_communicator.hpp"
#include "parallel/together.hpp"
#include "tensor/philox.hpp"

namespace flanmoe {
namespace {

// The lists of an operation: 8 bytes for each of at most a million tokens.
constexpr std::size_t kStagingBytes = std::size_t{32} << 20;

class Gpu : public Device {
 public:
  KernelContext context() override { return {nullptr, stream_.get(), &staging_}; }
  /// Rows of experts have a stream of their own, so that they need not queue behind gradient sums; the other two
  /// communicators share one, on which the optimizer relies: their sums share the memory they work in.
  void connect(Communicators& communicators) override {
    const auto carry = [&](Communicator& c, const cuda::Stream& stream) {
      if (c.size() > 1) c.carry_by(std::make_unique<DeviceCommunicator>(c, stream_.get(), stream.get()));
    };
    carry(communicators.world, sums_);
    carry(communicators.data, sums_);
    carry(communicators.expert, rows_);
  }

 private:
  cuda::Stream stream_, rows_{true}, sums_{true};
  cuda::Staging staging_{kStagingBytes};
};

/// GPUs that this process sees; says why when there is none.
int count_gpus() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    usage_fail("run.device = cuda: there is no GPU here: {}; expected a GPU for every rank, or run.device = cpu",
               error != cudaSuccess ? cudaGetErrorString(error) : "the driver lists none");
  }
  return count;
}

/// Two ranks with one GPU would wait for each other inside NCCL.
void expect_own_gpu(const Communicator& world, const std::string& host, int gpus) {
  std::array<char, 32> bus{};
  int gpu = 0;
  cuda::check(cudaGetDevice(&gpu), "cudaGetDevice");
  cuda::check(cudaDeviceGetPCIBusId(bus.data(), int(bus.size()), gpu), "cudaDeviceGetPCIBusId");
  const std::uint64_t own = hash_name(host + bus.data());
  const std::vector<std::uint64_t> all = world.all_gather(own);
  const auto sharing = std::count(all.begin(), all.end(), own);
  together(world, [&] {
    if (sharing == 1) return;
    usage_fail("run.device = cuda: {} ranks on host {} share one GPU ({} visible); expected a GPU for every rank",
               sharing, host, gpus);
  });
}

}  // namespace

std::unique_ptr<Device> open_gpu(const Communicator& world) {
  const std::string host = host_name();
  const std::vector<std::uint64_t> hosts = world.all_gather(hash_name(host));
  const auto before = std::count(hosts.begin(), hosts.begin() + world.rank(), hosts[std::size_t(world.rank())]);
  int gpus = 0;
  // Launchers may show every rank its own GPU only: then each is number 0.
  together(world, [&] {
    gpus = count_gpus();
    cuda::check(cudaSetDevice(int(before) % gpus), "cudaSetDevice");
  });
  expect_own_gpu(world, host, gpus);
  std::unique_ptr<Device> device;
  together(world, [&] { device = std::make_unique<Gpu>(); });
  return device;
}

}  // namespace flanmoe
