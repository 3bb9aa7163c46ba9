#include "checkpoint/agree.hpp"

namespace flanmoe::detail {

void agree(const Communicator& world, const std::string& error) {
  const int first = world.all_reduce(std::int32_t(error.empty() ? world.size() : world.rank()), ReduceOp::min);
  if (first == world.size()) return;
  const std::string text = world.broadcast(error, first);
  throw Error(world.size() == 1 ? text : fmt::format("{} (rank {})", text, first));
}

std::string error_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const std::exception& error) {
    const std::string text = error.what();
    return text.empty() ? "unknown error" : text;
  }
  return "";
}

void on_first_rank(const Communicator& world, const std::function<void()>& work) {
  agree(world, world.rank() == 0 ? error_of(work) : "");
}

}  // namespace flanmoe::detail
