#include "train/bad_steps.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "parallel/together.hpp"
#include "train/metrics.hpp"

namespace flanmoe {
namespace {

double limit_of(double factor, const std::deque<double>& recent) {
  if (factor <= 0 || recent.size() < BadSteps::kEnough) return std::numeric_limits<double>::infinity();
  std::array<double, BadSteps::kRecent> sorted{};
  std::copy(recent.begin(), recent.end(), sorted.begin());
  const auto middle = sorted.begin() + std::ptrdiff_t(recent.size() / 2);
  std::nth_element(sorted.begin(), middle, sorted.begin() + std::ptrdiff_t(recent.size()));
  return factor * *middle;
}

void push(std::deque<double>& recent, double value) {
  recent.push_back(value);
  if (recent.size() > BadSteps::kRecent) recent.pop_front();
}

}  // namespace

StepLimits BadSteps::limits() const {
  return {.loss = limit_of(deck_.loss_spike, losses_), .norm = limit_of(deck_.norm_spike, norms_)};
}

void BadSteps::add(double loss, double norm) {
  push(losses_, loss);
  push(norms_, norm);
}

void BadSteps::recall(const std::string& metrics, const Communicator& world) {
  losses_.clear();
  norms_.clear();
  std::vector<double> values;  // loss and norm of each
  on_root(world, [&] { values = recent_losses_and_norms(metrics, kRecent); });
  std::int64_t count = std::int64_t(values.size());
  world.broadcast(std::span(&count, 1), 0);
  values.resize(std::size_t(count));
  world.broadcast(std::span<double>(values), 0);
  for (std::size_t i = 0; i < values.size(); i += 2) add(values[i], values[i + 1]);
}

void BadSteps::forgive(const BadStep& bad) {
  if (deck_.on_bad_step == "stop") throw BadStep(bad);
  if (bad.fault() == Fault::machine) {
    machine_faults_ += 1;
  } else {
    seen_.insert(bad.step());
  }
  if (std::int64_t(seen_.size()) + machine_faults_ > deck_.limit) {
    throw SharedError(fmt::format("{}; {} bad steps were forgiven before (faults.limit)", bad.what(), deck_.limit));
  }
}

}  // namespace flanmoe
