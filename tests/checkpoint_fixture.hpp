// A run folder that removes itself, and state whose every number tells where it belongs.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "checkpoint/checkpoint.hpp"
#include "optimizer_fixture.hpp"
#include "temporary_folder.hpp"
#include "tensor/philox.hpp"

namespace flanmoe::test {

namespace fs = std::filesystem;

/// A new empty folder, the same on all ranks. Collective to make and to destroy.
class SharedFolder {
 public:
  explicit SharedFolder(const Communicator& world) : world_(world) {
    path_ = world.broadcast(world.rank() == 0 ? make_temporary_folder() : "", 0);
  }
  ~SharedFolder() {
    world_.barrier();
    if (world_.rank() == 0) fs::remove_all(path_);
  }
  SharedFolder(const SharedFolder&) = delete;
  SharedFolder& operator=(const SharedFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  const Communicator& world_;
  std::string path_;
};

/// A number that belongs to one element of one state tensor of the model, in whatever layout.
inline float marked_value(const Rig& rig, const StateTensor& state, std::size_t i) {
  const std::string tensor = rig.spec(state.parameter).name + state.kind;
  const RandomKey key{hash_name(tensor), RandomPurpose::test, 0, 0};
  const auto element = std::uint32_t(state.first_row * state.tensor.cols) + std::uint32_t(i);
  return key.uniform(std::uint64_t(rig.store.first_expert(state.parameter) + state.expert), element) + 0.25F;
}

inline void mark_state(const Rig& rig) {
  rig.optimizer.visit_state([&](const StateTensor& state) {
    const auto values = state.tensor.flat<float>();
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = marked_value(rig, state, i);
  });
}

inline void clear_state(const Rig& rig) {
  rig.optimizer.visit_state([&](const StateTensor& state) {
    for (float& x : state.tensor.flat<float>()) x = -1.0F;
  });
}

/// The first state tensor of this rank that is not as mark_state left it, or "".
inline std::string first_unmarked(const Rig& rig, bool masters_only = false) {
  std::string found;
  rig.optimizer.visit_state([&](const StateTensor& state) {
    const auto values = state.tensor.flat<float>();
    const bool cleared = masters_only && std::string(state.kind) != "master";
    for (std::size_t i = 0; i < values.size() && found.empty(); ++i) {
      if (values[i] == (cleared ? -1.0F : marked_value(rig, state, i))) continue;
      found =
          fmt::format("{} of expert {} of {}, element {}", state.kind, state.expert, rig.spec(state.parameter).name, i);
    }
  });
  return found;
}

inline std::vector<char> file_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

inline void write_bytes(const std::string& path, const std::vector<char>& bytes) {
  std::ofstream(path, std::ios::binary).write(bytes.data(), std::streamsize(bytes.size()));
}

/// The message of the Error that f throws.
template <class F>
std::string error_message(F&& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "(nothing was thrown)";
}

}  // namespace flanmoe::test
