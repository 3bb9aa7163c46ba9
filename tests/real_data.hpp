// Released data sets for tests: $FLANMOE_DATA, or shared/data beside the sources. Tests that need them skip without.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

namespace flanmoe {

inline std::string real_data() {
  const char* named = std::getenv("FLANMOE_DATA");
  return named != nullptr ? named
                          : (std::filesystem::path(FLANMOE_SOURCE_DIR) / "../shared/data").lexically_normal().string();
}

}  // namespace flanmoe

/// Skips the test when a file of the released data sets is not there.
#define FLANMOE_NEED_DATA(name)                                                                              \
  do {                                                                                                       \
    if (!std::filesystem::exists(flanmoe::real_data() + "/" + (name)))                                       \
      GTEST_SKIP() << flanmoe::real_data() << "/" << (name) << " is missing; FLANMOE_DATA names its folder"; \
  } while (false)
