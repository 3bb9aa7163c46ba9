// The part of CUDA's runtime and of its device language that flanmoe uses, for a host compiler: see ../README.md. Names
// and meanings are those of CUDA; what differs is that everything is checked.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#include "block.hpp"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

// ---- vector types -------------------------------------------------------------------------------------------------
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// ---- inside a kernel ----------------------------------------------------------------------------------------------
inline constexpr int warpSize = 32;

inline void __syncthreads(flanmoe::emulation::Where where = flanmoe::emulation::Where::current()) {
  flanmoe::emulation::barrier(flanmoe::emulation::Vote::none, 0, where);
}
inline int __syncthreads_count(int p, flanmoe::emulation::Where where = flanmoe::emulation::Where::current()) {
  return flanmoe::emulation::barrier(flanmoe::emulation::Vote::count, p, where);
}
inline int __syncthreads_or(int p, flanmoe::emulation::Where where = flanmoe::emulation::Where::current()) {
  return flanmoe::emulation::barrier(flanmoe::emulation::Vote::any, p, where);
}
inline int __syncthreads_and(int p, flanmoe::emulation::Where where = flanmoe::emulation::Where::current()) {
  return flanmoe::emulation::barrier(flanmoe::emulation::Vote::all, p, where);
}
inline void __syncwarp(unsigned mask = 0xffffffffU,
                       flanmoe::emulation::Where where = flanmoe::emulation::Where::current()) {
  flanmoe::emulation::warp_barrier(mask, where);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32,
              flanmoe::emulation::Where where = flanmoe::emulation::Where::current()) {
  const int own = flanmoe::emulation::lane();
  return flanmoe::emulation::shuffle(mask, value, (own & ~(width - 1)) + (lane & (width - 1)), where);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 flanmoe::emulation::Where where = flanmoe::emulation::Where::current()) {
  const int own = flanmoe::emulation::lane();
  const int from = own - int(delta);
  return flanmoe::emulation::shuffle(mask, value, from < (own & ~(width - 1)) ? own : from, where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   flanmoe::emulation::Where where = flanmoe::emulation::Where::current()) {
  const int own = flanmoe::emulation::lane();
  const int from = own + int(delta);
  return flanmoe::emulation::shuffle(mask, value, from > (own | (width - 1)) ? own : from, where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32,
                  flanmoe::emulation::Where where = flanmoe::emulation::Where::current()) {
  const int own = flanmoe::emulation::lane();
  const int from = own ^ bits;
  return flanmoe::emulation::shuffle(mask, value, from > (own | (width - 1)) ? own : from, where);
}
inline unsigned __ballot_sync(unsigned mask, int p,
                              flanmoe::emulation::Where where = flanmoe::emulation::Where::current()) {
  return flanmoe::emulation::ballot(mask, p, where);
}
inline int __any_sync(unsigned mask, int p, flanmoe::emulation::Where where = flanmoe::emulation::Where::current()) {
  return flanmoe::emulation::ballot(mask, p, where) != 0 ? 1 : 0;
}
inline int __all_sync(unsigned mask, int p, flanmoe::emulation::Where where = flanmoe::emulation::Where::current()) {
  return flanmoe::emulation::ballot(mask, p, where) == mask ? 1 : 0;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value,
                          flanmoe::emulation::Where where = flanmoe::emulation::Where::current()) {
  return flanmoe::emulation::match(mask, std::uint64_t(value), where);
}

// Atomics are of whole numbers only: sums of floating-point numbers would depend on the order of threads.
template <class T>
requires std::is_integral_v<T> T atomicAdd(T* at, std::type_identity_t<T> value) {
  const T old = *at;
  *at = T(old + value);
  return old;
}
template <class T>
requires std::is_integral_v<T> T atomicMax(T* at, std::type_identity_t<T> value) {
  const T old = *at;
  if (value > old) *at = value;
  return old;
}
template <class T>
requires std::is_integral_v<T> T atomicMin(T* at, std::type_identity_t<T> value) {
  const T old = *at;
  if (value < old) *at = value;
  return old;
}
template <class T>
requires std::is_integral_v<T> T atomicExch(T* at, std::type_identity_t<T> value) {
  const T old = *at;
  *at = value;
  return old;
}
template <class T>
requires std::is_integral_v<T> T atomicCAS(T* at, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  const T old = *at;
  if (old == expected) *at = value;
  return old;
}
template <class T>
requires std::is_integral_v<T> T atomicOr(T* at, std::type_identity_t<T> value) {
  const T old = *at;
  *at = T(old | value);
  return old;
}

template <class T>
T __ldg(const T* at) {
  return *at;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((static_cast<unsigned long long>(a) * b) >> 32U); }
inline float __uint_as_float(unsigned x) {
  float y;
  std::memcpy(&y, &x, 4);
  return y;
}
inline unsigned __float_as_uint(float x) {
  unsigned y;
  std::memcpy(&y, &x, 4);
  return y;
}
inline int __float_as_int(float x) { return int(__float_as_uint(x)); }
inline float __int_as_float(int x) { return __uint_as_float(unsigned(x)); }
inline float __double2float_rz(double x) {
  const float nearest = float(x);
  return std::fabs(double(nearest)) > std::fabs(x) ? std::nextafter(nearest, 0.0F) : nearest;
}
inline float rsqrtf(float x) { return 1.0F / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float x, float y) { return x / y; }
// Products and sums that are never fused: the sources are compiled with -ffp-contract=off.
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline double __dmul_rn(double x, double y) { return x * y; }
inline double __dadd_rn(double x, double y) { return x + y; }

// ---- the runtime --------------------------------------------------------------------------------------------------
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorNotReady = 600,
};
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();

struct cudaDeviceProp {
  char name[256];
  std::size_t totalGlobalMem;
  int multiProcessorCount;
  int major, minor;
};
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaDeviceGetPCIBusId(char* id, int size, int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceSynchronize();

cudaError_t cudaMalloc(void** at, std::size_t bytes);
cudaError_t cudaFree(void* at);
cudaError_t cudaMallocHost(void** at, std::size_t bytes);
cudaError_t cudaFreeHost(void* at);

using cudaStream_t = struct cudaStream_st*;
using cudaEvent_t = struct cudaEvent_st*;
enum cudaMemcpyKind { cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
inline constexpr unsigned cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2;

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
                              std::size_t width, std::size_t height, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* at, int value, std::size_t bytes, cudaStream_t stream);
cudaError_t cudaMemset2DAsync(void* at, std::size_t pitch, int value, std::size_t width, std::size_t height,
                              cudaStream_t stream);
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest);
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags = 0);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventSynchronize(cudaEvent_t event);

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
template <class... P>
cudaError_t cudaFuncSetAttribute(void (*)(P...), cudaFuncAttribute, int bytes) {
  return bytes <= flanmoe::emulation::kMostSharedBytes ? cudaSuccess : cudaErrorInvalidValue;
}
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  void* attrs = nullptr;
  unsigned numAttrs = 0;
};
namespace flanmoe::emulation {
cudaError_t launch(const cudaLaunchConfig_t& config, std::function<void()> thread);
}
template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), A&&... args) {
  return flanmoe::emulation::launch(*config, [kernel, ... values = P(std::forward<A>(args))] { kernel(values...); });
}
