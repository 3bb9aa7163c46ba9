#include "checkpoint/write.hpp"

#include <exception>
#include <filesystem>
#include <mutex>

#include "checkpoint/file.hpp"
#include "checkpoint/folder.hpp"
#include "checkpoint/format.hpp"
#include "checkpoint/shared_checksums.hpp"
#include "parallel/together.hpp"
#include "parallel/watchdog.hpp"
#include "tensor/checksum.hpp"

namespace flanmoe {

namespace fs = std::filesystem;
using detail::KindSet;
using detail::state_kinds;

namespace detail {

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

FileSize make_file(const std::string& run_dir, const CheckpointInfo& info, const std::vector<ParameterSpec>& specs,
                   const std::vector<KindSet>& kinds, DType dtype) {
  const fs::path file = aside_folder(run_dir, info.step) / checkpoint_file;
  prepare_aside(run_dir, info.step);
  const FileSize size = size_of_file(info, specs, kinds, dtype);
  require_room(file, size.structure + size.data, size.structure);
  create_file(file, info, specs, kinds, dtype);
  reserve_space(file);
  return size;
}

void write_or_tidy(const std::string& run_dir, std::int64_t step, const Communicator& world,
                   const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& error) {
    std::error_code ignored;  // the message that counts is the first one
    if (world.rank() == 0) fs::remove_all(aside_folder(run_dir, step), ignored);
    throw SharedError(fmt::format("the checkpoint of step {} was not written in {}; older ones are as they were: {}",
                                  step, run_dir, error.what()));
  }
}

}  // namespace detail

namespace {

/// What this rank owns, with checksums of whole matrices. Not collective.
void write_owned(hid_t file, const ParameterStore& store, const Optimizer& optimizer, detail::SharedChecksums& shared) {
  optimizer.read_state([&](const StateTensor& state) {
    if (state.copy) return;
    const ParameterSpec& spec = store.specs()[std::size_t(state.parameter)];
    const std::int64_t expert = store.first_expert(state.parameter) + state.expert;
    const std::uint32_t crc = checksum(state.tensor);
    detail::write_part(file, detail::values_plan(spec, state.kind, state.tensor.dtype),
                       {expert, state.first_row, state.tensor.rows}, state.tensor.data);
    if (shared.shares(state)) {
      shared.add(state, crc);
    } else {
      detail::write_part(file, detail::checksums_plan(spec, state.kind), {expert}, &crc);
    }
  });
}

/// Checksums of the matrices that several ranks have written. Not collective.
void write_checksums(hid_t file, const ParameterStore& store, const std::vector<KindSet>& kinds,
                     const std::vector<detail::SharedChecksums::Whole>& wholes) {
  for (const auto& whole : wholes) {
    if (!kinds[std::size_t(whole.parameter)][whole.kind]) continue;
    const ParameterSpec& spec = store.specs()[std::size_t(whole.parameter)];
    detail::write_part(file, detail::checksums_plan(spec, state_kinds[whole.kind]),
                       {store.first_expert(whole.parameter) + whole.expert}, &whole.checksum);
  }
}

/// Opens the file on all ranks, writes, closes on all ranks. Collective.
void write_together(const fs::path& path, const ParameterStore& store, const std::vector<KindSet>& kinds,
                    const Optimizer& optimizer, const Communicator& world) {
  const H5Property access = detail::file_access();
  h5_check(H5Pset_fapl_mpio(access.get(), world.raw(), MPI_INFO_NULL), "H5Pset_fapl_mpio");
  H5File file;
  together(world, [&] {
    const CollectiveScope scope("H5Fopen", world.name());
    file = H5File(H5Fopen(path.c_str(), H5F_ACC_RDWR, access.get()), "cannot open " + path.string());
  });
  std::exception_ptr failure;  // kept until all ranks have closed the file
  const auto unless_failed = [&](auto&& f) {
    try {
      if (!failure) f();
    } catch (...) {
      failure = std::current_exception();
    }
  };
  detail::SharedChecksums shared(store);
  unless_failed([&] { write_owned(file.get(), store, optimizer, shared); });
  const auto wholes = shared.combine(world);
  unless_failed([&] { write_checksums(file.get(), store, kinds, wholes); });
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
  const fs::path file = detail::aside_folder(run_dir, info.step) / detail::checkpoint_file;
  const std::vector<KindSet> kinds = detail::kinds_of_all(store, optimizer, world);
  detail::write_or_tidy(run_dir, info.step, world, [&] {
    on_root(world, [&] { detail::make_file(run_dir, info, store.specs(), kinds, accumulate_dtype(store.compute())); });
    write_together(file, store, kinds, optimizer, world);
    // Every node flushes what its ranks wrote.
    together(world, [&] { detail::sync_to_disk(file); });
    on_root(world, [&] { detail::publish(run_dir, info.step); });
  });
  on_root(world, [&] { detail::prune(run_dir, info.step, keep); });
  return detail::published_folder(run_dir, info.step).string();
}

}  // namespace flanmoe
