#include "evaluate/journal.hpp"

#include <filesystem>

#include "base/error.hpp"

namespace flanmoe {
namespace {

/// Bytes of the lines that are complete.
std::uintmax_t complete_bytes(const std::string& text) {
  const std::size_t end = text.rfind('\n');
  return end == std::string::npos ? 0 : end + 1;
}

}  // namespace

PredictionJournal::PredictionJournal(std::string path, const std::string& fingerprint) : path_(std::move(path)) {
  bool goes_on = false;
  if (std::filesystem::exists(path_)) {
    const auto lines = read_json_lines(path_);
    goes_on = !lines.empty() && lines[0].is_object() && lines[0].value("fingerprint", std::string()) == fingerprint;
    for (std::size_t i = 1; goes_on && i < lines.size(); ++i) {
      try {
        done_.push_back(prediction_from_json(lines[i]));
      } catch (const Json::exception& error) {
        fail("{}:{}: not a prediction of an evaluation: {}", path_, i + 1, error.what());
      }
    }
    if (goes_on) std::filesystem::resize_file(path_, complete_bytes(read_text_file(path_)));
  }
  file_.open(path_, goes_on ? std::ios::binary | std::ios::app : std::ios::binary | std::ios::trunc);
  if (!goes_on) file_ << json_text({{"fingerprint", fingerprint}}, -1) << "\n";
  append({});
}

void PredictionJournal::append(const std::vector<Prediction>& predictions) {
  for (const Prediction& p : predictions) file_ << json_text(to_json(p), -1) << "\n";
  file_.flush();
  if (!file_) fail("{}: cannot be written", path_);
}

void PredictionJournal::remove() {
  file_.close();
  std::filesystem::remove(path_);
}

}  // namespace flanmoe
