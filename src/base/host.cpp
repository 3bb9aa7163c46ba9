#include "base/host.hpp"

#include <unistd.h>

#include <array>

namespace flanmoe {

std::string host_name() {
  std::array<char, 256> name{};
  if (gethostname(name.data(), name.size() - 1) != 0) return "unknown host";
  return name.data();
}

}  // namespace flanmoe
