// Making a checkpoint file, before anything is written in parallel. Private to this folder.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "checkpoint/format.hpp"

namespace flanmoe::detail {

/// The whole structure of the file, by one process: attributes and every dataset with its space. The parallel part then
/// changes no structure, so a rank that fails there leaves nobody waiting inside HDF5.
void create_file(const std::filesystem::path& path, const CheckpointInfo& info, const std::vector<ParameterSpec>& specs,
                 const std::vector<KindSet>& kinds, DType dtype);

/// The file's size, generously: data, and at most 8 KiB of structure for a dataset and its share of the groups.
struct FileSize {
  std::int64_t structure = 1 << 20, data = 0;
};
FileSize size_of_file(const CheckpointInfo& info, const std::vector<ParameterSpec>& specs,
                      const std::vector<KindSet>& kinds, DType dtype);

/// Writes one matrix of an open file.
void write_part(hid_t file, const DatasetPlan& plan, std::int64_t global_expert, const void* data);

}  // namespace flanmoe::detail
