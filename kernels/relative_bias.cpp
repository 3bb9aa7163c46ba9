#include "kernels/relative_bias.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace flanmoe {

int relative_bucket(std::int64_t n, bool bidirectional, int num_buckets, int max_distance) {
  int buckets = num_buckets;
  int base = 0;
  if (bidirectional) {
    buckets /= 2;
    if (n < 0) base = buckets;
    n = std::abs(n);
  } else {
    n = std::max<std::int64_t>(n, 0);
  }
  const int exact = buckets / 2;
  if (n < exact) return base + int(n);
  const float ratio = std::log(float(n) / float(exact) + std::numeric_limits<float>::epsilon()) /
                      std::log(float(max_distance) / float(exact));
  return base + std::min(buckets - 1, exact + int(ratio * float(buckets - exact)));
}

}  // namespace flanmoe
