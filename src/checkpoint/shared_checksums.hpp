// Checksums of matrices of which several ranks own some rows each. Private to this folder.
#pragma once

#include <cstdint>
#include <vector>

#include "checkpoint/format.hpp"
#include "optimizer/optimizer.hpp"

namespace flanmoe::detail {

/// The CRC-32 of a matrix from those of its rows: every owner adds what it has read or written, then the first owner
/// gets the checksum of the whole.
class SharedChecksums {
 public:
  explicit SharedChecksums(const ParameterStore& store);

  /// Whether a state tensor is rows of a matrix that others have rows of, too.
  bool shares(const StateTensor& state) const;
  /// Of a state tensor that shares.
  void add(const StateTensor& state, std::uint32_t checksum_of_rows);

  struct Whole {
    int parameter;
    std::int64_t expert;  // local
    std::size_t kind;     // in state_kinds
    std::uint32_t checksum;
  };
  /// Of the matrices whose first rows this rank owns. Collective; every rank adds its own before, or has failed.
  std::vector<Whole> combine(const Communicator& world);

 private:
  static constexpr std::size_t kinds_ = 4;  // of state_kinds, those that are cut by rows
  struct Part {
    ParameterUnit unit;
    std::size_t slot;  // of its first kind in crcs_
    bool own;
  };
  Whole whole_of(std::size_t part, std::size_t kind) const;
  const ParameterStore& store_;
  std::vector<Part> parts_;          // of this rank's replica groups, those of a matrix in sequence
  std::vector<std::uint64_t> crcs_;  // [part of any rank][kind]; zero where others fill in
  std::vector<std::uint64_t> added_;
};

}  // namespace flanmoe::detail
