// The machine this process runs on.
#pragma once

#include <string>

namespace flanmoe {

std::string host_name();

}  // namespace flanmoe
