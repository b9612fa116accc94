// Shared by the CUDA sources whose kernels give each element a thread.
#pragma once

#include <cstdint>

namespace occforge {

inline constexpr int kThreads = 256;  // of a block
inline constexpr int kWarp = 32;

inline unsigned blocks_of(int64_t threads, int per_block = kThreads) {
  return static_cast<unsigned>((threads + per_block - 1) / per_block);
}

__device__ __forceinline__ int64_t thread_number() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

}  // namespace occforge
