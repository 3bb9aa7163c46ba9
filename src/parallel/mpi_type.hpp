// MPI's names of element types, owned derived types, and the count limit. Private to this folder and its tests.
#pragma once

#include <mpi.h>

#include <limits>

#include "base/timer.hpp"
#include "parallel/watchdog.hpp"
#include "tensor/dtype.hpp"

namespace flanmoe::detail {

template <class T>
MPI_Datatype mpi_type();  // only the listed types link
template <>
inline MPI_Datatype mpi_type<char>() {
  return MPI_CHAR;
}
template <>
inline MPI_Datatype mpi_type<std::uint8_t>() {
  return MPI_UINT8_T;
}
template <>
inline MPI_Datatype mpi_type<std::int32_t>() {
  return MPI_INT32_T;
}
template <>
inline MPI_Datatype mpi_type<std::int64_t>() {
  return MPI_INT64_T;
}
template <>
inline MPI_Datatype mpi_type<std::uint64_t>() {
  return MPI_UINT64_T;
}
template <>
inline MPI_Datatype mpi_type<float>() {
  return MPI_FLOAT;
}
template <>
inline MPI_Datatype mpi_type<double>() {
  return MPI_DOUBLE;
}
template <>
inline MPI_Datatype mpi_type<bf16>() {
  return MPI_UINT16_T;
}  // moved, never added by MPI

inline MPI_Datatype mpi_type(DType dtype) {
  switch (dtype) {
    case DType::f32: return MPI_FLOAT;
    case DType::bf16: return MPI_UINT16_T;
    case DType::f64: return MPI_DOUBLE;
    case DType::i32: return MPI_INT32_T;
  }
  return MPI_DATATYPE_NULL;
}

/// MPI 3 counts elements in int.
constexpr std::int64_t largest_count = std::numeric_limits<int>::max();

/// Owns a derived datatype.
class Datatype {
 public:
  explicit Datatype(MPI_Datatype made) : type_(made) { MPI_Type_commit(&type_); }
  Datatype(const Datatype&) = delete;
  Datatype& operator=(const Datatype&) = delete;
  ~Datatype() { MPI_Type_free(&type_); }
  MPI_Datatype get() const { return type_; }

 private:
  MPI_Datatype type_;
};

/// What every collective opens: the watchdog's mark and the clock of the communication part.
struct Collective {
  Collective(const char* operation, const std::string& communicator)
      : clock(Part::communication), mark(operation, communicator) {}
  PartScope clock;
  CollectiveScope mark;
};

}  // namespace flanmoe::detail
