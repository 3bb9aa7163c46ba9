#include "data/formats/input.hpp"

#include <zlib.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "data/text.hpp"

namespace flanmoe::formats {
namespace {

// A line of a data set is an example; one longer than this is no text of lines.
constexpr std::size_t kLongestLine = std::size_t(64) << 20;
constexpr std::size_t kBuffer = std::size_t(1) << 18;

}  // namespace

struct Input::State {
  std::string name;
  std::int64_t line = 0;
  gzFile file = nullptr;
  std::vector<char> buffer;
  std::string_view unread;  // of the buffer, or of the text in memory
  bool started = false;

  ~State() {
    if (file != nullptr) gzclose(file);
  }
  /// Whether something is unread, after reading more where that is possible.
  bool fill() {
    if (unread.empty() && file != nullptr) {
      const int count = gzread(file, buffer.data(), unsigned(buffer.size()));
      int status = Z_OK;
      const char* message = gzerror(file, &status);
      if (count < 0 || (status != Z_OK && status != Z_STREAM_END)) {
        fail("{}: damaged after line {}: {}", name, line, message);
      }
      unread = {buffer.data(), std::size_t(count)};
    }
    if (!started && !unread.empty()) {
      started = true;
      if (unread.starts_with("\xEF\xBB\xBF")) unread.remove_prefix(3);
    }
    return !unread.empty();
  }
};

Input::Input(std::unique_ptr<State> state) : state_(std::move(state)) {}
Input::~Input() = default;
Input::Input(Input&&) noexcept = default;
Input& Input::operator=(Input&&) noexcept = default;

Input Input::file(const std::string& path) {
  auto state = std::make_unique<State>();
  state->name = path;
  state->file = gzopen(path.c_str(), "rb");
  if (state->file == nullptr) fail("{}: cannot open for reading", path);
  gzbuffer(state->file, unsigned(kBuffer));
  state->buffer.resize(kBuffer);
  return Input(std::move(state));
}

Input Input::memory(std::string name, std::string_view text) {
  auto state = std::make_unique<State>();
  state->name = std::move(name);
  state->unread = text;
  return Input(std::move(state));
}

bool Input::line(std::string& out) {
  out.clear();
  if (!state_->fill()) return false;
  ++state_->line;
  for (bool complete = false; !complete && state_->fill();) {
    const std::string_view unread = state_->unread;
    const std::size_t end = unread.find('\n');
    complete = end != std::string_view::npos;
    out += unread.substr(0, end);
    state_->unread.remove_prefix(complete ? end + 1 : unread.size());
    if (out.size() > kLongestLine)
      fail("{}: expected lines of at most {} bytes, found a longer one", where(), kLongestLine);
  }
  if (!out.empty() && out.back() == '\r') out.pop_back();
  return true;
}

std::string Input::rest() {
  std::string out;
  while (state_->fill()) {
    out += state_->unread;
    state_->unread = {};
  }
  return out;
}

const std::string& Input::name() const { return state_->name; }
std::int64_t Input::line_number() const { return state_->line; }

std::string shown(std::string_view text) {
  constexpr std::size_t kMost = 60;
  std::string out;
  for (const char c : text.substr(0, kMost)) out += c >= ' ' && c <= '~' ? c : '?';
  return text.size() > kMost ? out + "..." : out;
}

}  // namespace flanmoe::formats
