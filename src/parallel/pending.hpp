// A collective between its start and its finish.
#pragma once

#include <utility>

#include "base/error.hpp"
#include "parallel/tensor_transport.hpp"

namespace flanmoe {

/// Returned by Communicator::start_...: the collective may run beside what is computed until finish(). Until then
/// nothing may be computed that changes what is sent, or that reads or writes what is received or worked in; another
/// collective may work there only if it runs on the same stream. On hosts the collective
/// is over when its start returns. Lives no longer than the communicator; one that is destroyed finishes.
class [[nodiscard]] Pending {
 public:
  /// Nothing to wait for.
  Pending() = default;
  Pending(const TensorTransport& transport, TensorTransport::Ticket ticket) : transport_(&transport), ticket_(ticket) {}
  Pending(Pending&& other) noexcept : transport_(std::exchange(other.transport_, nullptr)), ticket_(other.ticket_) {}
  Pending& operator=(Pending&& other) noexcept {
    std::swap(transport_, other.transport_);
    std::swap(ticket_, other.ticket_);
    return *this;
  }
  Pending(const Pending&) = delete;
  Pending& operator=(const Pending&) = delete;
  ~Pending() {
    try {
      finish();
    } catch (const Error&) {
      // A device that failed says so again at the next call.
    }
  }

  /// What is computed afterwards waits for the collective; the host does not. The second call does nothing.
  void finish() {
    if (const TensorTransport* transport = std::exchange(transport_, nullptr)) transport->finish(ticket_);
  }

 private:
  const TensorTransport* transport_ = nullptr;
  TensorTransport::Ticket ticket_ = 0;
};

}  // namespace flanmoe
