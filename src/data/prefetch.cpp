#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>

#include "base/error.hpp"
#include "data/batch.hpp"

namespace flanmoe {

struct Prefetcher::State {
  std::shared_ptr<BatchSource> source;
  std::int64_t last_step, first_row, rows, microbatch_rows, depth;
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::vector<PackedBatch>> ready;
  std::exception_ptr failure;
  bool stop = false, ended = false;
  std::int64_t waits = 0;
  std::thread thread;

  std::vector<PackedBatch> read_step(std::int64_t step) const {
    std::vector<PackedBatch> microbatches;
    for (std::int64_t row = 0; row < rows; row += microbatch_rows) {
      microbatches.push_back(source->read(step, first_row + row, std::min(microbatch_rows, rows - row)));
    }
    return microbatches;
  }

  void run(std::int64_t first_step) {
    try {
      for (std::int64_t step = first_step; step < last_step; ++step) {
        {
          std::unique_lock lock(mutex);
          changed.wait(lock, [&] { return stop || std::int64_t(ready.size()) < depth; });
          if (stop) return;
        }
        std::vector<PackedBatch> microbatches = read_step(step);
        const std::lock_guard lock(mutex);
        ready.push_back(std::move(microbatches));
        changed.notify_all();
      }
    } catch (...) {
      const std::lock_guard lock(mutex);
      failure = std::current_exception();
    }
    const std::lock_guard lock(mutex);
    ended = true;
    changed.notify_all();
  }
};

Prefetcher::Prefetcher(std::shared_ptr<BatchSource> source, std::int64_t first_step, std::int64_t last_step,
                       std::int64_t first_row, std::int64_t rows, std::int64_t microbatch_rows, std::int64_t depth)
    : state_(std::make_unique<State>()) {
  FLANMOE_EXPECT(microbatch_rows > 0 && depth > 0, "microbatch_rows {}, depth {}", microbatch_rows, depth);
  State& s = *state_;
  s.source = std::move(source);
  s.last_step = last_step;
  s.first_row = first_row;
  s.rows = rows;
  s.microbatch_rows = microbatch_rows;
  s.depth = depth;
  s.thread = std::thread([&s, first_step] { s.run(first_step); });
}

Prefetcher::~Prefetcher() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->stop = true;
    state_->changed.notify_all();
  }
  state_->thread.join();
}

std::vector<PackedBatch> Prefetcher::next() {
  State& s = *state_;
  std::unique_lock lock(s.mutex);
  if (s.ready.empty() && !s.ended) ++s.waits;
  s.changed.wait(lock, [&] { return !s.ready.empty() || s.ended; });
  // Batches read before the failure are still good.
  if (s.ready.empty()) {
    if (s.failure) std::rethrow_exception(s.failure);
    throw LogicError(fmt::format("no batch is left: the last step was {}", s.last_step - 1));
  }
  std::vector<PackedBatch> microbatches = std::move(s.ready.front());
  s.ready.pop_front();
  s.changed.notify_all();
  return microbatches;
}

std::int64_t Prefetcher::waits() const {
  const std::lock_guard lock(state_->mutex);
  return state_->waits;
}

std::int64_t Prefetcher::ready() const {
  const std::lock_guard lock(state_->mutex);
  return std::int64_t(state_->ready.size());
}

}  // namespace flanmoe
