// flanmoe selfcheck DECK: does this deck train the same on every layout that these ranks can make?
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "deck/deck.hpp"
#include "parallel/communicator.hpp"
#include "parallel/device.hpp"

namespace flanmoe {

/// Runs a few steps from the seed on 1, 2, 4, ... and all ranks, with every expert degree of 1, 2, 4, ... that the deck
/// allows, compares losses, gradient norms, the state of the optimizer and the next samples, and reads the checkpoint
/// of the first layout on every other one. Prints a table; true when all agree as far as the deck promises: to the bit
/// where reduction.leaves shapes the sums of both, else to rounding. Leaves nothing behind; its folder, run.dir with
/// .selfcheck after it, must not exist. Collective.
bool selfcheck(const Deck& deck, const Communicator& world, Device& device);

namespace detail {

inline constexpr std::int64_t kSelfcheckSteps = 3;

struct Layout {
  int ranks, expert;
};

/// What a layout did; the same on every rank of the world.
struct Trace {
  std::array<double, kSelfcheckSteps> loss{}, norm{};
  std::uint64_t state = 0, samples = 0;
  std::uint64_t reread = 0;  // state after reading the checkpoint of the first layout
};

/// The largest relative difference of losses and norms.
double largest_difference(const Trace& a, const Trace& b);
/// How far a layout agrees with the first, in words; empty `wrong` when that is as far as the deck promises.
std::string agreement(const Deck& deck, Layout layout, const Trace& trace, Layout first, const Trace& expected,
                      std::string& wrong);

}  // namespace detail

}  // namespace flanmoe
