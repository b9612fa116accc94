#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/sort.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "cuda_launch.h"
#include "voxel/upsample_rows_check.h"

namespace occforge {
namespace {

// One thread for a channel of a row; rows outside the grid, which raise on the CPU, give 0.
template <typename scalar_t>
__global__ void rows_kernel(UpsampleGrid grid, int64_t count, int64_t channels, const scalar_t* volume,
                            const int64_t* rows, scalar_t* out) {
  using acc_t = at::opmath_type<scalar_t>;
  const int64_t i = thread_number();
  if (i >= count * channels) return;
  const int64_t row = rows[i / channels], channel = i % channels;
  acc_t sum = 0;
  if (row >= 0 && row < grid.fine()) {
    const UpsamplePlace<acc_t> place = upsample_place<acc_t>(grid, row);
    for (int k = 0; k < 8; ++k) {
      const acc_t weight = corner_weight(place.share, k);
      if (weight == 0) continue;
      sum += weight * static_cast<acc_t>(volume[(place.lowest + corner_step(grid, k)) * channels + channel]);
    }
  }
  out[i] = static_cast<scalar_t>(sum);
}

// The lowest voxel of each row; behind all others for rows outside the grid.
template <typename acc_t>
__global__ void lowest_kernel(UpsampleGrid grid, int64_t count, const int64_t* rows, int64_t* lowest) {
  const int64_t i = thread_number();
  if (i >= count) return;
  lowest[i] = rows[i] < 0 || rows[i] >= grid.fine() ? grid.coarse() : upsample_place<acc_t>(grid, rows[i]).lowest;
}

// One thread for a channel of a coarse voxel.
template <typename scalar_t>
__global__ void cells_kernel(UpsampleGrid grid, int64_t channels, const scalar_t* grad, const int64_t* rows,
                             const int64_t* order, const int64_t* offset, scalar_t* out) {
  using acc_t = at::opmath_type<scalar_t>;
  const int64_t i = thread_number();
  if (i >= grid.coarse() * channels) return;
  const int64_t v = i / channels, channel = i % channels;
  acc_t sum = 0;
  for (int k = 0; k < 8; ++k) {
    if (!has_corner(grid, v, k)) continue;
    const int64_t lowest = v - corner_step(grid, k);
    for (int64_t n = offset[lowest]; n < offset[lowest + 1]; ++n) {
      const int64_t row = order[n];
      const acc_t weight = corner_weight(upsample_place<acc_t>(grid, rows[row]).share, k);
      sum += weight * static_cast<acc_t>(grad[row * channels + channel]);
    }
  }
  out[i] = static_cast<scalar_t>(sum);
}

at::Tensor upsample_rows_cuda(const at::Tensor& volume_, const at::Tensor& rows_, int64_t scale) {
  check_upsample_rows(volume_, rows_);
  TORCH_CHECK_VALUE(volume_.dim() == 5, "volume must have shape (B, Z, Y, X, C), found ", volume_.sizes());
  const UpsampleGrid grid =
      check_upsample_grid(volume_.size(0), volume_.size(1), volume_.size(2), volume_.size(3), scale);
  const c10::cuda::CUDAGuard guard(volume_.device());
  const at::Tensor volume = volume_.contiguous(), rows = rows_.contiguous();
  const int64_t count = rows.size(0), channels = volume.size(4);
  at::Tensor out = at::empty({count, channels}, volume.options());
  if (out.numel() > 0) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, volume.scalar_type(), "upsample_rows", [&] {
      rows_kernel<scalar_t><<<blocks_of(out.numel()), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
          grid, count, channels, volume.const_data_ptr<scalar_t>(), rows.const_data_ptr<int64_t>(),
          out.data_ptr<scalar_t>());
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    });
  }
  return out;
}

at::Tensor upsample_rows_backward_cuda(const at::Tensor& grad_, const at::Tensor& rows_, int64_t batch, int64_t depth,
                                       int64_t height, int64_t width, int64_t scale) {
  check_upsample_grad(grad_, rows_);
  const UpsampleGrid grid = check_upsample_grid(batch, depth, height, width, scale);
  const c10::cuda::CUDAGuard guard(grad_.device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const at::Tensor grad = grad_.contiguous(), rows = rows_.contiguous();
  const int64_t count = rows.size(0), channels = grad.size(1);
  at::Tensor out = at::empty({batch, depth, height, width, channels}, grad.options());
  if (out.numel() == 0) return out;
  at::Tensor lowest = at::empty({count}, rows.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, grad.scalar_type(), "upsample_rows_backward", [&] {
    using acc_t = at::opmath_type<scalar_t>;
    if (count > 0) {
      lowest_kernel<acc_t><<<blocks_of(count), kThreads, 0, stream>>>(grid, count, rows.const_data_ptr<int64_t>(),
                                                                      lowest.data_ptr<int64_t>());
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    }
    const auto [sorted, order] = at::sort(lowest, /*stable=*/true, /*dim=*/0, /*descending=*/false);
    const at::Tensor offset = at::searchsorted(sorted, at::arange(grid.coarse() + 1, rows.options()));
    cells_kernel<scalar_t><<<blocks_of(out.numel()), kThreads, 0, stream>>>(
        grid, channels, grad.const_data_ptr<scalar_t>(), rows.const_data_ptr<int64_t>(),
        order.const_data_ptr<int64_t>(), offset.const_data_ptr<int64_t>(), out.data_ptr<scalar_t>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(occforge, CUDA, m) {
  m.impl("upsample_rows", &upsample_rows_cuda);
  m.impl("upsample_rows_backward", &upsample_rows_backward_cuda);
}

}  // namespace occforge
