// What one rank hands to others in one training step, from the deck alone.
#pragma once

#include <cstdint>
#include <vector>

#include "deck/deck.hpp"
#include "parallel/communicator.hpp"
#include "parallel/process_grid.hpp"
#include "tensor/parameters.hpp"

namespace flanmoe {

struct StepTraffic {
  Traffic world, data, expert;  // by communicator
  Traffic total() const;
};

/// Exact for full rows (every row has all its tokens) whose copies spread evenly over the experts, as they do with
/// moe.forced_balance and where experts choose; what does not depend on routing is exact for any rows. Counted by the
/// collectives themselves, on imagined ranks.
StepTraffic plan_traffic(const Deck& deck, const ProcessGrid& grid, const ParameterStore& store);

/// Copies that each expert gets of a microbatch of full rows of one stack, evenly spread: choice j of position p of row
/// r goes to expert (r + p * k + j) modulo E, and an expert keeps at most its capacity of a group.
std::vector<std::int64_t> even_copies(const Deck& deck, bool encoder, std::int64_t first_row, std::int64_t rows);

/// Tokens of a full row of a stack.
std::int64_t full_row_tokens(const Deck& deck, bool encoder);

}  // namespace flanmoe
