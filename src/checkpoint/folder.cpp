#include "checkpoint/folder.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <functional>

#include "base/error.hpp"
#include "base/log.hpp"

namespace flanmoe::detail {

namespace fs = std::filesystem;

namespace {

constexpr const char* aside_prefix = ".aside-";

/// The step of a published folder's name, or -1.
std::int64_t step_of(const std::string& name) {
  const std::string prefix = "step-";
  std::int64_t step = -1;
  if (!name.starts_with(prefix) || name.size() < prefix.size() + 8) return -1;
  const char* const end = name.data() + name.size();
  const auto [stop, code] = std::from_chars(name.data() + prefix.size(), end, step);
  return code == std::errc{} && stop == end && step >= 0 ? step : -1;
}

void rename_folder(const fs::path& from, const fs::path& to) {
  std::error_code code;
  fs::rename(from, to, code);
  if (code) fail("cannot rename {} to {}: {}", from.string(), to.string(), code.message());
}

void remove_folder(const fs::path& folder) {
  std::error_code code;
  fs::remove_all(folder, code);
  if (code) fail("cannot remove {}: {}", folder.string(), code.message());
}

/// For what only tidies up: a checkpoint that is written does not fail because an old one stays.
void or_warn(const std::function<void()>& f) {
  try {
    f();
  } catch (const std::exception& error) {
    log_warning("{}", error.what());
  }
}

/// Owns an open file or folder.
class Descriptor {
 public:
  Descriptor(const fs::path& path, int flags) : value_(open(path.c_str(), flags | O_CLOEXEC, 0666)) {
    if (value_ < 0) fail("cannot open {}: {}", path.string(), std::strerror(errno));
  }
  ~Descriptor() { close(value_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return value_; }

 private:
  int value_;
};

void allocate(const Descriptor& file, const fs::path& path, std::int64_t bytes) {
  if (fallocate(file.get(), 0, 0, bytes) == 0 || errno == EOPNOTSUPP) return;
  fail("no room for {} bytes of {}: {}", bytes, path.string(), std::strerror(errno));
}

fs::path removal_folder(const std::string& run_dir, std::int64_t step) {
  return checkpoints_folder(run_dir) / fmt::format("{}remove-{:08}", aside_prefix, step);
}

}  // namespace

fs::path checkpoints_folder(const std::string& run_dir) { return fs::path(run_dir) / "checkpoints"; }

fs::path published_folder(const std::string& run_dir, std::int64_t step) {
  return checkpoints_folder(run_dir) / fmt::format("step-{:08}", step);
}

fs::path aside_folder(const std::string& run_dir, std::int64_t step) {
  return checkpoints_folder(run_dir) / fmt::format("{}write-{:08}", aside_prefix, step);
}

std::vector<std::pair<std::int64_t, fs::path>> published_folders(const std::string& run_dir) {
  std::vector<std::pair<std::int64_t, fs::path>> found;
  std::error_code code;
  const fs::path folder = checkpoints_folder(run_dir);
  fs::directory_iterator entries(folder, code);
  if (code == std::errc::no_such_file_or_directory || code == std::errc::not_a_directory) return found;
  // A folder that cannot be listed is not an empty one: starting over would end in its checkpoints being removed.
  if (code) fail("cannot list {}: {}", folder.string(), code.message());
  for (const auto& entry : entries) {
    const std::int64_t step = step_of(entry.path().filename().string());
    if (step >= 0) found.emplace_back(step, entry.path());
  }
  std::sort(found.begin(), found.end());
  return found;
}

std::vector<std::pair<std::int64_t, fs::path>> published_checkpoints(const std::string& run_dir) {
  auto found = published_folders(run_dir);
  std::erase_if(found, [](const auto& published) { return !fs::exists(published.second / checkpoint_file); });
  return found;
}

fs::path move_damaged(const fs::path& folder) {
  const fs::path wanted = folder.parent_path() / ("damaged-" + folder.filename().string());
  fs::path target = wanted;
  for (int number = 2; fs::exists(target); ++number) target = fmt::format("{}-{}", wanted.string(), number);
  rename_folder(folder, target);
  sync_to_disk(folder.parent_path());
  return target;
}

void prepare_aside(const std::string& run_dir, std::int64_t step) {
  const fs::path folder = checkpoints_folder(run_dir), aside = aside_folder(run_dir, step);
  std::error_code code;
  fs::create_directories(folder, code);
  if (code) fail("cannot make the folder {}: {}", folder.string(), code.message());
  std::vector<fs::path> leftovers;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().filename().string().starts_with(aside_prefix)) leftovers.push_back(entry.path());
  }
  for (const fs::path& leftover : leftovers) {
    const auto remove = [&] { remove_folder(leftover); };
    leftover == aside ? remove() : or_warn(remove);
  }
  fs::create_directory(aside, code);
  if (code) fail("cannot make the folder {}: {}", aside.string(), code.message());
}

void require_room(const fs::path& path, std::int64_t size, std::int64_t first_bytes) {
  {
    const Descriptor file(path, O_WRONLY | O_CREAT | O_EXCL);
    if (ftruncate(file.get(), size) != 0) {
      fail("{} cannot grow to {} bytes: {}", path.string(), size, std::strerror(errno));
    }
    allocate(file, path, first_bytes);
  }
  fs::remove(path);
}

void reserve_space(const fs::path& path) {
  const Descriptor file(path, O_WRONLY);
  allocate(file, path, std::int64_t(fs::file_size(path)));
}

void sync_to_disk(const fs::path& path) {
  const Descriptor file(path, O_RDONLY);
  if (fsync(file.get()) != 0) fail("cannot flush {} to disk: {}", path.string(), std::strerror(errno));
}

void publish(const std::string& run_dir, std::int64_t step) {
  const fs::path aside = aside_folder(run_dir, step), target = published_folder(run_dir, step);
  sync_to_disk(aside);
  const fs::path old = removal_folder(run_dir, step);
  if (fs::exists(target)) rename_folder(target, old);
  rename_folder(aside, target);
  sync_to_disk(checkpoints_folder(run_dir));
  if (fs::exists(old)) or_warn([&] { remove_folder(old); });
}

void prune(const std::string& run_dir, std::int64_t step, std::int64_t keep) {
  if (keep <= 0) return;
  std::vector<std::pair<std::int64_t, fs::path>> published;
  or_warn([&] { published = published_checkpoints(run_dir); });
  if (std::int64_t(published.size()) <= keep) return;
  published.resize(published.size() - std::size_t(keep));
  for (const auto& [old_step, folder] : published) {
    if (old_step == step) continue;
    const fs::path aside = removal_folder(run_dir, old_step);
    or_warn([&, &folder = folder] {
      rename_folder(folder, aside);
      remove_folder(aside);
    });
  }
}

}  // namespace flanmoe::detail
