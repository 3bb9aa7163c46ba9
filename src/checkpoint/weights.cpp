// Weights alone, by one process without MPI: for programs that convert them.
#include <filesystem>
#include <mutex>

#include "checkpoint/file.hpp"
#include "checkpoint/folder.hpp"
#include "checkpoint/reader.hpp"
#include "tensor/checksum.hpp"

namespace flanmoe {

namespace fs = std::filesystem;

namespace {

/// Calls f with every matrix of the model in memory for one, in the order of specs and of experts.
void for_each_matrix(const std::vector<ParameterSpec>& specs, const MatrixVisitor& f) {
  std::vector<float> values;
  for (std::size_t p = 0; p < specs.size(); ++p) {
    values.resize(std::size_t(specs[p].matrix_size()));
    for (std::int64_t e = 0; e < specs[p].experts; ++e) {
      f(int(p), e, make_tensor(values.data(), specs[p].rows, specs[p].cols));
    }
  }
}

void write_file(const fs::path& path, const CheckpointInfo& info, const std::vector<ParameterSpec>& specs,
                const MatrixVisitor& fill) {
  const std::vector<detail::KindSet> kinds(specs.size(), detail::KindSet{true});  // masters
  const detail::FileSize size = detail::size_of_file(info, specs, kinds, DType::f32);
  detail::require_room(path, size.structure + size.data, size.structure);
  detail::create_file(path, info, specs, kinds, DType::f32);
  detail::reserve_space(path);
  H5File file(H5Fopen(path.c_str(), H5F_ACC_RDWR, detail::file_access().get()), "cannot open " + path.string());
  for_each_matrix(specs, [&](int parameter, std::int64_t expert, const Tensor& matrix) {
    fill(parameter, expert, matrix);
    const ParameterSpec& spec = specs[std::size_t(parameter)];
    const std::uint32_t crc = checksum(matrix);
    detail::write_part(file.get(), detail::values_plan(spec, "master", DType::f32), {expert}, matrix.data);
    detail::write_part(file.get(), detail::checksums_plan(spec, "master"), {expert}, &crc);
  });
  h5_check(H5Fclose(file.release()), "cannot close " + path.string());
  detail::sync_to_disk(path);
}

}  // namespace

std::string write_weights(const std::string& run_dir, const CheckpointInfo& info,
                          const std::vector<ParameterSpec>& specs, const MatrixVisitor& fill) {
  const std::scoped_lock lock(hdf5_mutex());
  if (const auto newest = newest_checkpoint(run_dir)) {
    fail("{} has checkpoints already, the newest is {}: expected a new run folder", run_dir, *newest);
  }
  detail::prepare_aside(run_dir, info.step);
  const fs::path aside = detail::aside_folder(run_dir, info.step);
  try {
    write_file(aside / detail::checkpoint_file, info, specs, fill);
    detail::publish(run_dir, info.step);
  } catch (...) {
    std::error_code ignored;  // the message that counts is the first one
    fs::remove_all(aside, ignored);
    throw;
  }
  return detail::published_folder(run_dir, info.step).string();
}

void visit_weights(const std::string& checkpoint_dir, const std::vector<ParameterSpec>& specs, const MatrixVisitor& f) {
  const std::scoped_lock lock(hdf5_mutex());
  const detail::CheckpointReader reader(checkpoint_dir);
  reader.info();  // refuses other format versions
  reader.refuse_other_weights(specs);
  for_each_matrix(specs, [&](int parameter, std::int64_t expert, const Tensor& matrix) {
    reader.read_matrix(specs[std::size_t(parameter)], "master", expert, matrix);
    f(parameter, expert, matrix);
  });
}

}  // namespace flanmoe
