#include "parallel/together.hpp"

#include <algorithm>
#include <cstdint>

#include "base/error.hpp"
#include "base/host.hpp"

namespace flanmoe {
namespace {

enum class Failure : std::int32_t { none, usage, error };

struct Outcome {
  Failure failure = Failure::none;
  std::string message;
};

Outcome outcome_of(const std::function<void()>& f) {
  try {
    f();
    return {};
  } catch (const UsageError& error) {
    return {Failure::usage, error.what()};
  } catch (const std::exception& error) {
    return {Failure::error, error.what()};
  }
}

}  // namespace

void together(const Communicator& world, const std::function<void()>& f) {
  Outcome outcome = outcome_of(f);
  const std::vector<std::int32_t> failures = world.all_gather(std::int32_t(outcome.failure));
  const auto first = std::find_if(failures.begin(), failures.end(), [](auto x) { return x != 0; });
  if (first == failures.end()) return;
  const int rank = int(first - failures.begin());
  const bool all = std::count(failures.begin(), failures.end(), 0) == 0;
  // What rank 0 finds is usually what any rank would find; elsewhere the place matters.
  if (rank == world.rank() && !all && (rank > 0 || outcome.failure == Failure::error)) {
    outcome.message += fmt::format(" (on rank {}, host {})", rank, host_name());
  }
  const std::string message = world.broadcast(outcome.message, rank);
  if (Failure(*first) == Failure::usage) throw UsageError(message);
  throw SharedError(message);
}

void on_root(const Communicator& world, const std::function<void()>& f) {
  together(world, [&] {
    if (world.rank() == 0) f();
  });
}

}  // namespace flanmoe
