#include "checkpoint/reader.hpp"

#include <algorithm>
#include <filesystem>
#include <iterator>

#include "checkpoint/folder.hpp"
#include "tensor/checksum.hpp"

namespace flanmoe::detail {
namespace {

std::string list_of(const KindSet& kinds) {
  std::vector<std::string> names;
  for (std::size_t k = 1; k < kinds.size(); ++k) {  // masters are weights
    if (kinds[k]) names.emplace_back(state_kinds[k]);
  }
  return fmt::format("[{}]", fmt::join(names, ", "));
}

/// Keeps the path, relative to the group that is walked, of every dataset.
herr_t collect_dataset(hid_t /*group*/, const char* name, const H5O_info_t* info, void* out) {
  if (info->type == H5O_TYPE_DATASET) static_cast<std::vector<std::string>*>(out)->emplace_back(name);
  return 0;
}

}  // namespace

CheckpointReader::CheckpointReader(const std::string& checkpoint_dir)
    : path_((std::filesystem::path(checkpoint_dir) / checkpoint_file).string()),
      file_(H5Fopen(path_.c_str(), H5F_ACC_RDONLY, file_access().get()), "cannot open the checkpoint " + path_) {}

CheckpointInfo CheckpointReader::info() const {
  const auto what = [&](const char* name) { return fmt::format("{}: attribute {}", path_, name); };
  const auto number = [&](const char* name) {
    const H5Attribute attribute(H5Aopen(file_.get(), name, H5P_DEFAULT), what(name));
    std::int64_t value = 0;
    h5_check(H5Aread(attribute.get(), H5T_NATIVE_INT64, &value), what(name));
    return value;
  };
  const auto text = [&](const char* name) {
    const H5Attribute attribute(H5Aopen(file_.get(), name, H5P_DEFAULT), what(name));
    const H5Type type(H5Aget_type(attribute.get()), what(name));
    std::string value(H5Tget_size(type.get()), '\0');
    h5_check(H5Aread(attribute.get(), type.get(), value.data()), what(name));
    value.resize(value.find_last_not_of('\0') + 1);  // the padding of an empty text
    return value;
  };
  const std::int64_t version = number("format_version");
  if (version != format_version) {
    usage_fail("{} has format version {}; this program reads version {}", path_, version, format_version);
  }
  return {number("step"), number("tokens_seen"), text("deck"), text("tokenizer_fingerprint")};
}

bool CheckpointReader::has(const std::string& path) const {
  // HDF5 answers for one level at a time.
  for (std::size_t end = path.find('/'); true; end = path.find('/', end + 1)) {
    const std::string part = path.substr(0, end);
    const htri_t found = H5Lexists(file_.get(), part.c_str(), H5P_DEFAULT);
    if (found < 0) fail("{} is damaged at {}: {}", path_, part, hdf5_error_message());
    if (found == 0 || end == std::string::npos) return found > 0;
  }
}

std::vector<std::string> CheckpointReader::weight_names() const {
  std::vector<std::string> found;
  if (has("weights")) {
    h5_check(H5Ovisit_by_name2(file_.get(), "weights", H5_INDEX_NAME, H5_ITER_INC, collect_dataset, &found,
                               H5O_INFO_BASIC, H5P_DEFAULT),
             path_ + ": list of weights");
  }
  std::sort(found.begin(), found.end());
  return found;
}

std::vector<hsize_t> CheckpointReader::shape_of(const std::string& path) const {
  const std::string what = fmt::format("{}: tensor {}", path_, path);
  const H5Dataset dataset(H5Dopen2(file_.get(), path.c_str(), H5P_DEFAULT), what);
  const H5Space space(H5Dget_space(dataset.get()), what);
  std::vector<hsize_t> shape(std::size_t(std::max(0, H5Sget_simple_extent_ndims(space.get()))));
  h5_check(H5Sget_simple_extent_dims(space.get(), shape.data(), nullptr), what);
  return shape;
}

std::string CheckpointReader::misfit(const ParameterSpec& spec) const {
  const DatasetPlan plan = values_plan(spec, "master", DType::f32);
  if (!has(plan.path)) return "is missing";
  const std::vector<hsize_t> shape = shape_of(plan.path);
  if (shape == plan.shape) return "";
  return fmt::format("has shape [{}], this model needs [{}]", fmt::join(shape, ", "), fmt::join(plan.shape, ", "));
}

void CheckpointReader::refuse_other_weights(const std::vector<ParameterSpec>& specs) const {
  const std::vector<std::string> found = weight_names();
  std::vector<std::string> known, other;
  for (const ParameterSpec& spec : specs) known.push_back(spec.name);
  std::sort(known.begin(), known.end());
  std::set_difference(found.begin(), found.end(), known.begin(), known.end(), std::back_inserter(other));
  if (!other.empty()) {
    fail("{} is of another model: it holds {} tensors that this model does not have, the first is weights/{}", path_,
         other.size(), other.front());
  }
}

void CheckpointReader::require_kinds(const ParameterSpec& spec, const KindSet& kinds) const {
  KindSet found{};
  for (std::size_t k = 0; k < found.size(); ++k) {
    found[k] = has(values_plan(spec, state_kinds[k], DType::f32).path);
  }
  found[0] = kinds[0];  // a missing weight is reported when it is read
  if (found == kinds) return;
  fail(
      "{}: the optimizer state of {} is {}, this run needs {}: the checkpoint was written with another optimizer.name, "
      "optimizer.factor_threshold or optimizer.freeze; run.init_from takes its weights alone",
      path_, spec.name, list_of(found), list_of(kinds));
}

void CheckpointReader::read(const DatasetPlan& plan, const MatrixPart& part, void* data) const {
  const std::string what = fmt::format("{}: tensor {}", path_, plan.path);
  if (!has(plan.path)) fail("{} is missing", what);
  const H5Dataset dataset(H5Dopen2(file_.get(), plan.path.c_str(), H5P_DEFAULT), what);
  const H5Type type(H5Dget_type(dataset.get()), what);
  if (H5Tequal(type.get(), plan.file_type) <= 0) fail("{} has elements of another type than this run's state", what);
  if (const auto shape = shape_of(plan.path); shape != plan.shape) {
    fail("{} has shape [{}], this model needs [{}]", what, fmt::join(shape, ", "), fmt::join(plan.shape, ", "));
  }
  h5_check(H5Dread(dataset.get(), plan.memory_type, plan.memory_space(part).get(),
                   plan.part_of(dataset.get(), part).get(), H5P_DEFAULT, data),
           what);
}

void CheckpointReader::read_rows(const ParameterSpec& spec, const std::string& kind, const MatrixPart& part,
                                 const Tensor& rows) const {
  const DatasetPlan plan = values_plan(spec, kind, rows.dtype);
  FLANMOE_EXPECT(rows.contiguous() && hsize_t(rows.size()) == plan.elements_of(part), "{} elements for {}", rows.size(),
                 plan.path);
  read(plan, part, rows.data);
}

void CheckpointReader::expect_checksum(const ParameterSpec& spec, const std::string& kind, std::int64_t global_expert,
                                       std::uint32_t found) const {
  std::uint32_t expected = 0;
  read(checksums_plan(spec, kind), {global_expert}, &expected);
  if (found == expected) return;
  const DatasetPlan plan = values_plan(spec, kind, DType::f32);
  fail("{}: tensor {}{} is damaged: its checksum is {:08x}, the one stored with it {:08x}", path_, plan.path,
       plan.by_expert ? fmt::format(", expert {}", global_expert) : "", found, expected);
}

void CheckpointReader::read_matrix(const ParameterSpec& spec, const std::string& kind, std::int64_t global_expert,
                                   const Tensor& matrix) const {
  read_rows(spec, kind, {global_expert}, matrix);
  expect_checksum(spec, kind, global_expert, checksum(matrix));
}

}  // namespace flanmoe::detail
