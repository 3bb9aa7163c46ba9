// flanmoe-bench [--json FILE] [--filter TEXT]: prints the roof of the machine and each measurement's share of it.
#include <omp.h>

#include <boost/program_options.hpp>
#include <fstream>
#include <iostream>

#include "base/error.hpp"
#include "base/tool.hpp"
#include "kernels/bench/bench.hpp"
#include "parallel/communicator.hpp"

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

void run(const std::string& filter, const std::string& json_file) {
  nlohmann::ordered_json report;
  report["threads"] = omp_get_max_threads();
  const Roof roof = measure_roof();
  report["roof"] = roof_report(roof);
  report["operations"] = nlohmann::ordered_json::array();
  report["steps"] = nlohmann::ordered_json::array();
  for (const Section& section : sections()) {
    if (section.title.find(filter) == std::string::npos) continue;
    fmt::print("\n{}\n", section.title);
    for (const Measurement& m : section.run(kernels_for("cpu"))) {
      print(m, roof);
      report[section.key].push_back(record(m, roof));
    }
  }
  if (json_file.empty()) return;
  std::ofstream file(json_file);
  file << report.dump(2) << '\n';
  if (!file.flush()) fail("cannot write {}", json_file);
  fmt::print("\nThe same numbers are in {}\n", json_file);
}

}  // namespace

}  // namespace flanmoe::bench

int main(int argc, char** argv) {
  namespace po = boost::program_options;
  std::string json_file, filter;
  po::options_description options("flanmoe-bench: speed of operations next to the machine's roof");
  options.add_options()("help", "this text")("json", po::value(&json_file), "also write the numbers to this file")(
      "filter", po::value(&filter), "only sections whose title contains this text");
  // The training step asks for communicators, of one rank. MPI ends after errors are told: an exception that leaves it
  // would end the process.
  const auto measure = [&] {
    flanmoe::bench::run(filter, json_file);
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
