// flanmoe-bench [--device cpu|cuda] [--json FILE] [--filter TEXT] [--quick]: prints the roof of the device and each
// measurement's share of it.
#include <omp.h>

#include <boost/program_options.hpp>
#include <fstream>
#include <iostream>

#include "base/error.hpp"
#include "base/tool.hpp"
#include "kernels/bench/bench.hpp"
#include "parallel/communicator.hpp"
#include "parallel/device.hpp"

namespace flanmoe::bench {

std::vector<Section>& sections() {
  static std::vector<Section> all;
  return all;
}

namespace {

/// Share of the product roof, or of the memory bandwidth for operations without products.
double share_of_roof(const Measurement& m, const Roof& roof) {
  if (m.flops > 0) return m.flops / m.seconds / roof.flops(m.precision == "bf16" ? DType::bf16 : DType::f32);
  return m.bytes / m.seconds / roof.bytes_per_second;
}

void print(const Measurement& m, const Roof& roof) {
  const std::string rate = m.flops > 0 ? fmt::format("{:8.1f} GFLOP/s", m.flops / m.seconds * 1e-9)
                                       : fmt::format("{:8.1f} GB/s   ", m.bytes / m.seconds * 1e-9);
  fmt::print("{:<34} {:<5} {:<34} {:>10.3f} ms  {}  {:>5.1f}% of {}\n", m.name, m.precision, m.shape, m.seconds * 1e3,
             rate, 100 * share_of_roof(m, roof), m.flops > 0 ? "product roof" : "memory bandwidth");
  std::fflush(stdout);
}

nlohmann::ordered_json record(const Measurement& m, const Roof& roof) {
  nlohmann::ordered_json j{{"name", m.name}, {"precision", m.precision}, {"shape", m.shape}, {"seconds", m.seconds}};
  if (m.flops > 0) j["flops_per_second"] = m.flops / m.seconds;
  if (m.bytes > 0) j["bytes_per_second"] = m.bytes / m.seconds;
  j["share_of_roof"] = share_of_roof(m, roof);
  j["roof"] = m.flops > 0 ? "product" : "memory";
  if (m.more.is_object()) j.update(m.more);
  return j;
}

struct Options {
  std::string device = "cpu", filter, json_file;
  bool quick = false;
};

void run(const Options& options) {
  const Communicator world = Communicator::world();
  const std::unique_ptr<Device> device = open_device(options.device, world);
  const Subject subject{kernels_for(options.device), device->context(), options.quick};
  nlohmann::ordered_json report;
  report["device"] = options.device;
  report["threads"] = omp_get_max_threads();
  const Roof roof = measure_roof(subject);
  report["roof"] = roof_report(subject, roof);
  report["operations"] = nlohmann::ordered_json::array();
  report["steps"] = nlohmann::ordered_json::array();
  report["leaves"] = nlohmann::ordered_json::array();
  for (const Section& section : sections()) {
    if (section.title.find(options.filter) == std::string::npos) continue;
    fmt::print("\n{}\n", section.title);
    for (const Measurement& m : section.run(subject)) {
      print(m, roof);
      report[section.key].push_back(record(m, roof));
    }
  }
  if (options.quick) fmt::print("\nQuick: small sizes, measured once; these numbers mean nothing.\n");
  if (options.json_file.empty()) return;
  report["quick"] = options.quick;
  std::ofstream file(options.json_file);
  file << report.dump(2) << '\n';
  if (!file.flush()) fail("cannot write {}", options.json_file);
  fmt::print("\nThe same numbers are in {}\n", options.json_file);
}

}  // namespace

}  // namespace flanmoe::bench

int main(int argc, char** argv) {
  namespace po = boost::program_options;
  flanmoe::bench::Options chosen;
  po::options_description options("flanmoe-bench: speed of operations next to the roof of the machine");
  options.add_options()("help", "this text")("device", po::value(&chosen.device)->default_value(chosen.device),
                                             "cpu, or cuda: the first GPU")("json", po::value(&chosen.json_file),
                                                                            "also write the numbers to this file")(
      "filter", po::value(&chosen.filter), "only sections whose title contains this text")(
      "quick", po::bool_switch(&chosen.quick), "small sizes, everything once: to see that it runs");
  // The training step asks for communicators, of one rank. MPI ends after errors are told: an exception that leaves it
  // would end the process.
  const auto measure = [&] {
    flanmoe::bench::run(chosen);
    return 0;
  };
  return flanmoe::run_tool("flanmoe-bench", [&] {
    po::variables_map values;
    po::store(po::parse_command_line(argc, argv, options), values);
    po::notify(values);
    if (values.count("help") > 0) {
      std::cout << options;
      return 0;
    }
    const flanmoe::MpiEnvironment mpi(&argc, &argv);
    return flanmoe::run_tool("flanmoe-bench", measure);
  });
}
