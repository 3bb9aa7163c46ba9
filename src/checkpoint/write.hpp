// Steps that both ways of writing a checkpoint share. Private to this folder.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "checkpoint/file.hpp"

namespace flanmoe::detail {

/// What state each parameter has on its owners. Collective.
std::vector<KindSet> kinds_of_all(const ParameterStore& store, const Optimizer& optimizer, const Communicator& world);

/// The empty file in a folder aside, with all its space reserved. One rank.
FileSize make_file(const std::string& run_dir, const CheckpointInfo& info, const std::vector<ParameterSpec>& specs,
                   const std::vector<KindSet>& kinds, DType dtype);

/// Runs f, which throws on all ranks or on none; then the folder aside is removed and the message says what is left.
void write_or_tidy(const std::string& run_dir, std::int64_t step, const Communicator& world,
                   const std::function<void()>& f);

}  // namespace flanmoe::detail
