// For tests that run on the GPU of this machine (FLANMOE_TEST_DEVICE=gpu): every rank takes one; without, the test is
// skipped, and one line says why.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>

namespace {

constexpr int kSkipped = 77;  // SKIP_RETURN_CODE of the tests

class GpuOfThisRank : public testing::Environment {
  void SetUp() override {
    int gpus = 0;
    const cudaError_t error = cudaGetDeviceCount(&gpus);
    if (error != cudaSuccess || gpus == 0) {
      skip("there is no GPU", error != cudaSuccess ? cudaGetErrorString(error) : "the driver lists none");
    }
    const char* local_rank = std::getenv("OMPI_COMM_WORLD_LOCAL_RANK");
    const int rank = local_rank != nullptr ? std::atoi(local_rank) : 0;
    if (rank >= gpus) skip("this rank has no GPU of its own", std::to_string(gpus) + " on this machine");
    if (const cudaError_t set = cudaSetDevice(rank); set != cudaSuccess) {
      std::fprintf(stderr, "cudaSetDevice(%d): %s\n", rank, cudaGetErrorString(set));
      std::_Exit(1);
    }
  }
  [[noreturn]] static void skip(const char* what, const std::string& why) {
    std::fprintf(stderr, "skipped: %s: %s\n", what, why.c_str());
    std::fflush(nullptr);
    std::_Exit(kSkipped);
  }
};

// Tests that need no GPU (of reports and sizes) share the executable, so all of it waits for one.
const testing::Environment* const environment = testing::AddGlobalTestEnvironment(new GpuOfThisRank);

}  // namespace
