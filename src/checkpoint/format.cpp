#include "checkpoint/format.hpp"

#include <functional>
#include <numeric>

namespace flanmoe::detail {
namespace {

bool has_experts(const ParameterSpec& spec) { return spec.placement == Placement::expert || spec.experts > 1; }

std::string values_path(const ParameterSpec& spec, const std::string& kind) {
  return kind == "master" ? "weights/" + spec.name : "optimizer/" + spec.name + "/" + kind;
}

}  // namespace

hsize_t DatasetPlan::elements_of(const MatrixPart& part) const {
  const std::size_t inner = by_expert ? 1 : 0;
  const hsize_t all =
      std::accumulate(shape.begin() + std::ptrdiff_t(inner), shape.end(), hsize_t{1}, std::multiplies<>());
  return by_row && part.rows > 0 ? all / shape[inner] * hsize_t(part.rows) : all;
}

H5Space DatasetPlan::part_of(hid_t dataset, const MatrixPart& part) const {
  H5Space space(H5Dget_space(dataset), path);
  std::vector<hsize_t> start(shape.size(), 0), count = shape;
  if (by_expert) {
    start[0] = hsize_t(part.expert);
    count[0] = 1;
  }
  if (by_row && part.rows > 0) {
    start[by_expert ? 1 : 0] = hsize_t(part.first_row);
    count[by_expert ? 1 : 0] = hsize_t(part.rows);
  }
  h5_check(H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, start.data(), nullptr, count.data(), nullptr), path);
  return space;
}

H5Space DatasetPlan::memory_space(const MatrixPart& part) const {
  const hsize_t count = elements_of(part);
  return {H5Screate_simple(1, &count, nullptr), path};
}

DatasetPlan values_plan(const ParameterSpec& spec, const std::string& kind, DType dtype) {
  DatasetPlan plan;
  plan.path = values_path(spec, kind);
  plan.by_expert = has_experts(spec);
  if (plan.by_expert) plan.shape.push_back(hsize_t(spec.experts));
  plan.by_row = kind == "row" || (kind != "col" && spec.rows > 1);
  if (plan.by_row) plan.shape.push_back(hsize_t(spec.rows));
  if (kind != "row") plan.shape.push_back(hsize_t(spec.cols));
  plan.file_type = dtype == DType::f64 ? H5T_IEEE_F64LE : H5T_IEEE_F32LE;
  plan.memory_type = dtype == DType::f64 ? H5T_NATIVE_DOUBLE : H5T_NATIVE_FLOAT;
  return plan;
}

DatasetPlan checksums_plan(const ParameterSpec& spec, const std::string& kind) {
  return {
      "checksums/" + values_path(spec, kind), {hsize_t(spec.experts)}, H5T_STD_U32LE, H5T_NATIVE_UINT32, true, false};
}

H5Property file_access() {
  H5Property access(H5Pcreate(H5P_FILE_ACCESS), "H5Pcreate");
  h5_check(H5Pset_libver_bounds(access.get(), H5F_LIBVER_V18, H5F_LIBVER_LATEST), "H5Pset_libver_bounds");
  return access;
}

}  // namespace flanmoe::detail
