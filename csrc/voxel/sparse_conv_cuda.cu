// Sparse convolution on a GPU. No atomics on floating point numbers anywhere: every output is summed by one thread in a
// fixed order, so results repeat bit for bit. Entries of a corrupt map are skipped, since raising would make the host
// wait; building a map waits once, to refuse bad and repeated voxels.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/_unique2.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/masked_select.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>

#include "cuda_launch.h"
#include "voxel/sparse_conv_kernel.h"

namespace occforge::sparse {
namespace {

constexpr int64_t kNone = std::numeric_limits<int64_t>::max();

__device__ __forceinline__ void split_tap(const Geometry& geometry, int32_t tap, int32_t (&at)[3]) {
  at[2] = tap % geometry.axis[2].kernel;
  at[1] = tap / geometry.axis[2].kernel % geometry.axis[1].kernel;
  at[0] = tap / geometry.axis[2].kernel / geometry.axis[1].kernel;
}

__device__ __forceinline__ bool inside(const Grid& grid, int64_t x, int64_t y, int64_t z) {
  return x >= 0 && x < grid.x && y >= 0 && y < grid.y && z >= 0 && z < grid.z;
}

// What the coordinates have wrong: problem[0] a row outside the grid, problem[1] a row that repeats a voxel,
// problem[2] the largest batch index; -1 for none.
__global__ void inspect_kernel(int64_t count, const int32_t* coords, Grid grid, int64_t* problem) {
  const int64_t i = thread_number();
  if (i >= count) return;
  const int32_t* const at = coords + 4 * i;
  auto* const out = reinterpret_cast<long long*>(problem);
  if (at[0] < 0 || !inside(grid, at[1], at[2], at[3])) atomicMax(out, static_cast<long long>(i));
  atomicMax(out + 2, static_cast<long long>(at[0]));
}

// The host's check before anything is numbered; waits for the device. Returns the largest batch index.
int64_t check_voxels(const at::Tensor& coords, const Grid& grid, cudaStream_t stream) {
  at::Tensor problem = at::full({3}, -1, coords.options().dtype(at::kLong));
  inspect_kernel<<<blocks_of(coords.size(0)), kThreads, 0, stream>>>(coords.size(0), coords.const_data_ptr<int32_t>(),
                                                                     grid, problem.data_ptr<int64_t>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  const at::Tensor found = problem.cpu();
  const int64_t* const value = found.const_data_ptr<int64_t>();
  TORCH_CHECK_VALUE(value[0] < 0, "coords: row ", value[0], " lies outside the grid of ", grid.x, " x ", grid.y, " x ",
                    grid.z);
  check_batches(value[2], grid);
  return value[2];
}

__global__ void insert_kernel(int64_t count, const int32_t* coords, Grid grid, unsigned long long* keys, int32_t* rows,
                              uint64_t slot_mask, int64_t* problem) {
  const int64_t i = thread_number();
  if (i >= count) return;
  const int32_t* const at = coords + 4 * i;
  const auto key = static_cast<unsigned long long>(grid.key(at[0], at[1], at[2], at[3]));
  for (uint64_t slot = mix(key) & slot_mask;; slot = (slot + 1) & slot_mask) {
    const unsigned long long before = atomicCAS(keys + slot, static_cast<unsigned long long>(kNone), key);
    if (before == static_cast<unsigned long long>(kNone)) {
      rows[slot] = static_cast<int32_t>(i);
      return;
    }
    if (before == key) {
      atomicMax(reinterpret_cast<long long*>(problem), static_cast<long long>(i));
      return;
    }
  }
}

__global__ void map_kernel(int64_t total, int64_t outputs, Geometry geometry, Grid grid, int64_t last_batch,
                           const int32_t* out_coords, const int64_t* keys, const int32_t* rows, uint64_t slot_mask,
                           int32_t* index) {
  const int64_t n = thread_number();
  if (n >= total) return;
  const int32_t* const at = out_coords + 4 * (n % outputs);
  int32_t tap[3];
  split_tap(geometry, static_cast<int32_t>(n / outputs), tap);
  const int64_t x = geometry.source(0, at[1], tap[0]), y = geometry.source(1, at[2], tap[1]);
  const int64_t z = geometry.source(2, at[3], tap[2]);
  int32_t row = -1;
  if (at[0] >= 0 && at[0] <= last_batch && inside(grid, x, y, z)) {
    const int64_t key = grid.key(at[0], x, y, z);
    for (uint64_t slot = mix(static_cast<uint64_t>(key)) & slot_mask; keys[slot] != kNone;
         slot = (slot + 1) & slot_mask) {
      if (keys[slot] == key) {
        row = rows[slot];
        break;
      }
    }
  }
  index[n] = row;
}

at::Tensor sparse_map_cuda(const at::Tensor& coords_, const at::Tensor& out_coords_, at::IntArrayRef spatial_shape,
                           at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef padding,
                           at::IntArrayRef dilation, bool transposed) {
  check_coords("coords", coords_);
  check_coords("out_coords", out_coords_);
  TORCH_CHECK_VALUE(coords_.device() == out_coords_.device(), "out_coords must be on ", coords_.device(), ", found ",
                    out_coords_.device());
  const Geometry geometry = make_geometry(kernel, stride, padding, dilation, transposed);
  const Grid grid = make_grid("spatial_shape", spatial_shape);
  const c10::cuda::CUDAGuard guard(coords_.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const at::Tensor coords = coords_.contiguous(), out_coords = out_coords_.contiguous();
  const int64_t count = coords.size(0), outputs = out_coords.size(0), total = geometry.taps() * outputs;
  at::Tensor index = at::full({geometry.taps(), outputs}, -1, coords.options());
  if (count == 0) return index;
  const int64_t last_batch = check_voxels(coords, grid, stream);
  int64_t capacity = 64;
  while (capacity < 2 * count) capacity *= 2;
  const at::TensorOptions wide = coords.options().dtype(at::kLong);
  at::Tensor keys = at::full({capacity}, kNone, wide), rows = at::empty({capacity}, coords.options());
  at::Tensor problem = at::full({1}, -1, wide);
  insert_kernel<<<blocks_of(count), kThreads, 0, stream>>>(
      count, coords.const_data_ptr<int32_t>(), grid, reinterpret_cast<unsigned long long*>(keys.data_ptr<int64_t>()),
      rows.data_ptr<int32_t>(), capacity - 1, problem.data_ptr<int64_t>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  const int64_t repeated = problem.cpu().const_data_ptr<int64_t>()[0];
  TORCH_CHECK_VALUE(repeated < 0, "coords: row ", repeated, " repeats the voxel of another row");
  if (total == 0) return index;
  map_kernel<<<blocks_of(total), kThreads, 0, stream>>>(
      total, outputs, geometry, grid, last_batch, out_coords.const_data_ptr<int32_t>(), keys.const_data_ptr<int64_t>(),
      rows.const_data_ptr<int32_t>(), capacity - 1, index.data_ptr<int32_t>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return index;
}

__global__ void reach_kernel(int64_t total, int32_t taps, Geometry geometry, Grid grid, const int32_t* coords,
                             int64_t* keys) {
  const int64_t n = thread_number();
  if (n >= total) return;
  const int32_t* const at = coords + 4 * (n / taps);
  int32_t tap[3];
  split_tap(geometry, static_cast<int32_t>(n % taps), tap);
  const int64_t x = geometry.sink(0, at[1], tap[0]), y = geometry.sink(1, at[2], tap[1]);
  const int64_t z = geometry.sink(2, at[3], tap[2]);
  keys[n] = inside(grid, x, y, z) ? grid.key(at[0], x, y, z) : kNone;
}

__global__ void place_kernel(int64_t count, Grid grid, const int64_t* keys, int32_t* coords) {
  const int64_t n = thread_number();
  if (n >= count) return;
  int64_t rest = keys[n];
  coords[4 * n + 3] = static_cast<int32_t>(rest % grid.z);
  rest /= grid.z;
  coords[4 * n + 2] = static_cast<int32_t>(rest % grid.y);
  rest /= grid.y;
  coords[4 * n + 1] = static_cast<int32_t>(rest % grid.x);
  coords[4 * n] = static_cast<int32_t>(rest / grid.x);
}

at::Tensor sparse_sites_cuda(const at::Tensor& coords_, at::IntArrayRef out_shape, at::IntArrayRef kernel,
                             at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                             bool transposed) {
  check_coords("coords", coords_);
  const Grid grid = make_grid("out_shape", out_shape);
  const Geometry geometry = make_geometry(kernel, stride, padding, dilation, transposed);
  const c10::cuda::CUDAGuard guard(coords_.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const at::Tensor coords = coords_.contiguous();
  const int64_t total = coords.size(0) * geometry.taps();
  if (total == 0) return at::empty({0, 4}, coords.options());
  // the grid of the input is not known here: any place is allowed, the batch index is what has to be sound
  constexpr int64_t any = std::numeric_limits<int64_t>::max();
  at::Tensor problem = at::full({3}, -1, coords.options().dtype(at::kLong));
  inspect_kernel<<<blocks_of(coords.size(0)), kThreads, 0, stream>>>(coords.size(0), coords.const_data_ptr<int32_t>(),
                                                                     Grid{any, any, any}, problem.data_ptr<int64_t>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  const at::Tensor found = problem.cpu();
  const int64_t* const value = found.const_data_ptr<int64_t>();
  TORCH_CHECK_VALUE(value[0] < 0, "coords: row ", value[0], " has a negative entry");
  check_batches(value[2], grid);
  at::Tensor keys = at::empty({total}, problem.options());
  reach_kernel<<<blocks_of(total), kThreads, 0, stream>>>(total, geometry.taps(), geometry, grid,
                                                          coords.const_data_ptr<int32_t>(), keys.data_ptr<int64_t>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  const at::Tensor sites = std::get<0>(at::_unique2(at::masked_select(keys, keys.ne(kNone)), /*sorted=*/true));
  at::Tensor result = at::empty({sites.size(0), 4}, coords.options());
  if (sites.size(0) > 0) {
    place_kernel<<<blocks_of(sites.size(0)), kThreads, 0, stream>>>(
        sites.size(0), grid, sites.const_data_ptr<int64_t>(), result.data_ptr<int32_t>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return result;
}

__global__ void transpose_kernel(int64_t total, int64_t outputs, int64_t inputs, const int32_t* index,
                                 int32_t* result) {
  const int64_t n = thread_number();
  if (n >= total) return;
  const int32_t row = index[n];
  if (row >= 0 && row < inputs) result[n / outputs * inputs + row] = static_cast<int32_t>(n % outputs);
}

at::Tensor sparse_transpose_map_cuda(const at::Tensor& index_, int64_t num_in) {
  check_map("index", index_, index_);
  TORCH_CHECK_VALUE(num_in >= 0, "num_in must not be negative, found ", num_in);
  const c10::cuda::CUDAGuard guard(index_.device());
  const at::Tensor index = index_.contiguous();
  at::Tensor result = at::full({index.size(0), num_in}, -1, index.options());
  if (index.numel() > 0) {
    transpose_kernel<<<blocks_of(index.numel()), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
        index.numel(), index.size(1), num_in, index.const_data_ptr<int32_t>(), result.data_ptr<int32_t>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return result;
}

// A block of 16 x 16 threads forms a tile of 64 x 64 numbers, 4 x 4 a thread, from slices 16 deep in shared memory.
constexpr int kTile = 64;
constexpr int kSlice = 16;
constexpr int kEach = 4;

template <typename acc_t>
__device__ __forceinline__ void add_slice(const acc_t (&left)[kSlice][kTile + 1], const acc_t (&right)[kSlice][kTile],
                                          acc_t (&sum)[kEach][kEach]) {
  for (int s = 0; s < kSlice; ++s) {
    acc_t a[kEach], b[kEach];
    for (int i = 0; i < kEach; ++i) {
      a[i] = left[s][threadIdx.y * kEach + i];
      b[i] = right[s][threadIdx.x + i * (kTile / kEach)];
    }
    for (int i = 0; i < kEach; ++i)
      for (int j = 0; j < kEach; ++j) sum[i][j] += a[i] * b[j];
  }
}

// Writes the block's tile, which begins at (first_row, first_column), into a row-major table of rows x columns.
template <typename scalar_t, typename acc_t>
__device__ __forceinline__ void store_tile(const acc_t (&sum)[kEach][kEach], int64_t first_row, int64_t rows,
                                           int64_t first_column, int64_t columns, scalar_t* out) {
  for (int i = 0; i < kEach; ++i) {
    const int64_t row = first_row + threadIdx.y * kEach + i;
    for (int j = 0; j < kEach; ++j) {
      const int64_t column = first_column + threadIdx.x + j * (kTile / kEach);
      if (row < rows && column < columns) out[row * columns + column] = static_cast<scalar_t>(sum[i][j]);
    }
  }
}

// weight is (taps, channels, width); a block makes kTile output rows by kTile output channels.
template <typename scalar_t, typename acc_t>
__global__ void conv_kernel(int64_t outputs, int64_t rows, int64_t channels, int64_t width, int32_t taps,
                            const scalar_t* x, const scalar_t* weight, const int32_t* index, scalar_t* out) {
  __shared__ acc_t left[kSlice][kTile + 1];
  __shared__ acc_t right[kSlice][kTile];
  __shared__ int32_t from[kTile];
  const int lane = threadIdx.y * blockDim.x + threadIdx.x;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kTile;
  const int64_t first_column = static_cast<int64_t>(blockIdx.y) * kTile;
  acc_t sum[kEach][kEach] = {};
  for (int32_t k = 0; k < taps; ++k) {
    bool found = false;
    if (lane < kTile) {
      const int64_t o = first_row + lane;
      const int32_t row = o < outputs ? index[k * outputs + o] : -1;
      found = row >= 0 && row < rows;
      from[lane] = found ? row : -1;
    }
    if (!__syncthreads_or(found)) continue;
    for (int64_t c = 0; c < channels; c += kSlice) {
      for (int n = lane; n < kSlice * kTile; n += kThreads) {
        const int s = n % kSlice, r = n / kSlice;
        left[s][r] = from[r] >= 0 && c + s < channels ? static_cast<acc_t>(x[from[r] * channels + c + s]) : acc_t(0);
      }
      for (int n = lane; n < kSlice * kTile; n += kThreads) {
        const int s = n / kTile;
        const int64_t column = first_column + n % kTile;
        right[s][n % kTile] = c + s < channels && column < width
                                  ? static_cast<acc_t>(weight[(k * channels + c + s) * width + column])
                                  : acc_t(0);
      }
      __syncthreads();
      add_slice(left, right, sum);
      __syncthreads();
    }
  }
  store_tile(sum, first_row, outputs, first_column, width, out);
}

at::Tensor sparse_conv_cuda(const at::Tensor& features_, const at::Tensor& weight_, const at::Tensor& index_,
                            const std::optional<at::Tensor>& index_t) {
  check_conv(features_, weight_, index_, index_t);
  const c10::cuda::CUDAGuard guard(features_.device());
  const at::Tensor features = features_.contiguous(), index = index_.contiguous();
  const at::Tensor weight = weight_.permute({1, 2, 0}).contiguous();
  const int64_t outputs = index.size(1), width = weight.size(2);
  at::Tensor result = at::empty({outputs, width}, features.options());
  if (result.numel() == 0) return result;
  const dim3 grid(static_cast<unsigned>((outputs + kTile - 1) / kTile),
                  static_cast<unsigned>((width + kTile - 1) / kTile));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, features.scalar_type(), "sparse_conv", [&] {
    conv_kernel<scalar_t, at::opmath_type<scalar_t>>
        <<<grid, dim3(kTile / kEach, kTile / kEach), 0, c10::cuda::getCurrentCUDAStream()>>>(
            outputs, features.size(0), features.size(1), width, static_cast<int32_t>(index.size(0)),
            features.const_data_ptr<scalar_t>(), weight.const_data_ptr<scalar_t>(), index.const_data_ptr<int32_t>(),
            result.data_ptr<scalar_t>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return result;
}

// part is (parts, taps, channels, width): a block sums one part of the outputs for a tile of channels x width.
template <typename scalar_t, typename acc_t>
__global__ void weight_kernel(int64_t outputs, int64_t rows, int64_t channels, int64_t width, int32_t taps,
                              int64_t per_part, const scalar_t* x, const scalar_t* grad, const int32_t* index,
                              acc_t* part) {
  __shared__ acc_t left[kSlice][kTile + 1];
  __shared__ acc_t right[kSlice][kTile];
  __shared__ int32_t from[kSlice];
  const int lane = threadIdx.y * blockDim.x + threadIdx.x;
  const int32_t k = static_cast<int32_t>(blockIdx.x % taps);
  const int64_t number = blockIdx.x / taps;
  const int64_t first_channel = static_cast<int64_t>(blockIdx.y) * kTile;
  const int64_t first_column = static_cast<int64_t>(blockIdx.z) * kTile;
  const int64_t last = min(outputs, (number + 1) * per_part);
  acc_t sum[kEach][kEach] = {};
  for (int64_t o = number * per_part; o < last; o += kSlice) {
    bool found = false;
    if (lane < kSlice) {
      const int32_t row = o + lane < last ? index[k * outputs + o + lane] : -1;
      found = row >= 0 && row < rows;
      from[lane] = found ? row : -1;
    }
    if (!__syncthreads_or(found)) continue;
    for (int n = lane; n < kSlice * kTile; n += kThreads) {
      const int s = n / kTile, t = n % kTile;
      const bool valid = from[s] >= 0;
      left[s][t] = valid && first_channel + t < channels ? static_cast<acc_t>(x[from[s] * channels + first_channel + t])
                                                         : acc_t(0);
      right[s][t] =
          valid && first_column + t < width ? static_cast<acc_t>(grad[(o + s) * width + first_column + t]) : acc_t(0);
    }
    __syncthreads();
    add_slice(left, right, sum);
    __syncthreads();
  }
  store_tile(sum, first_channel, channels, first_column, width, part + (number * taps + k) * channels * width);
}

at::Tensor sparse_conv_weight_cuda(const at::Tensor& features_, const at::Tensor& grad_, const at::Tensor& index_,
                                   const std::optional<at::Tensor>& index_t) {
  check_weight_grad(features_, grad_, index_, index_t);
  const c10::cuda::CUDAGuard guard(features_.device());
  const at::Tensor features = features_.contiguous(), grad = grad_.contiguous(), index = index_.contiguous();
  const int64_t taps = index.size(0), outputs = index.size(1), channels = features.size(1), width = grad.size(1);
  const int64_t numbers = taps * channels * width;
  if (numbers == 0 || outputs == 0) return at::zeros({width, taps, channels}, features.options());
  // parts of 4096 outputs, fewer where their sums would pass 2^26 numbers; a function of the sizes alone
  const int64_t most = std::max<int64_t>(1, (int64_t{1} << 26) / numbers);
  const int64_t parts = std::min(most, (outputs + 4095) / 4096), per_part = (outputs + parts - 1) / parts;
  const auto type = features.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  at::Tensor part = at::empty({parts, taps, channels, width}, features.options().dtype(type));
  const dim3 grid(static_cast<unsigned>(parts * taps), static_cast<unsigned>((channels + kTile - 1) / kTile),
                  static_cast<unsigned>((width + kTile - 1) / kTile));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, features.scalar_type(), "sparse_conv_weight", [&] {
    using acc_t = at::opmath_type<scalar_t>;
    weight_kernel<scalar_t, acc_t><<<grid, dim3(kTile / kEach, kTile / kEach), 0, c10::cuda::getCurrentCUDAStream()>>>(
        outputs, features.size(0), channels, width, static_cast<int32_t>(taps), per_part,
        features.const_data_ptr<scalar_t>(), grad.const_data_ptr<scalar_t>(), index.const_data_ptr<int32_t>(),
        part.data_ptr<acc_t>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return part.sum(0).permute({2, 0, 1}).to(features.scalar_type()).contiguous();
}

template <typename scalar_t, typename acc_t>
__global__ void sum_kernel(int64_t total, int64_t outputs, int64_t rows, int64_t channels, int32_t taps,
                           const scalar_t* x, const int32_t* index, scalar_t* out) {
  const int64_t n = thread_number();
  if (n >= total) return;
  acc_t sum = 0;
  for (int32_t k = 0; k < taps; ++k) {
    const int32_t row = index[k * outputs + n / channels];
    if (row >= 0 && row < rows) sum += static_cast<acc_t>(x[row * channels + n % channels]);
  }
  out[n] = static_cast<scalar_t>(sum);
}

at::Tensor sparse_sum_pool_cuda(const at::Tensor& features_, const at::Tensor& index_,
                                const std::optional<at::Tensor>& index_t) {
  check_maps(features_, index_, index_t);
  const c10::cuda::CUDAGuard guard(features_.device());
  const at::Tensor features = features_.contiguous(), index = index_.contiguous();
  at::Tensor result = at::empty({index.size(1), features.size(1)}, features.options());
  if (result.numel() == 0) return result;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, features.scalar_type(), "sparse_sum_pool", [&] {
    sum_kernel<scalar_t, at::opmath_type<scalar_t>>
        <<<blocks_of(result.numel()), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
            result.numel(), index.size(1), features.size(0), features.size(1), static_cast<int32_t>(index.size(0)),
            features.const_data_ptr<scalar_t>(), index.const_data_ptr<int32_t>(), result.data_ptr<scalar_t>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return result;
}

template <typename scalar_t, typename acc_t>
__global__ void max_kernel(int64_t total, int64_t outputs, int64_t rows, int64_t channels, int32_t taps,
                           const scalar_t* x, const int32_t* index, scalar_t* out, int32_t* winner) {
  const int64_t n = thread_number();
  if (n >= total) return;
  acc_t best = 0;
  int32_t from = -1;
  for (int32_t k = 0; k < taps; ++k) {
    const int32_t row = index[k * outputs + n / channels];
    if (row < 0 || row >= rows) continue;
    const acc_t value = static_cast<acc_t>(x[row * channels + n % channels]);
    if (from < 0 || value > best) {
      best = value;
      from = row;
    }
  }
  out[n] = static_cast<scalar_t>(best);
  winner[n] = from;
}

std::tuple<at::Tensor, at::Tensor> sparse_max_pool_cuda(const at::Tensor& features_, const at::Tensor& index_,
                                                        const std::optional<at::Tensor>& index_t) {
  check_maps(features_, index_, index_t);
  const c10::cuda::CUDAGuard guard(features_.device());
  const at::Tensor features = features_.contiguous(), index = index_.contiguous();
  at::Tensor result = at::empty({index.size(1), features.size(1)}, features.options());
  at::Tensor winner = at::empty(result.sizes(), index.options());
  if (result.numel() == 0) return {result, winner};
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, features.scalar_type(), "sparse_max_pool", [&] {
    max_kernel<scalar_t, at::opmath_type<scalar_t>>
        <<<blocks_of(result.numel()), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
            result.numel(), index.size(1), features.size(0), features.size(1), static_cast<int32_t>(index.size(0)),
            features.const_data_ptr<scalar_t>(), index.const_data_ptr<int32_t>(), result.data_ptr<scalar_t>(),
            winner.data_ptr<int32_t>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return {result, winner};
}

template <typename scalar_t, typename acc_t>
__global__ void max_backward_kernel(int64_t total, int64_t rows, int64_t outputs, int64_t channels, int32_t taps,
                                    const scalar_t* grad, const int32_t* winner, const int32_t* index_t,
                                    scalar_t* out) {
  const int64_t n = thread_number();
  if (n >= total) return;
  const int64_t row = n / channels;
  acc_t sum = 0;
  for (int32_t k = 0; k < taps; ++k) {
    const int32_t o = index_t[k * rows + row];
    if (o < 0 || o >= outputs) continue;
    const int64_t at = o * channels + n % channels;
    if (winner[at] == row) sum += static_cast<acc_t>(grad[at]);
  }
  out[n] = static_cast<scalar_t>(sum);
}

at::Tensor sparse_max_pool_backward_cuda(const at::Tensor& grad_, const at::Tensor& winner_,
                                         const at::Tensor& index_t_) {
  check_max_backward(grad_, winner_, index_t_);
  const c10::cuda::CUDAGuard guard(grad_.device());
  const at::Tensor grad = grad_.contiguous(), winner = winner_.contiguous(), index_t = index_t_.contiguous();
  at::Tensor result = at::empty({index_t.size(1), grad.size(1)}, grad.options());
  if (result.numel() == 0) return result;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, grad.scalar_type(), "sparse_max_pool_backward", [&] {
    max_backward_kernel<scalar_t, at::opmath_type<scalar_t>>
        <<<blocks_of(result.numel()), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
            result.numel(), index_t.size(1), grad.size(0), grad.size(1), static_cast<int32_t>(index_t.size(0)),
            grad.const_data_ptr<scalar_t>(), winner.const_data_ptr<int32_t>(), index_t.const_data_ptr<int32_t>(),
            result.data_ptr<scalar_t>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return result;
}

}  // namespace
}  // namespace occforge::sparse

TORCH_LIBRARY_IMPL(occforge, CUDA, m) {
  using namespace occforge::sparse;
  m.impl("sparse_sites", &sparse_sites_cuda);
  m.impl("sparse_map", &sparse_map_cuda);
  m.impl("sparse_transpose_map", &sparse_transpose_map_cuda);
  m.impl("sparse_conv", &sparse_conv_cuda);
  m.impl("sparse_conv_weight", &sparse_conv_weight_cuda);
  m.impl("sparse_sum_pool", &sparse_sum_pool_cuda);
  m.impl("sparse_max_pool", &sparse_max_pool_cuda);
  m.impl("sparse_max_pool_backward", &sparse_max_pool_backward_cuda);
}
