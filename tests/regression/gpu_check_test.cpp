// tools/gpu_check on a machine without a GPU, and with stand-ins for what it asks of one: nvidia-smi, nvcc, the build,
// and a program that takes the CPU for the GPU.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

#include "base/error.hpp"
#include "regression/program.hpp"

namespace flanmoe::regression {
namespace {

namespace fs = std::filesystem;

std::string text_of(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

class GpuCheck : public testing::Test {
 protected:
  GpuCheck() {
    for (const char* folder : {"bin", "build"}) fs::create_directory(workplace_.path(folder));
  }
  void stand_in(const std::string& name, const std::string& lines) {
    const std::string path = workplace_.path(name);
    std::ofstream(path) << "#!/bin/bash\n" << lines << "\n";
    fs::permissions(path, fs::perms::owner_all);
  }
  /// A GPU, a toolkit, and programs that are there already; `on_gpu`: more words for a run with run.device = cuda.
  void pretend(const std::string& on_gpu) {
    stand_in("bin/nvidia-smi", "echo 'A \"stand-in\", 1.2.3, 80 MiB'");
    stand_in("bin/nvcc", "echo 'Cuda compilation tools, release 9.8, V9.8.7'");
    for (const char* tool : {"bin/cmake", "bin/ctest"}) stand_in(tool, "exit 0");
    stand_in("bin/compute-sanitizer", "exit 0");
    stand_in("build/flanmoe", std::string("case $* in *cuda*) more='") + on_gpu + "' ;; esac\nexec " + FLANMOE_PROGRAM +
                                  " \"${@/device=cuda/device=cpu}\" $more");
    fs::create_symlink(fs::path(FLANMOE_PROGRAM).parent_path() / "flanmoe-shards",
                       workplace_.path("build/flanmoe-shards"));
    stand_in("build/flanmoe-bench", R"(echo "bench $*"; while [ $# -gt 1 ]; do shift; done; echo '{"roof": 1}' >"$1")");
  }
  /// The exit code; what it says is in output_.
  int check(const std::string& words) {
    const std::string log = workplace_.path("output.txt");
    const int status = std::system(fmt::format("PATH={}:$PATH OMP_NUM_THREADS=1 {}/tools/gpu_check {} >{} 2>&1",
                                               workplace_.path("bin"), FLANMOE_SOURCE_DIR, words, log)
                                       .c_str());
    output_ = text_of(log);
    return WEXITSTATUS(status);
  }
  int check_pretended() {
    return check(fmt::format("--build {} --output {}", workplace_.path("build"), workplace_.path("results")));
  }
  nlohmann::json report() const { return nlohmann::json::parse(text_of(workplace_.path("results/report.json"))); }

  Workplace workplace_;
  std::string output_;
};

TEST_F(GpuCheck, WithoutAGpuNothingIsBuiltAndOneLineSaysWhy) {
  stand_in("bin/nvidia-smi", "exit 9");
  stand_in("bin/cmake", "touch " + workplace_.path("built"));
  EXPECT_EQ(check("--output " + workplace_.path("results")), 3);
  EXPECT_EQ(output_,
            "gpu_check: there is no GPU: nvidia-smi is missing or finds no driver; nothing was built or run\n");
  EXPECT_FALSE(fs::exists(workplace_.path("built")));
  EXPECT_FALSE(fs::exists(workplace_.path("results")));
}

TEST_F(GpuCheck, HelpAndWrongWords) {
  EXPECT_EQ(check("--help"), 0);
  EXPECT_EQ(output_.find("tools/gpu_check [--build FOLDER]"), 0U) << output_;
  EXPECT_EQ(check("--fast"), 2);
  EXPECT_EQ(output_, "gpu_check: --fast: unknown option (tools/gpu_check --help)\n");
  EXPECT_EQ(check("--jobs none"), 2);
  EXPECT_EQ(output_, "gpu_check: --jobs: expected a number above 0, found none\n");
  EXPECT_EQ(check("--build"), 2);
}

TEST_F(GpuCheck, ReportsWhatPassedAndOnWhat) {
  pretend("");
  EXPECT_EQ(check_pretended(), 0) << output_;
  const nlohmann::json r = report();
  EXPECT_EQ(r.at("gpu"), "A \"stand-in\"");
  EXPECT_EQ(r.at("gpus"), 1);
  EXPECT_EQ(r.at("driver"), "1.2.3");
  EXPECT_EQ(r.at("memory"), "80 MiB");
  EXPECT_EQ(r.at("cuda"), "9.8");
  EXPECT_EQ(r.at("benchmark").at("roof"), 1);
  for (const char* name :
       {"build", "kernel tests", "collectives", "data", "smoke deck fp32", "smoke deck bf16",
        "compute-sanitizer memcheck", "compute-sanitizer racecheck", "compute-sanitizer synccheck", "benchmark"}) {
    EXPECT_EQ(r.at("steps").at(name), "passed") << name;
  }
  const std::string page = text_of(workplace_.path("results/report.md"));
  EXPECT_NE(page.find("20 steps, largest relative difference of the loss 0, allowed 0.0001"), std::string::npos)
      << page;
  EXPECT_NE(page.find("bench --device cuda --json"), std::string::npos) << page;
}

TEST_F(GpuCheck, OtherLossesAndFailedTestsAreFound) {
  pretend("--run.seed=2");
  stand_in("bin/ctest", "exit 8");
  EXPECT_EQ(check_pretended(), 1) << output_;
  const nlohmann::json steps = report().at("steps");
  EXPECT_EQ(steps.at("kernel tests"), "failed");
  EXPECT_EQ(steps.at("smoke deck fp32"), "failed");
  EXPECT_EQ(steps.at("smoke deck bf16"), "failed");
  EXPECT_EQ(steps.at("benchmark"), "passed");
}

TEST_F(GpuCheck, TestsThatAreSkippedHaveNotPassed) {
  pretend("");
  stand_in("build/flanmoe", "exit 1");  // quick
  stand_in("bin/ctest", "echo '1/1 Test #1: kernels.norm_test ...***Skipped'");
  EXPECT_EQ(check_pretended(), 1) << output_;
  EXPECT_EQ(report().at("steps").at("kernel tests"), "failed");
}

TEST_F(GpuCheck, AFailedBuildIsTheLastStep) {
  pretend("");
  stand_in("bin/cmake", "echo no compiler; exit 1");
  EXPECT_EQ(check_pretended(), 1);
  EXPECT_NE(output_.find("no compiler"), std::string::npos) << output_;
  EXPECT_EQ(report().at("steps").size(), 1U);
  // Nothing of it may be taken for results of the next one.
  EXPECT_EQ(check_pretended(), 2);
  EXPECT_NE(output_.find("holds results already"), std::string::npos) << output_;
}

}  // namespace
}  // namespace flanmoe::regression
