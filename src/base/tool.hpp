// What the main programs of the small tools share: one way to tell an error and to choose the exit code.
#pragma once

#include <boost/program_options.hpp>
#include <cstdio>
#include <string>

#include "base/error.hpp"

namespace flanmoe {

/// Runs body(), which returns the exit code. Errors go to stderr as `name: text`: 2 for wrong usage, 1 for others.
template <class Body>
int run_tool(const char* name, Body&& body) {
  try {
    return body();
  } catch (const boost::program_options::error& error) {
    std::fprintf(stderr, "%s: %s (see --help)\n", name, error.what());
    return 2;
  } catch (const UsageError& error) {
    std::fprintf(stderr, "%s: %s\n", name, error.what());
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", name, error.what());
    return 1;
  }
}

}  // namespace flanmoe
