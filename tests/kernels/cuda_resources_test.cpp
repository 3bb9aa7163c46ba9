// What the compiler says that kernels for GPUs need: no register is spilled to memory and no array lies there.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <regex>
#include <sstream>

namespace flanmoe {
namespace {

struct Resources {
  std::string kernel;
  int stack_bytes = 0, spill_store_bytes = 0, spill_load_bytes = 0;
};

/// The kernels of a report of `ptxas -v`, once for each architecture.
std::vector<Resources> read_report(std::istream& report) {
  const std::regex name("ptxas info *: Function properties for (.*)");
  const std::regex sizes(" *([0-9]+) bytes stack frame, ([0-9]+) bytes spill stores, ([0-9]+) bytes spill loads");
  std::vector<Resources> all;
  std::smatch match;
  for (std::string line; std::getline(report, line);) {
    if (std::regex_match(line, match, name)) all.push_back({.kernel = match[1]});
    if (std::regex_match(line, match, sizes) && !all.empty()) {
      all.back().stack_bytes = std::stoi(match[1]);
      all.back().spill_store_bytes = std::stoi(match[2]);
      all.back().spill_load_bytes = std::stoi(match[3]);
    }
  }
  return all;
}

TEST(CudaResources, AReportIsRead) {
  std::istringstream report(
      "ptxas info    : 0 bytes gmem\n"
      "ptxas info    : Compiling entry function '_Z1f' for 'sm_90a'\n"
      "ptxas info    : Function properties for _Z1f\n"
      "    24 bytes stack frame, 8 bytes spill stores, 16 bytes spill loads\n"
      "ptxas info    : Used 32 registers, used 1 barriers\n");
  const auto all = read_report(report);
  ASSERT_EQ(all.size(), 1U);
  EXPECT_EQ(all[0].kernel, "_Z1f");
  EXPECT_EQ(all[0].stack_bytes, 24);
  EXPECT_EQ(all[0].spill_store_bytes, 8);
  EXPECT_EQ(all[0].spill_load_bytes, 16);
}

TEST(CudaResources, NoKernelSpillsOrKeepsAnArrayInMemory) {
  const std::filesystem::path folder = FLANMOE_CUDA_REPORTS;
  if (folder.empty()) GTEST_SKIP() << "this build has no CUDA (CMake option CUDA)";
  std::size_t kernels = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (entry.path().extension() != ".ptxas") continue;
    if (!std::filesystem::exists(std::filesystem::path(entry.path()).replace_extension())) continue;
    std::ifstream report(entry.path());
    for (const Resources& r : read_report(report)) {
      ++kernels;
      EXPECT_EQ(r.stack_bytes, 0) << r.kernel << " in " << entry.path().filename();
      EXPECT_EQ(r.spill_store_bytes + r.spill_load_bytes, 0) << r.kernel << " in " << entry.path().filename();
    }
  }
  for (const auto& entry : std::filesystem::directory_iterator(FLANMOE_SOURCE_DIR "/kernels/cuda")) {
    if (entry.path().extension() != ".cu") continue;
    const std::string report = "kernels/cuda/" + entry.path().filename().string() + ".o.ptxas";
    EXPECT_TRUE(std::filesystem::exists(folder / report)) << "no report of " << entry.path().filename();
  }
  EXPECT_GE(kernels, 100U);
}

}  // namespace
}  // namespace flanmoe
