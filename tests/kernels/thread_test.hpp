// Runs a kernel on several numbers of threads and expects the same bits.
#pragma once

#include <omp.h>

#include <functional>

#include "kernels/kernel_test.hpp"

namespace flanmoe::test {

/// `run` makes its operands from fixed seeds, runs a kernel large enough to use threads, and moves its results to
/// `out`.
inline void expect_same_bits_on_threads(const std::function<void(std::vector<Buffer>& out)>& run) {
  const int before = omp_get_max_threads();
  std::vector<Buffer> expected;
  omp_set_num_threads(1);
  run(expected);
  for (const int threads : {2, 3, 5}) {
    std::vector<Buffer> actual;
    omp_set_num_threads(threads);
    run(actual);
    ASSERT_EQ(actual.size(), expected.size());
    for (std::size_t i = 0; i < expected.size(); ++i) {
      EXPECT_TRUE(same_bits(actual[i], expected[i])) << "result " << i << " on " << threads << " threads";
    }
  }
  omp_set_num_threads(before);
}

}  // namespace flanmoe::test
