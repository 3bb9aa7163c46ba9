#include "checkpoint/format.hpp"

#include <zlib.h>

#include <functional>
#include <numeric>

namespace flanmoe::detail {
namespace {

bool has_experts(const ParameterSpec& spec) { return spec.placement == Placement::expert || spec.experts > 1; }

std::string values_path(const ParameterSpec& spec, const std::string& kind) {
  return kind == "master" ? "weights/" + spec.name : "optimizer/" + spec.name + "/" + kind;
}

}  // namespace

hsize_t DatasetPlan::matrix_size() const {
  return std::accumulate(shape.begin() + (by_expert ? 1 : 0), shape.end(), hsize_t{1}, std::multiplies<>());
}

H5Space DatasetPlan::matrix_of(hid_t dataset, std::int64_t global_expert) const {
  H5Space space(H5Dget_space(dataset), path);
  if (!by_expert) return space;
  std::vector<hsize_t> start(shape.size(), 0), count = shape;
  start[0] = hsize_t(global_expert);
  count[0] = 1;
  h5_check(H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, start.data(), nullptr, count.data(), nullptr), path);
  return space;
}

H5Space DatasetPlan::memory_space() const {
  const hsize_t count = matrix_size();
  return {H5Screate_simple(1, &count, nullptr), path};
}

DatasetPlan values_plan(const ParameterSpec& spec, const std::string& kind, DType dtype) {
  DatasetPlan plan;
  plan.path = values_path(spec, kind);
  plan.by_expert = has_experts(spec);
  if (plan.by_expert) plan.shape.push_back(hsize_t(spec.experts));
  if (kind == "row" || (kind != "col" && spec.rows > 1)) plan.shape.push_back(hsize_t(spec.rows));
  if (kind != "row") plan.shape.push_back(hsize_t(spec.cols));
  plan.file_type = dtype == DType::f64 ? H5T_IEEE_F64LE : H5T_IEEE_F32LE;
  plan.memory_type = dtype == DType::f64 ? H5T_NATIVE_DOUBLE : H5T_NATIVE_FLOAT;
  return plan;
}

DatasetPlan checksums_plan(const ParameterSpec& spec, const std::string& kind) {
  return {"checksums/" + values_path(spec, kind), {hsize_t(spec.experts)}, H5T_STD_U32LE, H5T_NATIVE_UINT32, true};
}

std::uint32_t checksum(const Tensor& tensor) {
  FLANMOE_EXPECT(tensor.contiguous(), "a checksum of {} columns with stride {}", tensor.cols, tensor.stride);
  return std::uint32_t(crc32_z(crc32_z(0, nullptr, 0), static_cast<const Bytef*>(tensor.data), tensor.bytes()));
}

H5Property file_access() {
  H5Property access(H5Pcreate(H5P_FILE_ACCESS), "H5Pcreate");
  h5_check(H5Pset_libver_bounds(access.get(), H5F_LIBVER_V18, H5F_LIBVER_LATEST), "H5Pset_libver_bounds");
  return access;
}

}  // namespace flanmoe::detail
