#include "parallel/process_grid.hpp"

namespace flanmoe {
namespace {

std::string divisors_of(int n) {
  std::string text;
  for (int d = 1; d <= n; ++d) {
    if (n % d == 0) text += (text.empty() ? "" : ", ") + std::to_string(d);
  }
  return text;
}

}  // namespace

ProcessGrid::ProcessGrid(int world_size, int world_rank, int expert_size)
    : world_size_(world_size), world_rank_(world_rank), expert_size_(expert_size) {
  FLANMOE_EXPECT(world_size >= 1 && world_rank >= 0 && world_rank < world_size, "rank {} of {}", world_rank,
                 world_size);
  if (expert_size < 1 || world_size % expert_size != 0) {
    throw UsageError(fmt::format(
        "parallel.expert = {} does not divide the number of ranks, {}{}; it can be one of: {}", expert_size, world_size,
        expert_size < 1 ? std::string()
                        : fmt::format(" = {}*{} + {}", world_size / expert_size, expert_size, world_size % expert_size),
        divisors_of(world_size)));
  }
}

ShardCoordinates ProcessGrid::coordinates() const {
  return {world_size(), world_rank(), data_size(), data_rank(), expert_size(), expert_rank()};
}

}  // namespace flanmoe
