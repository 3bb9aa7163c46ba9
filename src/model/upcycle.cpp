#include "model/upcycle.hpp"

namespace flanmoe {

UpcycleSource upcycle_source(const ParameterSpec& spec) {
  constexpr std::string_view kExpert = "/feed_forward/expert_";
  if (spec.name.find("/feed_forward/router") != std::string::npos) return {UpcycleFrom::fresh, {}};
  UpcycleSource source{UpcycleFrom::same, spec};
  if (const auto at = spec.name.find(kExpert); at != std::string::npos) {
    FLANMOE_EXPECT(spec.placement == Placement::expert, "{} is named like an expert", spec.name);
    source.from = UpcycleFrom::feed_forward;
    source.dense.name = spec.name.substr(0, at) + "/feed_forward/" + spec.name.substr(at + kExpert.size());
    source.dense.experts = 1;
    source.dense.placement = Placement::dense;
  }
  return source;
}

}  // namespace flanmoe
