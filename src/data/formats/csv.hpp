// Comma-separated values (RFC 4180).
#pragma once

#include <string>
#include <vector>

#include "data/formats/input.hpp"

namespace flanmoe::formats {

/// Fields of the row that begins with `line`; a quoted field may go on over further lines. Throws Error at `where` when
/// a quote is never closed.
std::vector<std::string> csv_row(Input& input, std::string line, const std::string& where);

}  // namespace flanmoe::formats
