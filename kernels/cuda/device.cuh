// The one header that kernels include. A source of kernels/cuda is compiled two ways: by nvcc for GPUs, and by the host
// compiler against the emulation of tests/cuda_host, where every thread is a fiber and every access is checked. What
// differs between the two is here and nowhere else:
//
//  - kernels are started by launch(), not by <<<>>>;
//  - all shared memory is dynamic and taken by shared_memory<T>(byte offset);
//  - what is written in PTX (mma, cp.async) is a function of this header.
//
// Threads are alike in a block of one dimension. Sums run in an order that the source fixes: there are no atomics on
// floating-point numbers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/runtime.hpp"
#include "kernels/dispatch.hpp"
#include "tensor/tensor.hpp"

namespace flanmoe::cuda {

// ---- starting a kernel ------------------------------------------------------------------------------------------

/// Threads of a block unless a kernel says otherwise.
inline constexpr int kThreads = 256;
inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffU;

/// Starts kernel(args...) on every thread of grid x block, behind what the stream holds already. An empty grid is
/// nothing to do.
template <class... P>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, std::size_t shared_bytes, cudaStream_t stream,
            std::type_identity_t<P>... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  // Above 48 KiB a kernel must ask; the answer depends on the GPU.
  if (shared_bytes > 48 * 1024) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)),
          "cudaFuncSetAttribute");
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, args...), "cudaLaunchKernelEx");
}
template <class... P>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, std::size_t shared_bytes, const KernelContext& context,
            std::type_identity_t<P>... args) {
  launch(kernel, grid, block, shared_bytes, stream_of(context), args...);
}

/// ceil(n / per), as the size of a grid.
inline unsigned blocks_for(std::int64_t n, std::int64_t per) { return unsigned((n + per - 1) / per); }
/// Blocks for a loop over n pieces in strides of the grid: enough to fill any GPU, few enough to be started quickly.
inline unsigned striding_blocks(std::int64_t n, std::int64_t per) {
  constexpr std::int64_t most = 132 * 16;
  return unsigned(std::min((n + per - 1) / per, most));
}

// ---- elements -----------------------------------------------------------------------------------------------------

__device__ inline float load_as_float(float x) { return x; }
__device__ inline float load_as_float(bf16 x) { return __uint_as_float(std::uint32_t{x.bits} << 16U); }
/// Rounds to nearest even.
template <class T>
__device__ inline T round_to(float x) {
  if constexpr (std::is_same_v<T, bf16>) {
    bf16 y;
    y.bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
    return y;
  } else {
    return x;
  }
}

/// Elements of 16 bytes, moved by one access: the widest there is.
template <class T>
struct alignas(16) Pack {
  static constexpr int size = 16 / int(sizeof(T));
  T value[size];
};
/// From 16-byte aligned memory.
template <class T>
__device__ inline Pack<T> load_pack(const T* at) {
  const uint4 words = *reinterpret_cast<const uint4*>(at);
  Pack<T> pack;
  memcpy(static_cast<void*>(&pack), &words, 16);
  return pack;
}
template <class T>
__device__ inline void store_pack(T* at, const Pack<T>& pack) {
  uint4 words;
  memcpy(&words, &pack, 16);
  *reinterpret_cast<uint4*>(at) = words;
}
/// True when every row of the matrix begins on 16 bytes and has whole packs: then a kernel may use load_pack.
inline bool takes_packs(const Tensor& x) {
  const std::int64_t per = 16 / std::int64_t(size_of(x.dtype));
  return reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0 && x.stride % per == 0 && x.cols % per == 0;
}

// ---- shared memory ------------------------------------------------------------------------------------------------

#if FLANMOE_CUDA_EMULATED
template <class T>
inline T* shared_memory(std::size_t byte_offset = 0) {
  return reinterpret_cast<T*>(emulation::shared_memory() + byte_offset);
}
#else
template <class T>
__device__ inline T* shared_memory(std::size_t byte_offset = 0) {
  extern __shared__ __align__(16) unsigned char flanmoe_shared_bytes[];
  return reinterpret_cast<T*>(flanmoe_shared_bytes + byte_offset);
}
#endif

// ---- sums in a fixed order ------------------------------------------------------------------------------------------

struct Sum {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Largest {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};

/// Of all 32 lanes; every lane gets the result, the same bits.
template <class T, class F = Sum>
__device__ inline T warp_reduce(T x, F f = {}) {
#pragma unroll
  for (int bits = kWarp / 2; bits > 0; bits /= 2) x = f(x, __shfl_xor_sync(kAllLanes, x, bits));
  return x;
}

/// Of all threads of a block of whole warps; every thread gets the result. `room`: a T of shared memory for each warp,
/// free again when the function returns. All threads of the block must call it.
template <class T, class F = Sum>
__device__ inline T block_reduce(T x, T* room, F f = {}) {
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp, warps = int(blockDim.x) / kWarp;
  x = warp_reduce(x, f);
  if (lane == 0) room[warp] = x;
  __syncthreads();
  x = room[0];
  for (int w = 1; w < warps; ++w) x = f(x, room[w]);
  __syncthreads();
  return x;
}
/// Bytes of `room`.
template <class T>
constexpr std::size_t block_reduce_bytes(int threads) {
  return sizeof(T) * std::size_t(threads / kWarp);
}

// ---- matrix products of a warp -------------------------------------------------------------------------------------

/// c += a . b, 16 x 8 x 16 in bf16 with fp32 sums: fragments as PTX's mma.m16n8k16 lays them out (two bf16 a word, the
/// first one in the lower half). All lanes of the warp.
#if FLANMOE_CUDA_EMULATED
inline void mma_16x8x16(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                        emulation::Where where = emulation::Where::current()) {
  emulation::mma_bf16(c, a, b, where);
}
#else
__device__ inline void mma_16x8x16(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

// ---- copies from global to shared memory that run beside the computation
// ------------------------------------------------

#if FLANMOE_CUDA_EMULATED
inline void copy_async_16(void* shared, const void* global) { emulation::copy_begin(shared, global, 16); }
inline void copy_async_commit() { emulation::copy_commit(); }
template <int groups_left>
inline void copy_async_wait() {
  emulation::copy_wait(groups_left);
}
#else
/// Begins to copy 16 aligned bytes.
__device__ inline void copy_async_16(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
               :
               : "r"(std::uint32_t(__cvta_generic_to_shared(shared))), "l"(global)
               : "memory");
}
/// Ends a group of copies of this thread.
__device__ inline void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Waits until at most so many of this thread's newest groups are under way. What other threads copied is there only
/// behind a barrier.
template <int groups_left>
__device__ inline void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" : : "n"(groups_left) : "memory");
}
#endif

}  // namespace flanmoe::cuda
