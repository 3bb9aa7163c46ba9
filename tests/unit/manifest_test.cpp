#include "data/manifest.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/error.hpp"

namespace flanmoe {
namespace {

namespace fs = std::filesystem;

class Manifests : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / fmt::format("flanmoe_manifest_{}", getpid());
    fs::create_directories(folder_);
    write("data.h5", "0123456789");
  }
  void TearDown() override { fs::remove_all(folder_); }
  void write(const std::string& name, const std::string& text) const { std::ofstream(folder_ / name) << text; }
  fs::path folder_;
};

TEST_F(Manifests, AStepIsDoneOnlyWithTheSameInputsAndItsWholeFile) {
  {
    Manifest manifest(folder_);
    EXPECT_FALSE(manifest.is_done("step", "inputs"));
    manifest.record("step", "inputs", "data.h5", {{"tokens", 7}});
  }
  const Manifest manifest(folder_);  // as the next run reads it
  EXPECT_TRUE(manifest.is_done("step", "inputs"));
  EXPECT_FALSE(manifest.is_done("step", "other inputs"));
  EXPECT_FALSE(manifest.is_done("other step", "inputs"));
  EXPECT_EQ(manifest.facts("step").at("tokens"), 7);
  write("data.h5", "01234");
  EXPECT_FALSE(manifest.is_done("step", "inputs"));
  fs::remove(folder_ / "data.h5");
  EXPECT_FALSE(manifest.is_done("step", "inputs"));
}

TEST_F(Manifests, ADamagedOneCountsAsAbsent) {
  for (const char* text :
       {"{\"format\": 1, \"ste", "{\"format\": 99, \"steps\": {}}", "[]", "{\"format\": 1, \"steps\": 3}"}) {
    write("manifest.json", text);
    Manifest manifest(folder_);
    EXPECT_FALSE(manifest.is_done("step", "inputs")) << text;
    manifest.record("step", "inputs", "data.h5", {});
    EXPECT_TRUE(Manifest(folder_).is_done("step", "inputs")) << text;
  }
}

TEST_F(Manifests, FilesOfStepsThatAreGoneAreRemoved) {
  write("kept.h5", "1");
  Manifest manifest(folder_);
  manifest.record("gone", "inputs", "data.h5", {});
  manifest.record("kept", "inputs", "kept.h5", {});

  manifest.keep_only({{"kept", "kept.h5"}});

  EXPECT_FALSE(fs::exists(folder_ / "data.h5"));
  EXPECT_TRUE(fs::exists(folder_ / "kept.h5"));
  EXPECT_TRUE(Manifest(folder_).is_done("kept", "inputs"));
  EXPECT_FALSE(Manifest(folder_).is_done("gone", "inputs"));
}

TEST_F(Manifests, AFileThatCannotBeRemovedStaysRecorded) {
  write("other.h5", "1");
  Manifest manifest(folder_);
  manifest.record("stuck", "inputs", "data.h5", {}, "plan");
  manifest.record("gone", "inputs", "other.h5", {}, "plan");
  fs::remove(folder_ / "data.h5");
  fs::create_directories(folder_ / "data.h5" / "in");  // remove() refuses it

  const auto removed = manifest.own("plan", {}, [](const auto&, const auto&) { return true; });

  EXPECT_EQ(removed, std::vector<std::string>{"other.h5"});
  EXPECT_NO_THROW(Manifest(folder_).facts("stuck"));
  EXPECT_ANY_THROW(Manifest(folder_).facts("gone"));
}

}  // namespace
}  // namespace flanmoe
