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

/// Where in a file made by create_file the bytes of a parameter's state begin; HDF5 lays a dataset without chunks out
/// in one piece.
struct Place {
  std::uint64_t values = 0, checksums = 0;
};
using Places = std::array<Place, state_kinds.size()>;  // of one parameter; only those of its kinds count
std::vector<Places> places_in_file(const std::filesystem::path& path, const std::vector<ParameterSpec>& specs,
                                   const std::vector<KindSet>& kinds, DType dtype);

/// Writes a matrix, or rows of one, of an open file.
void write_part(hid_t file, const DatasetPlan& plan, const MatrixPart& part, const void* data);

}  // namespace flanmoe::detail
