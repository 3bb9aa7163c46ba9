// A file that grows by whole records: lines, or frames of another format.
#pragma once

#include <string>
#include <string_view>

namespace flanmoe {

class LineFile {
 public:
  /// Opens for appending, and makes the file where there is none. Throws Error.
  explicit LineFile(std::string path);
  ~LineFile();
  LineFile(const LineFile&) = delete;
  LineFile& operator=(const LineFile&) = delete;

  /// Hands whole records to the operating system: all of them or, throwing Error, nothing, so that a full disk leaves
  /// no half line behind.
  void append(std::string_view records);
  /// Waits until all is on the disk. Throws Error.
  void flush_to_disk();
  const std::string& path() const { return path_; }

 private:
  [[noreturn]] void fail_to(const char* what, int why) const;
  std::string path_;
  int file_ = -1;
};

}  // namespace flanmoe
