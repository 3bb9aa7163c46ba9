#include "train/plan/prediction.hpp"

namespace flanmoe {
namespace {

using nlohmann::ordered_json;

ordered_json traffic_json(const Traffic& planned, const Traffic& measured, std::int64_t steps) {
  ordered_json all = ordered_json::object();
  for (std::size_t i = 0; i < planned.kinds.size(); ++i) {
    const CollectiveCount &p = planned.kinds[i], &m = measured.kinds[i];
    if (p.calls == 0 && m.calls == 0) continue;
    all[name_of(CollectiveKind(i))] = {
        {"predicted_calls", p.calls},       {"measured_calls", double(m.calls) / double(steps)},
        {"predicted_messages", p.messages}, {"measured_messages", double(m.messages) / double(steps)},
        {"predicted_bytes", p.bytes},       {"measured_bytes", double(m.bytes) / double(steps)}};
  }
  return all;
}

}  // namespace

StepPrediction::StepPrediction(const Deck& deck, const ProcessGrid& grid, const ParameterStore& store)
    : deck_(deck), grid_(grid), store_(store), traffic_(plan_traffic(deck, grid, store)) {}

void StepPrediction::read_description() { machine_ = read_machine(deck_.plan.machine); }

StepTime StepPrediction::full_step() const {
  if (!machine_) return {};
  return predict_time(deck_, grid_, store_, *machine_, full_work(deck_, grid_), traffic_);
}

ordered_json StepPrediction::compare(const MeasuredSteps& measured) const {
  ordered_json result;
  if (measured.steps == 0) return result;
  const double steps = double(measured.steps);
  if (machine_) {
    auto work = measured.work.pack();
    for (double& number : work) number /= steps * grid_.world_size();
    const StepTime time = predict_time(deck_, grid_, store_, *machine_, WorkCounts::unpack(work.data()), traffic_);
    result["machine"] = is_rough() ? "speed of large products and of memory, measured at the start" : machine_->name;
    result["predicted_step_seconds"] = time.total();
    result["measured_step_seconds"] = measured.step_seconds;
    result["predicted_over_measured"] = time.total() / measured.step_seconds;
    for (std::size_t i = 0; i < time.seconds.size(); ++i) {
      result["part_seconds"][name_of(Part(i))] = {{"predicted", time.seconds[i]},
                                                  {"measured", measured.part_seconds[i]}};
    }
  }
  result["collectives_of_rank_0_per_step"] = traffic_json(traffic_.total(), measured.traffic, measured.steps);
  return result;
}

}  // namespace flanmoe
