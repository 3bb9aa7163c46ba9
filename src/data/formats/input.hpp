// What a reader reads from: a file, plain or gzip, or text in memory.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "base/error.hpp"

namespace flanmoe::formats {

class Input {
 public:
  /// Opens a file; gzip is noticed by its content. Throws Error when it cannot be opened.
  static Input file(const std::string& path);
  static Input memory(std::string name, std::string_view text);  // the text must outlive the input
  ~Input();
  Input(Input&&) noexcept;
  Input& operator=(Input&&) noexcept;

  /// The next line without its end (LF or CR LF); false at the end. A byte order mark at the start is left out.
  bool line(std::string& out);
  /// Everything that is left.
  std::string rest();
  const std::string& name() const;
  std::int64_t line_number() const;  // of the line read last, from 1
  /// "NAME:LINE" of the line read last, or of a given one.
  std::string where() const { return where(line_number()); }
  std::string where(std::int64_t line) const { return fmt::format("{}:{}", name(), line); }

 private:
  struct State;
  explicit Input(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// What to do about a malformed record: stop with the error that names it, or count it and go on.
struct BadRecords {
  bool skip = false;
  std::int64_t skipped = 0;
  std::string first;  // message of the first one skipped

  /// Runs body(), which reads one record and throws Error when it is malformed.
  template <class Body>
  void guard(Body&& body) {
    try {
      body();
    } catch (const Error& error) {
      if (!skip) throw;
      if (skipped++ == 0) first = error.what();
    }
  }
};

/// For messages: the text, shortened, with bytes that are not printable replaced.
std::string shown(std::string_view text);

}  // namespace flanmoe::formats
