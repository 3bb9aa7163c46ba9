// Failing together: outside the training step an error of one rank must not leave the others waiting in a collective.
#pragma once

#include <functional>

#include "base/error.hpp"
#include "parallel/communicator.hpp"

namespace flanmoe {

/// Thrown on every rank with the same words, so that rank 0 may say them for all.
class SharedError : public Error {
 public:
  using Error::Error;
};

/// Runs f on every rank. When it throws anywhere, every rank throws the error of the lowest such rank, as the same
/// class (UsageError or, for all others, SharedError). f may call collectives only if it throws on all ranks or on
/// none. Collective.
void together(const Communicator& world, const std::function<void()>& f);

/// The same with f on rank 0 only.
void on_root(const Communicator& world, const std::function<void()>& f);

}  // namespace flanmoe
