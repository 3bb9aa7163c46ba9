// The checkpoint file, format version 1: names, shapes and types of what is in it. Private to this folder and its
// tests.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "base/hdf5.hpp"
#include "checkpoint/checkpoint.hpp"
#include "tensor/parameters.hpp"

namespace flanmoe::detail {

constexpr std::int64_t format_version = 1;

/// What a state tensor can be, in the order in which they are written.
constexpr std::array<const char*, 5> state_kinds = {"master", "m", "v", "row", "col"};

/// Which of state_kinds a parameter has.
using KindSet = std::array<bool, state_kinds.size()>;

/// A matrix of a tensor, or some of its rows.
struct MatrixPart {
  std::int64_t expert = 0;               // global
  std::int64_t first_row = 0, rows = 0;  // of tensors with rows; 0 rows: all
};

/// A dataset: the matrices of one tensor, or their checksums.
struct DatasetPlan {
  std::string path;
  std::vector<hsize_t> shape;  // global
  hid_t file_type = H5I_INVALID_HID;
  hid_t memory_type = H5I_INVALID_HID;
  bool by_expert = false;  // the first dimension counts experts
  bool by_row = false;     // the next one counts rows

  /// Elements of one matrix, or of rows of it.
  hsize_t elements_of(const MatrixPart& part) const;
  /// Selects a part of the dataset's space.
  H5Space part_of(hid_t dataset, const MatrixPart& part) const;
  /// The same elements in memory.
  H5Space memory_space(const MatrixPart& part) const;
};

/// weights/<name> for masters, optimizer/<name>/<kind> for the rest: [rows, cols], [cols] for vectors; a row factor has
/// [rows], a column factor [cols]; one dimension more in front for experts.
DatasetPlan values_plan(const ParameterSpec& spec, const std::string& kind, DType dtype);
/// checksums/<path of the values>: the CRC-32 of every matrix, [experts].
DatasetPlan checksums_plan(const ParameterSpec& spec, const std::string& kind);

/// File access properties: the 1.8 layout, whose structures carry checksums, so that damage anywhere is noticed.
H5Property file_access();

}  // namespace flanmoe::detail
