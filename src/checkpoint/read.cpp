#include <algorithm>
#include <exception>
#include <map>
#include <mutex>
#include <set>

#include "checkpoint/folder.hpp"
#include "checkpoint/reader.hpp"
#include "checkpoint/shared_checksums.hpp"
#include "model/upcycle.hpp"
#include "parallel/together.hpp"
#include "tensor/checksum.hpp"

namespace flanmoe {

using detail::CheckpointReader;
using detail::KindSet;
using detail::SharedChecksums;
using detail::state_kinds;

namespace {

/// What state the parameters have of which this rank owns a matrix.
std::map<int, KindSet> kinds_of_owned(const Optimizer& optimizer) {
  std::map<int, KindSet> kinds;
  optimizer.visit_state([&](const StateTensor& state) {
    for (std::size_t k = 0; k < state_kinds.size(); ++k) {
      if (std::string(state.kind) == state_kinds[k]) kinds[state.parameter][k] = true;
    }
  });
  return kinds;
}

/// Where in a checkpoint a matrix of this model comes from.
struct Source {
  ParameterSpec spec;
  std::int64_t expert = 0;  // global
};
/// Nothing for a matrix that does not come from it.
using SourceOf = std::function<std::optional<Source>(const ParameterSpec& spec, std::int64_t expert)>;

/// Fills a state tensor, in memory of the host, of an owned unit; false when it comes from elsewhere. The checksum of a
/// whole matrix is verified, that of rows kept in `shared`.
bool read_owned(const CheckpointReader& reader, const ParameterStore& store, const StateTensor& state,
                const SourceOf& source_of, SharedChecksums& shared) {
  const ParameterSpec& spec = store.specs()[std::size_t(state.parameter)];
  const auto source = source_of(spec, store.first_expert(state.parameter) + state.expert);
  if (!source) return false;
  if (!shared.shares(state)) {
    reader.read_matrix(source->spec, state.kind, source->expert, state.tensor);
    return true;
  }
  reader.read_rows(source->spec, state.kind, {source->expert, state.first_row, state.tensor.rows}, state.tensor);
  shared.add(state, checksum(state.tensor));
  return true;
}

/// Verifies the checksums of the matrices that several ranks have read. Collective.
void verify_shared(const CheckpointReader& reader, const ParameterStore& store, const Communicator& world,
                   const std::map<int, KindSet>& kinds, const SourceOf& source_of, SharedChecksums& shared) {
  const auto wholes = shared.combine(world);
  together(world, [&] {
    for (const auto& whole : wholes) {
      if (!kinds.at(whole.parameter)[whole.kind]) continue;
      const auto source =
          source_of(store.specs()[std::size_t(whole.parameter)], store.first_expert(whole.parameter) + whole.expert);
      if (source) reader.expect_checksum(source->spec, state_kinds[whole.kind], source->expert, whole.checksum);
    }
  });
}

}  // namespace

std::vector<PublishedCheckpoint> checkpoints_of(const std::string& run_dir) {
  std::vector<PublishedCheckpoint> newest_first;
  for (const auto& [step, folder] : detail::published_folders(run_dir)) {
    newest_first.insert(newest_first.begin(), {step, folder.string()});
  }
  return newest_first;
}

std::string move_damaged_checkpoint(const PublishedCheckpoint& checkpoint) {
  return detail::move_damaged(checkpoint.folder).string();
}

std::optional<std::string> newest_checkpoint(const std::string& run_dir) {
  const auto published = detail::published_checkpoints(run_dir);
  if (published.empty()) return std::nullopt;
  return published.back().second.string();
}

CheckpointInfo read_checkpoint_info(const std::string& checkpoint_dir) {
  const std::scoped_lock lock(hdf5_mutex());
  return CheckpointReader(checkpoint_dir).info();
}

CheckpointInfo read_checkpoint(const std::string& checkpoint_dir, const ParameterStore& store, Optimizer& optimizer,
                               const Communicator& world, bool weights_only) {
  const std::scoped_lock lock(hdf5_mutex());
  CheckpointInfo info;
  std::optional<CheckpointReader> reader;
  std::map<int, KindSet> owned = kinds_of_owned(optimizer);
  SharedChecksums shared(store);
  const SourceOf itself = [](const ParameterSpec& spec, std::int64_t expert) { return Source{spec, expert}; };
  together(world, [&] {
    reader.emplace(checkpoint_dir);
    info = reader->info();
    if (world.rank() == 0) reader->refuse_other_weights(store.specs());
    for (auto& [parameter, kinds] : owned) {
      if (!weights_only) reader->require_kinds(store.specs()[std::size_t(parameter)], kinds);
      if (weights_only) kinds = {true};
    }
    optimizer.fill_state(weights_only,
                         [&](const StateTensor& state) { read_owned(*reader, store, state, itself, shared); });
  });
  verify_shared(*reader, store, world, owned, itself, shared);
  return info;
}

void check_initial_weights(const std::string& checkpoint_dir, const std::vector<ParameterSpec>& specs, bool upcycle) {
  const std::scoped_lock lock(hdf5_mutex());
  const CheckpointReader reader(checkpoint_dir);
  const std::vector<std::string> found = reader.weight_names();
  std::set<std::string> wanted;
  std::vector<std::string> problems;
  bool needs_experts = false;
  for (const ParameterSpec& spec : specs) {
    const UpcycleSource source = upcycle_source(spec);
    needs_experts = needs_experts || source.from != UpcycleFrom::same;
    if (upcycle && source.from == UpcycleFrom::fresh) continue;
    const ParameterSpec& needed = upcycle ? source.dense : spec;
    wanted.insert(needed.name);
    if (const std::string misfit = reader.misfit(needed); !misfit.empty())
      problems.push_back(fmt::format("weights/{} {}", needed.name, misfit));
  }
  bool has_experts = false;
  for (const std::string& name : found) {
    has_experts = has_experts || name.ends_with("/feed_forward/router");
    if (!wanted.contains(name)) problems.push_back(fmt::format("weights/{} has no place in this model", name));
  }
  if (problems.empty()) return;
  const char* hint = "";
  if (upcycle && has_experts) hint = "\n  (it is a sparse model's, and run.upcycle = true starts from a dense one)";
  if (!upcycle && needs_experts && !has_experts)
    hint = "\n  (it is a dense model's: run.upcycle = true makes every expert a copy of its feed-forward)";
  usage_fail("run.init_from: the weights in {} do not fit this model: {} problem{}\n  {}{}", checkpoint_dir,
             problems.size(), problems.size() == 1 ? "" : "s", fmt::join(problems, "\n  "), hint);
}

CheckpointInfo upcycle_checkpoint(const std::string& checkpoint_dir, const ParameterStore& store, Optimizer& optimizer,
                                  const Communicator& world, std::uint64_t seed) {
  const std::scoped_lock lock(hdf5_mutex());
  CheckpointInfo info;
  std::optional<CheckpointReader> reader;
  SharedChecksums shared(store);
  const SourceOf dense = [](const ParameterSpec& spec, std::int64_t /*expert*/) -> std::optional<Source> {
    const UpcycleSource source = upcycle_source(spec);
    if (source.from == UpcycleFrom::fresh) return std::nullopt;
    return Source{source.dense, 0};
  };
  together(world, [&] {
    reader.emplace(checkpoint_dir);
    info = reader->info();
    optimizer.fill_state(/*masters_only=*/true, [&](const StateTensor& state) {
      if (read_owned(*reader, store, state, dense, shared)) return;
      const ParameterSpec& spec = store.specs()[std::size_t(state.parameter)];
      const std::int64_t expert = store.first_expert(state.parameter) + state.expert;
      initialize_matrix(state.tensor, spec, expert, seed, state.first_row);
    });
  });
  std::map<int, KindSet> masters = kinds_of_owned(optimizer);
  for (auto& [parameter, kinds] : masters) kinds = {true};
  verify_shared(*reader, store, world, masters, dense, shared);
  return info;
}

namespace {

/// Dense weights: each read by one rank, which passes it on; so the file is read once, whatever the number of ranks.
/// Returns this rank's failure; all ranks stop at the same tensor.
std::exception_ptr read_dense_weights(const CheckpointReader& reader, const ParameterStore& store,
                                      KernelContext& context, const Kernels& kernels, const Communicator& world,
                                      std::vector<char>& staging) {
  const DType dtype = accumulate_dtype(store.compute());
  for (std::size_t p = 0; p < store.specs().size(); ++p) {
    const ParameterSpec& spec = store.specs()[p];
    if (spec.placement != Placement::dense) continue;
    const int source = int(p) % world.size();
    for (std::int64_t e = 0; e < spec.experts; ++e) {
      const Tensor matrix{staging.data(), dtype, 1, spec.rows, spec.cols, spec.cols};
      std::exception_ptr failure;
      try {
        if (world.rank() == source) reader.read_matrix(spec, "master", e, matrix);
      } catch (...) {
        failure = std::current_exception();
      }
      std::int32_t failed = failure ? 1 : 0;
      world.broadcast(std::span(&failed, 1), source);
      if (failed != 0) return failure;
      world.broadcast(std::span(staging.data(), matrix.bytes()), source);
      kernels.transfer.upload(context, store.weight(int(p)).matrix(e), matrix);
    }
  }
  return nullptr;
}

/// Expert weights: every rank reads the experts it holds.
void read_expert_weights(const CheckpointReader& reader, const ParameterStore& store, KernelContext& context,
                         const Kernels& kernels, std::vector<char>& staging) {
  for (std::size_t p = 0; p < store.specs().size(); ++p) {
    const ParameterSpec& spec = store.specs()[p];
    if (spec.placement != Placement::expert) continue;
    for (std::int64_t e = 0; e < store.local_experts(int(p)); ++e) {
      const Tensor matrix{staging.data(), accumulate_dtype(store.compute()), 1, spec.rows, spec.cols, spec.cols};
      reader.read_matrix(spec, "master", store.first_expert(int(p)) + e, matrix);
      kernels.transfer.upload(context, store.weight(int(p)).matrix(e), matrix);
    }
  }
}

}  // namespace

CheckpointInfo read_weights(const std::string& checkpoint_dir, ParameterStore& store, KernelContext& context,
                            const Kernels& kernels, const Communicator& world) {
  const std::scoped_lock lock(hdf5_mutex());
  CheckpointInfo info;
  std::optional<CheckpointReader> reader;
  std::int64_t largest = 0;
  for (const ParameterSpec& spec : store.specs()) largest = std::max(largest, spec.matrix_size());
  std::vector<char> staging(std::size_t(largest) * size_of(accumulate_dtype(store.compute())));

  together(world, [&] {
    reader.emplace(checkpoint_dir);
    info = reader->info();
    if (world.rank() == 0) reader->refuse_other_weights(store.specs());
  });
  const std::exception_ptr failure = read_dense_weights(*reader, store, context, kernels, world, staging);
  together(world, [&] {
    if (failure) std::rethrow_exception(failure);
  });
  together(world, [&] { read_expert_weights(*reader, store, context, kernels, staging); });
  for (const bool trained : {false, true}) store.weights_changed(trained);
  return info;
}

}  // namespace flanmoe
