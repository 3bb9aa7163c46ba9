#include "base/line_file.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/error.hpp"

namespace flanmoe {
namespace {

/// 0, or why not all was written.
int write_all(int file, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = write(file, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return errno;
    if (written == 0) return ENOSPC;
    bytes.remove_prefix(std::size_t(written));
  }
  return 0;
}

}  // namespace

LineFile::LineFile(std::string path)
    : path_(std::move(path)), file_(open(path_.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666)) {
  if (file_ < 0) fail_to("open", errno);
}

LineFile::~LineFile() { close(file_); }

void LineFile::fail_to(const char* what, int why) const { fail("{}: cannot {}: {}", path_, what, std::strerror(why)); }

void LineFile::append(std::string_view records) {
  const off_t before = lseek(file_, 0, SEEK_END);
  const int why = write_all(file_, records);
  if (why == 0) return;
  // Cutting needs no room. What is no regular file cannot be cut, and has nothing to cut.
  if (before >= 0 && ftruncate(file_, before) != 0 && errno != EINVAL) fail_to("cut a half line off", errno);
  fail_to("write", why);
}

void LineFile::flush_to_disk() {
  if (fsync(file_) != 0) fail_to("flush", errno);
}

}  // namespace flanmoe
