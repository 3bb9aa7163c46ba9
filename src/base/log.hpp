// Messages for the person who runs the program. Rank 0 speaks; other ranks only when something is wrong.
#pragma once

#include <fmt/format.h>

#include <string>

namespace flanmoe {

/// Sets who may speak (rank 0) and an optional file that gets a copy of every line ("" for none). Lines for which there
/// is no room, in the file or where standard output goes, are lost; nothing throws.
void configure_log(int rank, const std::string& file);
/// One line on standard output from rank 0.
void log_line(const std::string& text);
/// One line on standard error from any rank, with the rank in front.
void warn_line(const std::string& text);
/// The same from rank 0 alone, of what all ranks know alike.
void warn_shared_line(const std::string& text);
/// One line on standard error, as it is; for the last words of a program.
void put_error(const std::string& text);
/// A progress line: rewritten in place on a terminal, a plain line otherwise. `final_line` ends it.
void log_progress(const std::string& text, bool final_line = false);

template <class... Args>
void log_info(fmt::format_string<Args...> format, Args&&... args) {
  log_line(fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void log_warning(fmt::format_string<Args...> format, Args&&... args) {
  warn_line(fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void log_shared_warning(fmt::format_string<Args...> format, Args&&... args) {
  warn_shared_line(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace flanmoe
