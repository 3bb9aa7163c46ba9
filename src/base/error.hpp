// Errors. Library code throws; only main() catches, prints once and ends every rank.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>

namespace flanmoe {

/// Something went wrong while running. Ends the program with exit code 1.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The deck or the command line is wrong. Ends the program with exit code 2; nothing has been written.
class UsageError : public Error {
 public:
  using Error::Error;
};

/// A programming error: a broken precondition inside flanmoe itself.
class LogicError : public Error {
 public:
  using Error::Error;
};

namespace detail {
[[noreturn]] void throw_logic_error(const char* expression, const char* file, int line, const std::string& what);
}

/// throw Error with a formatted message: name the file, key or line, what was expected and what was found.
template <class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(fmt::format(format, std::forward<Args>(args)...));
}

template <class... Args>
[[noreturn]] void usage_fail(fmt::format_string<Args...> format, Args&&... args) {
  throw UsageError(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace flanmoe

/// Precondition of a function inside flanmoe; always checked, in release builds too. The message is an fmt format.
#define FLANMOE_EXPECT(condition, ...)                                                                  \
  do {                                                                                                  \
    if (!(condition)) {                                                                                 \
      ::flanmoe::detail::throw_logic_error(#condition, __FILE__, __LINE__, ::fmt::format(__VA_ARGS__)); \
    }                                                                                                   \
  } while (false)
