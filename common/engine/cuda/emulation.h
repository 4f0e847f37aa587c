#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

// As much of CUDA as the kernels here use, on this processor: for tests where there is no GPU. A block's
// threads are fibers of one thread, which run until they wait at a barrier; blocks follow one another. Slow,
// and exact about who waits for whom: a barrier that not all threads reach ends the process.
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// One block at a time.
#define __shared__ static

struct __half {
  _Float16 value;
};
struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __half2float(__half x) { return static_cast<float>(x.value); }
inline __half __float2half_rn(float x) { return {static_cast<_Float16>(x)}; }
inline uint32_t __float_as_uint(float x) { return std::bit_cast<uint32_t>(x); }
inline float __bfloat162float(__nv_bfloat16 x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  const uint32_t bits = __float_as_uint(x);
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};  // to nearest even
}

struct dim3 {
  dim3(unsigned x_size = 1, unsigned y_size = 1) : x(x_size), y(y_size) {}  // NOLINT: as CUDA's
  unsigned x, y, z = 1;
};

namespace almost::engine::cuda::emulated {

struct ThreadState {
  dim3 thread, block, block_size, grid_size;
};
extern ThreadState here;  // of the fiber that runs

enum class Wait { kNo, kWarp, kBlock, kDone };
void WaitFor(Wait what);
extern std::byte shared_memory[];
// Where the lanes of the running fiber's warp show each other a value.
uint64_t& LaneSlot(unsigned lane);
void RunGrid(dim3 grid, dim3 block, const std::function<void()>& kernel);

}  // namespace almost::engine::cuda::emulated

#define threadIdx (::almost::engine::cuda::emulated::here.thread)
#define blockIdx (::almost::engine::cuda::emulated::here.block)
#define blockDim (::almost::engine::cuda::emulated::here.block_size)
#define gridDim (::almost::engine::cuda::emulated::here.grid_size)

inline void __syncthreads() {
  almost::engine::cuda::emulated::WaitFor(almost::engine::cuda::emulated::Wait::kBlock);
}
inline void __syncwarp(unsigned = ~0u) {
  almost::engine::cuda::emulated::WaitFor(almost::engine::cuda::emulated::Wait::kWarp);
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  namespace emulated = almost::engine::cuda::emulated;
  static_assert(sizeof(T) <= sizeof(uint64_t));
  const unsigned lane = threadIdx.x % 32;
  memcpy(&emulated::LaneSlot(lane), &value, sizeof value);
  __syncwarp();
  memcpy(&value, &emulated::LaneSlot(lane ^ mask), sizeof value);
  __syncwarp();
  return value;
}
