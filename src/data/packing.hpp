// Next-fit packing of examples into rows.
#pragma once

#include <cstdint>

namespace flanmoe {

/// Examples are placed in the order they come; one that does not fit on either side begins the next row, and rows
/// before it stay as they are.
class RowPacker {
 public:
  RowPacker(std::int64_t rows, std::int64_t input_length, std::int64_t target_length)
      : rows_(rows), input_length_(input_length), target_length_(target_length) {}

  /// The row of an example with these lengths, or -1 when all rows are full. `alone`: it shares its row with no other.
  std::int64_t place(std::int64_t inputs, std::int64_t targets, bool alone) {
    const bool begins =
        row_ < 0 || closed_ || alone || inputs_ + inputs > input_length_ || targets_ + targets > target_length_;
    if (begins) {
      if (row_ + 1 >= rows_) return -1;
      ++row_;
      inputs_ = targets_ = 0;
    }
    inputs_ += inputs;
    targets_ += targets;
    closed_ = alone;
    return row_;
  }

 private:
  std::int64_t rows_, input_length_, target_length_;
  std::int64_t row_ = -1, inputs_ = 0, targets_ = 0;
  bool closed_ = false;
};

}  // namespace flanmoe
