// Checks of the operands of the relative position bias, the same for every device.
#pragma once

#include "kernels/relative_bias.hpp"

namespace flanmoe {

inline void expect_bias_table(const Tensor& table_UH, const Tensor& bias_HP, bool bidirectional, int max_distance) {
  FLANMOE_EXPECT(bias_HP.rows == table_UH.cols && bias_HP.cols % 2 == 1,
                 "bias {} x {} does not go with a table of {} buckets x {} heads (odd number of offsets)", bias_HP.rows,
                 bias_HP.cols, table_UH.rows, table_UH.cols);
  FLANMOE_EXPECT(bias_HP.dtype == table_UH.dtype, "bias holds {}, table {}", name_of(bias_HP.dtype),
                 name_of(table_UH.dtype));
  const std::int64_t least = bidirectional ? 4 : 2;
  FLANMOE_EXPECT(table_UH.rows >= least && table_UH.rows % least == 0 && max_distance > table_UH.rows / least,
                 "{} buckets up to distance {}", table_UH.rows, max_distance);
}

}  // namespace flanmoe
