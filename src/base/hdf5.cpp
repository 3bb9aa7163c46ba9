#include "base/hdf5.hpp"

namespace flanmoe {
namespace {

herr_t keep_innermost(unsigned /*n*/, const H5E_error2_t* error, void* out) {
  auto& text = *static_cast<std::string*>(out);
  if (error->desc != nullptr && *error->desc != '\0') text = error->desc;
  return 0;
}

}  // namespace

std::string hdf5_error_message() {
  std::string text = "unknown HDF5 error";
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_DOWNWARD, keep_innermost, &text);
  H5Eclear2(H5E_DEFAULT);
  for (char& c : text) {
    if (c == '\n') c = ' ';
  }
  return text;
}

void h5_check(herr_t status, const std::string& what) {
  if (status < 0) throw Error(what + ": " + hdf5_error_message());
}

H5Property timeless_dataset(const std::string& what) {
  H5Property creation(H5Pcreate(H5P_DATASET_CREATE), what);
  h5_check(H5Pset_obj_track_times(creation.get(), false), what);
  return creation;
}

void silence_hdf5() { H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr); }

std::recursive_mutex& hdf5_mutex() {
  static std::recursive_mutex mutex;
  return mutex;
}

}  // namespace flanmoe
