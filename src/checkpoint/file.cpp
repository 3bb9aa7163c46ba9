#include "checkpoint/file.hpp"

namespace flanmoe::detail {
namespace {

void write_number(hid_t file, const char* name, std::int64_t value) {
  const H5Space space(H5Screate(H5S_SCALAR), name);
  const H5Attribute attribute(H5Acreate2(file, name, H5T_STD_I64LE, space.get(), H5P_DEFAULT, H5P_DEFAULT), name);
  h5_check(H5Awrite(attribute.get(), H5T_NATIVE_INT64, &value), name);
}

/// Of fixed length: HDF5 keeps texts of variable length in a heap without checksums.
void write_text(hid_t file, const char* name, std::string text) {
  if (text.empty()) text.push_back('\0');  // there is no type of length 0; the padding is dropped on reading
  const H5Type type(H5Tcopy(H5T_C_S1), name);
  h5_check(H5Tset_size(type.get(), text.size()), name);
  h5_check(H5Tset_cset(type.get(), H5T_CSET_UTF8), name);
  h5_check(H5Tset_strpad(type.get(), H5T_STR_NULLPAD), name);
  const H5Space space(H5Screate(H5S_SCALAR), name);
  const H5Attribute attribute(H5Acreate2(file, name, type.get(), space.get(), H5P_DEFAULT, H5P_DEFAULT), name);
  h5_check(H5Awrite(attribute.get(), type.get(), text.data()), name);
}

void create_dataset(hid_t file, const DatasetPlan& plan) {
  const H5Property links(H5Pcreate(H5P_LINK_CREATE), plan.path);
  h5_check(H5Pset_create_intermediate_group(links.get(), 1), plan.path);
  // All space at once and no fill values: the ranks write every element.
  const H5Property creation(H5Pcreate(H5P_DATASET_CREATE), plan.path);
  h5_check(H5Pset_alloc_time(creation.get(), H5D_ALLOC_TIME_EARLY), plan.path);
  h5_check(H5Pset_fill_time(creation.get(), H5D_FILL_TIME_NEVER), plan.path);
  const H5Space space(H5Screate_simple(int(plan.shape.size()), plan.shape.data(), nullptr), plan.path);
  const H5Dataset dataset(
      H5Dcreate2(file, plan.path.c_str(), plan.file_type, space.get(), links.get(), creation.get(), H5P_DEFAULT),
      plan.path);
}

std::uint64_t place_of(hid_t file, const DatasetPlan& plan) {
  const H5Dataset dataset(H5Dopen2(file, plan.path.c_str(), H5P_DEFAULT), plan.path);
  const haddr_t offset = H5Dget_offset(dataset.get());
  if (offset == HADDR_UNDEF) fail("HDF5 gave {} no place in its file", plan.path);
  return offset;
}

}  // namespace

void create_file(const std::filesystem::path& path, const CheckpointInfo& info, const std::vector<ParameterSpec>& specs,
                 const std::vector<KindSet>& kinds, DType dtype) {
  H5File file(H5Fcreate(path.c_str(), H5F_ACC_EXCL, H5P_DEFAULT, file_access().get()),
              "cannot create " + path.string());
  write_number(file.get(), "format_version", format_version);
  write_number(file.get(), "step", info.step);
  write_number(file.get(), "tokens_seen", info.tokens_seen);
  write_text(file.get(), "deck", info.deck);
  write_text(file.get(), "tokenizer_fingerprint", info.tokenizer_fingerprint);
  for (std::size_t p = 0; p < specs.size(); ++p) {
    for (std::size_t k = 0; k < state_kinds.size(); ++k) {
      if (!kinds[p][k]) continue;
      create_dataset(file.get(), values_plan(specs[p], state_kinds[k], dtype));
      create_dataset(file.get(), checksums_plan(specs[p], state_kinds[k]));
    }
  }
  h5_check(H5Fclose(file.release()), "cannot write " + path.string());
}

FileSize size_of_file(const CheckpointInfo& info, const std::vector<ParameterSpec>& specs,
                      const std::vector<KindSet>& kinds, DType dtype) {
  FileSize size;
  size.structure += std::int64_t(info.deck.size());
  for (std::size_t p = 0; p < specs.size(); ++p) {
    for (std::size_t k = 0; k < state_kinds.size(); ++k) {
      if (!kinds[p][k]) continue;
      const auto elements = std::int64_t(values_plan(specs[p], state_kinds[k], dtype).elements_of({}));
      size.data += specs[p].experts * (elements * std::int64_t(size_of(dtype)) + 4);
      size.structure += 2 * 8192;
    }
  }
  return size;
}

std::vector<Places> places_in_file(const std::filesystem::path& path, const std::vector<ParameterSpec>& specs,
                                   const std::vector<KindSet>& kinds, DType dtype) {
  const H5File file(H5Fopen(path.c_str(), H5F_ACC_RDONLY, file_access().get()), "cannot open " + path.string());
  std::vector<Places> places(specs.size());
  for (std::size_t p = 0; p < specs.size(); ++p) {
    for (std::size_t k = 0; k < state_kinds.size(); ++k) {
      if (!kinds[p][k]) continue;
      places[p][k] = {place_of(file.get(), values_plan(specs[p], state_kinds[k], dtype)),
                      place_of(file.get(), checksums_plan(specs[p], state_kinds[k]))};
    }
  }
  return places;
}

void write_part(hid_t file, const DatasetPlan& plan, const MatrixPart& part, const void* data) {
  const H5Dataset dataset(H5Dopen2(file, plan.path.c_str(), H5P_DEFAULT), plan.path);
  h5_check(H5Dwrite(dataset.get(), plan.memory_type, plan.memory_space(part).get(),
                    plan.part_of(dataset.get(), part).get(), H5P_DEFAULT, data),
           "cannot write " + plan.path);
}

}  // namespace flanmoe::detail
