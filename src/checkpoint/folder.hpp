// Where checkpoints lie and how one becomes visible. Private to this folder and its tests.
//
// RUN/checkpoints/step-<8 digits>/         published: complete, on disk
// RUN/checkpoints/damaged-step-<8 digits>/ published once, and found damaged; nothing touches it any more
// RUN/checkpoints/.aside-<what>-<digits>/  being written or being removed; a leftover when no run is at work
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace flanmoe::detail {

constexpr const char* checkpoint_file = "checkpoint.h5";

std::filesystem::path checkpoints_folder(const std::string& run_dir);
std::filesystem::path published_folder(const std::string& run_dir, std::int64_t step);
std::filesystem::path aside_folder(const std::string& run_dir, std::int64_t step);

/// Folders with the name of a published checkpoint, oldest step first; what is in them is not looked at.
std::vector<std::pair<std::int64_t, std::filesystem::path>> published_folders(const std::string& run_dir);
/// Those that have a checkpoint file.
std::vector<std::pair<std::int64_t, std::filesystem::path>> published_checkpoints(const std::string& run_dir);

/// Renames a published folder to damaged-<its name>, with a number behind it where there is one, and makes that
/// durable. Returns the new path.
std::filesystem::path move_damaged(const std::filesystem::path& folder);

/// Removes leftovers of killed runs (a warning where that fails) and makes an empty folder to write in.
void prepare_aside(const std::string& run_dir, std::int64_t step);
/// Throws unless a new file at `path` may grow to `size` bytes and `first_bytes` of them have room on the disk now;
/// leaves no file. HDF5 cannot be left in a usable state when it fails to write its own structures, so this is asked
/// before.
void require_room(const std::filesystem::path& path, std::int64_t size, std::int64_t first_bytes);
/// Takes the disk space of the whole file, so that a full disk is found now. Does nothing where the file system cannot.
void reserve_space(const std::filesystem::path& path);
/// Forces a file's or a folder's content to disk.
void sync_to_disk(const std::filesystem::path& path);
/// Aside folder -> published folder by one rename, made durable. A published checkpoint of the same step is replaced.
void publish(const std::string& run_dir, std::int64_t step);
/// Removes all published checkpoints but the newest `keep` and the one of `step`. Each is renamed aside first, so that
/// what is published is always complete. keep 0 or less keeps all. What cannot be removed is a warning.
void prune(const std::string& run_dir, std::int64_t step, std::int64_t keep);

}  // namespace flanmoe::detail
