#include "train/saver.hpp"

#include <algorithm>
#include <filesystem>

#include "base/line_file.hpp"
#include "base/log.hpp"
#include "base/timer.hpp"
#include "parallel/together.hpp"

namespace flanmoe {

void Saver::note(nlohmann::ordered_json event) const {
  if (world_.rank() != 0) return;
  try {
    LineFile(events_).append(event.dump() + "\n");
  } catch (const Error& error) {
    log_warning("{}", error.what());
  }
}

void Saver::report(const SaveReport& report) {
  totals_.count += 1;
  totals_.bytes += report.bytes;
  totals_.seconds += report.seconds;
  totals_.stall_seconds += report.stall_seconds;
  totals_.longest_stall_seconds = std::max(totals_.longest_stall_seconds, report.stall_seconds);
  log_info("checkpoint of step {}: {:.4f} GB in {:.2f} s ({:.3f} GB/s), the training stood still for {:.3f} s",
           report.step, 1e-9 * double(report.bytes), report.seconds, report.gb_per_second(), report.stall_seconds);
  note({{"event", "checkpoint"},
        {"step", report.step},
        {"bytes", report.bytes},
        {"seconds", report.seconds},
        {"gb_per_second", report.gb_per_second()},
        {"stall_seconds", report.stall_seconds}});
}

void Saver::guarded(std::int64_t step, bool needed, const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& error) {
    saved_ = -1;
    note({{"event", "checkpoint_failed"}, {"step", step}, {"why", error.what()}});
    if (needed || deck_.on_failure == "stop") throw;
    log_shared_warning("{}; the training goes on (checkpoint.on_failure = continue)", error.what());
  }
}

void Saver::save(const CheckpointInfo& info, bool needed, const std::function<void()>& before) {
  finish(false);
  guarded(info.step, needed, [&] {
    on_root(world_, before);
    if (BackgroundWriter* writer = trainer_.writer()) {
      writer->begin(info);
    } else {
      const double start = seconds_now();
      const std::string folder = trainer_.save(info);
      const double seconds = seconds_now() - start;
      std::error_code unknown;
      const auto bytes = std::filesystem::file_size(folder + "/checkpoint.h5", unknown);
      report({info.step, unknown ? 0 : std::int64_t(bytes), seconds, seconds});
    }
    saved_ = info.step;
  });
}

void Saver::look_after() {
  BackgroundWriter* writer = trainer_.writer();
  if (writer == nullptr || !writer->under_way()) return;
  guarded(saved_, false, [&] {
    if (const auto done = writer->poll()) report(*done);
  });
}

void Saver::finish(bool needed) {
  BackgroundWriter* writer = trainer_.writer();
  if (writer == nullptr || !writer->under_way()) return;
  guarded(saved_, needed, [&] {
    if (const auto done = writer->finish()) report(*done);
  });
}

}  // namespace flanmoe
