// Build facts.
#pragma once

#include <string>

namespace flanmoe {

/// Version, compiler, MPI, HDF5, oneDNN and CUDA facts, one a line.
std::string version_text();

}  // namespace flanmoe
