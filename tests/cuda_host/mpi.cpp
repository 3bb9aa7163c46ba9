// MPI's blocking collectives in a program on the emulated GPU. A GPU works on while its host waits for other ranks;
// here work of streams runs in the host's own thread, so that a host inside of a collective has to run it, or ranks
// that wait for its messages never come.
#include <mpi.h>
#include <sched.h>

#include "runtime.hpp"

namespace {

/// Begins a collective and waits for it; streams run only while it is not done.
template <class Begin>
int finish(Begin&& begin, MPI_Status* status = MPI_STATUS_IGNORE) {
  MPI_Request request = MPI_REQUEST_NULL;
  int code = begin(&request);
  if (code != MPI_SUCCESS) return code;
  while (true) {
    int done = 0;
    code = PMPI_Test(&request, &done, status);
    if (code != MPI_SUCCESS || done != 0) return code;
    flanmoe::emulation::run_one();
    sched_yield();
  }
}

}  // namespace

extern "C" {

int MPI_Barrier(MPI_Comm comm) {
  return finish([&](MPI_Request* request) { return PMPI_Ibarrier(comm, request); });
}
int MPI_Bcast(void* data, int count, MPI_Datatype type, int root, MPI_Comm comm) {
  return finish([&](MPI_Request* request) { return PMPI_Ibcast(data, count, type, root, comm, request); });
}
int MPI_Allreduce(const void* from, void* to, int count, MPI_Datatype type, MPI_Op op, MPI_Comm comm) {
  return finish([&](MPI_Request* request) { return PMPI_Iallreduce(from, to, count, type, op, comm, request); });
}
int MPI_Allgather(const void* from, int from_count, MPI_Datatype from_type, void* to, int to_count,
                  MPI_Datatype to_type, MPI_Comm comm) {
  return finish([&](MPI_Request* request) {
    return PMPI_Iallgather(from, from_count, from_type, to, to_count, to_type, comm, request);
  });
}
int MPI_Alltoall(const void* from, int from_count, MPI_Datatype from_type, void* to, int to_count, MPI_Datatype to_type,
                 MPI_Comm comm) {
  return finish([&](MPI_Request* request) {
    return PMPI_Ialltoall(from, from_count, from_type, to, to_count, to_type, comm, request);
  });
}

int MPI_Sendrecv(const void* from, int from_count, MPI_Datatype from_type, int to_rank, int to_tag, void* to,
                 int to_count, MPI_Datatype to_type, int from_rank, int from_tag, MPI_Comm comm, MPI_Status* status) {
  MPI_Request sent = MPI_REQUEST_NULL;
  int code = PMPI_Isend(from, from_count, from_type, to_rank, to_tag, comm, &sent);
  if (code != MPI_SUCCESS) return code;
  code = finish(
      [&](MPI_Request* request) { return PMPI_Irecv(to, to_count, to_type, from_rank, from_tag, comm, request); },
      status);
  if (code != MPI_SUCCESS) return code;
  return finish([&](MPI_Request* request) {
    *request = sent;
    return MPI_SUCCESS;
  });
}

}  // extern "C"
