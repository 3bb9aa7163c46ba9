#include "stage/version.hpp"

#include <dnnl.h>
#include <fmt/format.h>
#include <hdf5.h>
#include <mpi.h>

#include <array>

namespace flanmoe {
namespace {

std::string mpi_library() {
  std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> text{};
  int length = 0;
  MPI_Get_library_version(text.data(), &length);
  const std::string whole(text.data(), std::size_t(length));
  return whole.substr(0, whole.find_first_of(",\n"));
}

std::string hdf5_library() {
  unsigned major = 0, minor = 0, release = 0;
  H5get_libversion(&major, &minor, &release);
  return fmt::format("{}.{}.{}, parallel", major, minor, release);
}

std::string onednn_library() {
  const dnnl_version_t* version = dnnl_version();
  return fmt::format("{}.{}.{}", version->major, version->minor, version->patch);
}

}  // namespace

// The FLANMOE_BUILD_* strings come from CMakeLists.txt.
std::string version_text() {
  return fmt::format(
      "flanmoe   {}\ncompiler  {}\nbuild     {}\nMPI       {}\nHDF5      {}\noneDNN    {}\nCUDA      {}\n",
      FLANMOE_BUILD_VERSION, FLANMOE_BUILD_COMPILER, FLANMOE_BUILD_TYPE, mpi_library(), hdf5_library(),
      onednn_library(), FLANMOE_BUILD_CUDA);
}

}  // namespace flanmoe
