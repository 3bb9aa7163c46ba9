#include "base/error.hpp"

namespace flanmoe::detail {

void throw_logic_error(const char* expression, const char* file, int line, const std::string& what) {
  throw LogicError(fmt::format("{}:{}: expected {}: {}", file, line, expression, what));
}

}  // namespace flanmoe::detail
