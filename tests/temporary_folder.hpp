// Folders for tests.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

#include "base/error.hpp"

namespace flanmoe {

/// Makes a new empty folder; XXXXXX stands for letters that mkdtemp() chooses.
inline std::string make_temporary_folder() {
  std::string name = (std::filesystem::temp_directory_path() / "flanmoe-test-XXXXXX").string();
  if (mkdtemp(name.data()) == nullptr) fail("cannot make the folder {}", name);
  return name;
}

/// A new empty folder that removes itself.
class TemporaryFolder {
 public:
  TemporaryFolder() : path_(make_temporary_folder()) {}
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  std::string file(const std::string& name) const { return (path_ / name).string(); }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace flanmoe
