#include "checkpoint/background.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <mutex>

#include "base/hdf5.hpp"
#include "base/timer.hpp"
#include "checkpoint/folder.hpp"
#include "checkpoint/shared_checksums.hpp"
#include "checkpoint/write.hpp"
#include "parallel/together.hpp"
#include "tensor/checksum.hpp"

namespace flanmoe {

namespace fs = std::filesystem;
using detail::state_kinds;

namespace {

static_assert(std::endian::native == std::endian::little, "numbers are written as they lie in memory");

enum class Progress : std::int32_t { written, busy, failed };

/// An open file, written at given places.
class PlacedFile {
 public:
  explicit PlacedFile(const fs::path& path) : path_(path.string()), file_(open(path_.c_str(), O_WRONLY | O_CLOEXEC)) {
    if (file_ < 0) fail("cannot open {}: {}", path_, std::strerror(errno));
  }
  ~PlacedFile() {
    if (file_ >= 0) ::close(file_);
  }
  PlacedFile(const PlacedFile&) = delete;
  PlacedFile& operator=(const PlacedFile&) = delete;

  void write(std::uint64_t place, const void* data, std::size_t bytes) const {
    const char* from = static_cast<const char*>(data);
    while (bytes > 0) {
      const ssize_t written = pwrite(file_, from, bytes, off_t(place));
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) fail("cannot write {}: {}", path_, written < 0 ? std::strerror(errno) : "nothing was taken");
      from += written;
      place += std::uint64_t(written);
      bytes -= std::size_t(written);
    }
  }
  /// To the disk; some file systems report only now, or on closing, that there was no room.
  void close() {
    const bool flushed = fsync(file_) == 0;
    const int why = errno;
    const bool closed = ::close(std::exchange(file_, -1)) == 0;
    if (!flushed || !closed) fail("cannot flush {} to disk: {}", path_, std::strerror(flushed ? errno : why));
  }

 private:
  std::string path_;
  int file_;
};

}  // namespace

/// One checkpoint under way. Written by its thread until `progress` is no longer busy, then read by the training.
struct BackgroundWriter::Job {
  std::int64_t step = 0, bytes = 0;
  double began = 0, stall_seconds = 0;  // s on the steady clock; s
  fs::path file;
  std::vector<detail::Places> places;
  std::vector<Checksum> checksums;
  std::atomic<Progress> progress{Progress::busy};
  std::atomic<bool> give_up{false};
  std::string error;
  double ended = 0;
  std::thread thread;

  Job() = default;
  Job(const Job&) = delete;
  Job& operator=(const Job&) = delete;
  ~Job() {
    give_up = true;
    if (thread.joinable()) thread.join();
  }

  void write(const std::vector<Copy>& copies) {
    PlacedFile out(file);
    for (const Copy& copy : copies) {
      if (give_up) fail("given up");
      const detail::Place& place = places[std::size_t(copy.parameter)][copy.kind];
      out.write(place.values + copy.first_byte, copy.tensor.data, copy.tensor.bytes());
      if (copy.whole) write_checksum(out, {copy.parameter, copy.expert, copy.kind, checksum(copy.tensor)});
    }
    for (const Checksum& checksum : checksums) write_checksum(out, checksum);
    out.close();
  }
  void write_checksum(const PlacedFile& out, const Checksum& checksum) const {
    const detail::Place& place = places[std::size_t(checksum.parameter)][checksum.kind];
    out.write(place.checksums + std::uint64_t(checksum.expert) * sizeof checksum.value, &checksum.value,
              sizeof checksum.value);
  }
  void run(const std::vector<Copy>& copies) noexcept {
    Progress result = Progress::written;
    try {
      write(copies);
    } catch (const std::exception& thrown) {
      error = thrown.what();
      result = Progress::failed;
    }
    ended = seconds_now();
    progress = result;
  }
};

BackgroundWriter::BackgroundWriter(std::string run_dir, std::int64_t keep, const ParameterStore& store,
                                   const Optimizer& optimizer, const Communicator& world)
    : run_dir_(std::move(run_dir)), keep_(keep), store_(store), optimizer_(optimizer), world_(world) {}

BackgroundWriter::~BackgroundWriter() = default;

void BackgroundWriter::lay(Arena& copies) {
  copies_.clear();
  const detail::SharedChecksums shared(store_);
  optimizer_.visit_state([&](const StateTensor& state) {
    if (state.copy) return;
    const auto kind = std::find_if(state_kinds.begin(), state_kinds.end(),
                                   [&](const char* name) { return std::strcmp(name, state.kind) == 0; });
    FLANMOE_EXPECT(kind != state_kinds.end(), "state of kind {}", state.kind);
    const std::int64_t expert = store_.first_expert(state.parameter) + state.expert;
    const bool whole = !shared.shares(state);
    const std::int64_t rows = whole ? state.tensor.rows : store_.specs()[std::size_t(state.parameter)].rows;
    const auto row_bytes = std::uint64_t(state.tensor.cols) * size_of(state.tensor.dtype);
    copies_.push_back({state.parameter, expert, std::size_t(kind - state_kinds.begin()),
                       copies.allocate(state.tensor.dtype, state.tensor.rows, state.tensor.cols),
                       std::uint64_t(expert * rows + state.first_row) * row_bytes, whole});
  });
}

