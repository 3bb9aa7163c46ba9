// main() of every test: starts MPI, keeps a watchdog, and lets rank 0 speak unless another rank fails.
#include <gtest/gtest.h>

#include <chrono>

#include "base/hdf5.hpp"
#include "parallel/communicator.hpp"
#include "parallel/watchdog.hpp"

int main(int argc, char** argv) {
  const flanmoe::MpiEnvironment mpi(&argc, &argv);
  flanmoe::silence_hdf5();
  testing::InitGoogleTest(&argc, argv);
  int failed = 1;
  {
    const auto world = flanmoe::Communicator::world();
    const flanmoe::Watchdog watchdog(std::chrono::seconds(300));
    if (world.rank() != 0) {
      auto& listeners = testing::UnitTest::GetInstance()->listeners();
      delete listeners.Release(listeners.default_result_printer());
    }
    failed = RUN_ALL_TESTS();
    if (failed != 0 && world.rank() != 0) fmt::print(stderr, "rank {}: a test failed\n", world.rank());
    failed = world.all_reduce(std::int32_t(failed), flanmoe::ReduceOp::max);
  }
  return failed;
}
