// One libFuzzer target per format: compiled with FLANMOE_FUZZ_FORMAT, its name.
#include <cstddef>
#include <cstdint>

#include "fuzz/reader.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const flanmoe::formats::Format& format = flanmoe::formats::find_format(FLANMOE_FUZZ_FORMAT, "fuzzer");
  flanmoe::formats::read_any_bytes(format, {reinterpret_cast<const char*>(data), size});
  return 0;
}
