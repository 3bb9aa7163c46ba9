// HDF5 handles that close themselves, and checks that say what failed.
#pragma once

#include <hdf5.h>

#include <mutex>
#include <string>
#include <utility>

#include "base/error.hpp"

namespace flanmoe {

/// Owns one HDF5 identifier. Moved-from handles are empty.
template <herr_t (*Close)(hid_t)>
class H5Handle {
 public:
  H5Handle() = default;
  /// Takes ownership; throws Error "<what>: <innermost HDF5 message>" when the identifier is invalid.
  H5Handle(hid_t id, const std::string& what);
  H5Handle(H5Handle&& other) noexcept : id_(std::exchange(other.id_, H5I_INVALID_HID)) {}
  H5Handle& operator=(H5Handle&& other) noexcept {
    if (this != &other) {
      reset();
      id_ = std::exchange(other.id_, H5I_INVALID_HID);
    }
    return *this;
  }
  H5Handle(const H5Handle&) = delete;
  H5Handle& operator=(const H5Handle&) = delete;
  ~H5Handle() { reset(); }
  hid_t get() const { return id_; }
  explicit operator bool() const { return id_ >= 0; }
  void reset() noexcept {
    if (id_ >= 0) Close(id_);
    id_ = H5I_INVALID_HID;
  }
  /// Gives up ownership, for a close whose failure matters.
  hid_t release() noexcept { return std::exchange(id_, H5I_INVALID_HID); }

 private:
  hid_t id_ = H5I_INVALID_HID;
};

/// The innermost message of HDF5's error stack, on one line; clears the stack.
std::string hdf5_error_message();
/// Throws Error "<what>: <HDF5's message>" when status is negative.
void h5_check(herr_t status, const std::string& what);
/// HDF5 prints its error stack by default; flanmoe reports errors itself. Called once by main and by tests.
void silence_hdf5();

/// HDF5 as the distribution packages it is not thread safe, and batches are read ahead on a second thread while the
/// main thread writes checkpoints: whoever may meet another thread holds this lock (recursive) around its HDF5 calls.
std::recursive_mutex& hdf5_mutex();

template <herr_t (*Close)(hid_t)>
H5Handle<Close>::H5Handle(hid_t id, const std::string& what) : id_(id) {
  if (id < 0) throw Error(what + ": " + hdf5_error_message());
}

using H5File = H5Handle<H5Fclose>;
using H5Group = H5Handle<H5Gclose>;
using H5Dataset = H5Handle<H5Dclose>;
using H5Space = H5Handle<H5Sclose>;
using H5Type = H5Handle<H5Tclose>;
using H5Attribute = H5Handle<H5Aclose>;
using H5Property = H5Handle<H5Pclose>;

/// Properties with which to create a dataset that keeps no time stamps, so that equal content gives equal files.
H5Property timeless_dataset(const std::string& what);

}  // namespace flanmoe
