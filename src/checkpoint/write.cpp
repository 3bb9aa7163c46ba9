#include <exception>
#include <filesystem>
#include <mutex>

#include "checkpoint/folder.hpp"
#include "checkpoint/format.hpp"
#include "parallel/together.hpp"
#include "parallel/watchdog.hpp"

namespace flanmoe {

namespace fs = std::filesystem;
using detail::DatasetPlan;
using detail::KindSet;
using detail::state_kinds;

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

/// The whole structure of the file, by one rank: attributes and every dataset with its space. The parallel part then
/// changes no structure, so a rank that fails there leaves nobody waiting inside HDF5.
void create_file(const fs::path& path, const CheckpointInfo& info, const std::vector<ParameterSpec>& specs,
                 const std::vector<KindSet>& kinds, DType dtype) {
  H5File file(H5Fcreate(path.c_str(), H5F_ACC_EXCL, H5P_DEFAULT, detail::file_access().get()),
              "cannot create " + path.string());
  write_number(file.get(), "format_version", detail::format_version);
  write_number(file.get(), "step", info.step);
  write_number(file.get(), "tokens_seen", info.tokens_seen);
  write_text(file.get(), "deck", info.deck);
  write_text(file.get(), "tokenizer_fingerprint", info.tokenizer_fingerprint);
  for (std::size_t p = 0; p < specs.size(); ++p) {
    for (std::size_t k = 0; k < state_kinds.size(); ++k) {
      if (!kinds[p][k]) continue;
      create_dataset(file.get(), detail::values_plan(specs[p], state_kinds[k], dtype));
      create_dataset(file.get(), detail::checksums_plan(specs[p], state_kinds[k]));
    }
  }
  h5_check(H5Fclose(file.release()), "cannot write " + path.string());
}

/// The file's size, generously: data, and at most 8 KiB of structure for a dataset and its share of the groups.
struct FileSize {
  std::int64_t structure = 1 << 20, data = 0;
};
FileSize size_of_file(const CheckpointInfo& info, const std::vector<ParameterSpec>& specs,
                      const std::vector<KindSet>& kinds, DType dtype) {
  FileSize size;
  size.structure += std::int64_t(info.deck.size());
  for (std::size_t p = 0; p < specs.size(); ++p) {
    for (std::size_t k = 0; k < state_kinds.size(); ++k) {
      if (!kinds[p][k]) continue;
      const auto elements = std::int64_t(detail::values_plan(specs[p], state_kinds[k], dtype).matrix_size());
      size.data += specs[p].experts * (elements * std::int64_t(size_of(dtype)) + 4);
      size.structure += 2 * 8192;
    }
  }
  return size;
}

/// What state each parameter has on its owners. Collective.
std::vector<KindSet> kinds_of_all(const ParameterStore& store, const Optimizer& optimizer, const Communicator& world) {
  std::vector<std::int32_t> seen(store.specs().size() * state_kinds.size(), 0);
  optimizer.visit_state([&](const StateTensor& state) {
    for (std::size_t k = 0; k < state_kinds.size(); ++k) {
      if (std::string(state.kind) == state_kinds[k]) seen[std::size_t(state.parameter) * state_kinds.size() + k] = 1;
    }
  });
  world.all_reduce(std::span<std::int32_t>(seen), ReduceOp::max);
  std::vector<KindSet> kinds(store.specs().size());
  for (std::size_t i = 0; i < seen.size(); ++i) kinds[i / state_kinds.size()][i % state_kinds.size()] = seen[i] != 0;
  return kinds;
}

void write_part(hid_t file, const DatasetPlan& plan, std::int64_t global_expert, const void* data) {
  const H5Dataset dataset(H5Dopen2(file, plan.path.c_str(), H5P_DEFAULT), plan.path);
  h5_check(H5Dwrite(dataset.get(), plan.memory_type, plan.memory_space().get(),
                    plan.matrix_of(dataset.get(), global_expert).get(), H5P_DEFAULT, data),
           "cannot write " + plan.path);
}

/// Every matrix this rank owns, with its checksum. Not collective.
void write_owned(hid_t file, const ParameterStore& store, const Optimizer& optimizer) {
  optimizer.visit_state([&](const StateTensor& state) {
    const ParameterSpec& spec = store.specs()[std::size_t(state.parameter)];
    const std::int64_t expert = store.first_expert(state.parameter) + state.expert;
    const std::uint32_t crc = detail::checksum(state.tensor);
    write_part(file, detail::values_plan(spec, state.kind, state.tensor.dtype), expert, state.tensor.data);
    write_part(file, detail::checksums_plan(spec, state.kind), expert, &crc);
  });
}

/// Opens the file on all ranks, writes, closes on all ranks. Collective.
void write_together(const fs::path& path, const ParameterStore& store, const Optimizer& optimizer,
                    const Communicator& world) {
  const H5Property access = detail::file_access();
  h5_check(H5Pset_fapl_mpio(access.get(), world.raw(), MPI_INFO_NULL), "H5Pset_fapl_mpio");
  H5File file;
  together(world, [&] {
    const CollectiveScope scope("H5Fopen", world.name());
    file = H5File(H5Fopen(path.c_str(), H5F_ACC_RDWR, access.get()), "cannot open " + path.string());
  });
  std::exception_ptr failure;  // kept until all ranks have closed the file
  try {
    write_owned(file.get(), store, optimizer);
  } catch (...) {
    failure = std::current_exception();
  }
  together(world, [&] {
    const CollectiveScope scope("H5Fclose", world.name());
    const herr_t closed = H5Fclose(file.release());
    if (failure) std::rethrow_exception(failure);
    h5_check(closed, "cannot close " + path.string());
  });
}

}  // namespace

std::string write_checkpoint(const std::string& run_dir, const CheckpointInfo& info, const ParameterStore& store,
                             const Optimizer& optimizer, const Communicator& world, std::int64_t keep) {
  const std::scoped_lock lock(hdf5_mutex());
  const fs::path aside = detail::aside_folder(run_dir, info.step);
  const fs::path file = aside / detail::checkpoint_file;
  const std::vector<KindSet> kinds = kinds_of_all(store, optimizer, world);
  const DType dtype = accumulate_dtype(store.compute());
  try {
    on_root(world, [&] {
      detail::prepare_aside(run_dir, info.step);
      const FileSize size = size_of_file(info, store.specs(), kinds, dtype);
      detail::require_room(file, size.structure + size.data, size.structure);
      create_file(file, info, store.specs(), kinds, dtype);
      detail::reserve_space(file);
    });
    write_together(file, store, optimizer, world);
    // Every node flushes what its ranks wrote.
    together(world, [&] { detail::sync_to_disk(file); });
    on_root(world, [&] { detail::publish(run_dir, info.step); });
  } catch (const Error& error) {
    std::error_code ignored;  // the message that counts is the first one
    if (world.rank() == 0) fs::remove_all(aside, ignored);
    throw Error(fmt::format("the checkpoint of step {} was not written in {}; older ones are as they were: {}",
                            info.step, run_dir, error.what()));
  }
  on_root(world, [&] { detail::prune(run_dir, info.step, keep); });
  return detail::published_folder(run_dir, info.step).string();
}

}  // namespace flanmoe