void BackgroundWriter::copy_state() {
  std::size_t i = 0;
  optimizer_.visit_state([&](const StateTensor& state) {
    if (state.copy) return;
    const Tensor& copy = copies_.at(i++).tensor;
    FLANMOE_EXPECT(state.tensor.contiguous() && state.tensor.bytes() == copy.bytes(), "copy {} is of another size", i);
    optimizer_.copy_state(copy, state.tensor);
  });
}

/// From the copies. Collective.
std::vector<BackgroundWriter::Checksum> BackgroundWriter::shared_checksums() const {
  detail::SharedChecksums shared(store_);
  std::size_t i = 0;
  optimizer_.visit_state([&](const StateTensor& state) {
    if (state.copy) return;
    const Copy& copy = copies_.at(i++);
    if (!copy.whole) shared.add(state, checksum(copy.tensor));
  });
  std::vector<Checksum> checksums;
  for (const auto& whole : shared.combine(world_)) {
    const std::int64_t expert = store_.first_expert(whole.parameter) + whole.expert;
    const auto owned = [&](const Copy& copy) {
      return copy.parameter == whole.parameter && copy.expert == expert && copy.kind == whole.kind;
    };
    if (std::none_of(copies_.begin(), copies_.end(), owned)) continue;  // not a kind that this parameter has
    checksums.push_back({whole.parameter, expert, whole.kind, whole.checksum});
  }
  return checksums;
}

void BackgroundWriter::begin(const CheckpointInfo& info) {
  FLANMOE_EXPECT(!under_way(), "checkpoint {} is still being written", job_->step);
  auto job = std::make_unique<Job>();
  job->began = seconds_now();
  job->step = info.step;
  job->file = detail::aside_folder(run_dir_, info.step) / detail::checkpoint_file;
  const std::vector<detail::KindSet> kinds = detail::kinds_of_all(store_, optimizer_, world_);
  const DType dtype = accumulate_dtype(store_.compute());
  job->places.resize(store_.specs().size());
  detail::write_or_tidy(run_dir_, info.step, world_, [&] {
    on_root(world_, [&] {
      const std::scoped_lock lock(hdf5_mutex());
      job->bytes = detail::make_file(run_dir_, info, store_.specs(), kinds, dtype).data;
      job->places = detail::places_in_file(job->file, store_.specs(), kinds, dtype);
    });
  });
  world_.broadcast(std::span(reinterpret_cast<std::uint64_t*>(job->places.data()),
                             job->places.size() * sizeof(detail::Places) / sizeof(std::uint64_t)),
                   0);
  job->bytes = world_.all_reduce(job->bytes, ReduceOp::max);  // rank 0 knows
  copy_state();
  job->checksums = shared_checksums();
  job->thread = std::thread([this, job = job.get()] { job->run(copies_); });
  job->stall_seconds = seconds_now() - job->began;
  job_ = std::move(job);
}

bool BackgroundWriter::has_ended() const {
  return Progress(world_.all_reduce(std::int32_t(job_->progress.load()), ReduceOp::max)) != Progress::busy;
}

std::optional<SaveReport> BackgroundWriter::poll() {
  if (!under_way() || !has_ended()) return std::nullopt;
  return publish(std::move(job_));
}

std::optional<SaveReport> BackgroundWriter::finish() {
  if (!under_way()) return std::nullopt;
  const double start = seconds_now();
  // Asking again and again: a rank that waited for a slow disk inside one collective would look like one that hangs.
  while (!has_ended()) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  job_->stall_seconds += seconds_now() - start;
  return publish(std::move(job_));
}

SaveReport BackgroundWriter::publish(std::unique_ptr<Job> job) {
  const double start = seconds_now();
  job->give_up = true;  // where another rank has failed
  if (job->thread.joinable()) job->thread.join();
  SaveReport report{.step = job->step, .bytes = job->bytes};
  detail::write_or_tidy(run_dir_, job->step, world_, [&] {
    // A rank that gave up because another one failed has nothing to say.
    together(world_, [&] {
      if (job->progress == Progress::failed && job->error != "given up") fail("{}", job->error);
    });
    on_root(world_, [&] { detail::publish(run_dir_, job->step); });
  });
  on_root(world_, [&] { detail::prune(run_dir_, job->step, keep_); });
  std::array<double, 2> most = {job->ended - job->began, job->stall_seconds + seconds_now() - start};
  world_.all_reduce(std::span<double>(most), ReduceOp::max);
  report.seconds = most[0];
  report.stall_seconds = most[1];
  return report;
}

}  // namespace flanmoe
