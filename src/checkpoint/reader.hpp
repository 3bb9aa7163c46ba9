// A checkpoint file opened by one rank on its own, for reading. Private to this folder.
#pragma once

#include <string>
#include <vector>

#include "checkpoint/format.hpp"

namespace flanmoe::detail {

/// Every message names the file and, where there is one, the tensor.
class CheckpointReader {
 public:
  explicit CheckpointReader(const std::string& checkpoint_dir);

  CheckpointInfo info() const;
  /// Throws when the file has weights that are not in `specs`.
  void refuse_other_weights(const std::vector<ParameterSpec>& specs) const;
  /// Names, sorted, of all weights in the file.
  std::vector<std::string> weight_names() const;
  /// What is wrong with the weight for this specification: "is missing", "has shape ..."; empty when nothing is.
  std::string misfit(const ParameterSpec& spec) const;
  /// Throws unless the file holds exactly these kinds of state for the parameter.
  void require_kinds(const ParameterSpec& spec, const KindSet& kinds) const;
  /// Fills `matrix` (contiguous, of the file's type) after checking presence, type, shape and checksum.
  void read_matrix(const ParameterSpec& spec, const std::string& kind, std::int64_t global_expert,
                   const Tensor& matrix) const;
  /// The same for rows of a matrix, but that the checksum, which is of the whole matrix, is left to the caller.
  void read_rows(const ParameterSpec& spec, const std::string& kind, const MatrixPart& part, const Tensor& rows) const;
  /// Throws unless the checksum found is the one that is stored with the matrix.
  void expect_checksum(const ParameterSpec& spec, const std::string& kind, std::int64_t global_expert,
                       std::uint32_t found) const;

 private:
  bool has(const std::string& path) const;
  std::vector<hsize_t> shape_of(const std::string& path) const;
  void read(const DatasetPlan& plan, const MatrixPart& part, void* data) const;
  std::string path_;
  H5File file_;
};

}  // namespace flanmoe::detail
