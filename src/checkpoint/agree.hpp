// A failure on one rank becomes a failure on all of them. Private to this folder and its tests.
#pragma once

#include <functional>
#include <string>

#include "parallel/communicator.hpp"

namespace flanmoe::detail {

/// Collective. `error` is empty on ranks where all is well; throws the message of the lowest failing rank on every
/// rank.
void agree(const Communicator& world, const std::string& error);

/// Runs work and returns what it threw, or "".
std::string error_of(const std::function<void()>& work);

/// Collective: work on every rank, then agree. The work itself must not be collective.
inline void on_every_rank(const Communicator& world, const std::function<void()>& work) {
  agree(world, error_of(work));
}

/// The same with work on rank 0 only.
void on_first_rank(const Communicator& world, const std::function<void()>& work);

}  // namespace flanmoe::detail
