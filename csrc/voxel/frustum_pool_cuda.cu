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
#include "voxel/frustum_pool_check.h"

namespace occforge {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// Indices

// `key` is the cell, or `cells` (so that it sorts last) outside the grid.
template <typename scalar_t>
__global__ void cell_kernel(VoxelFrame frame, int64_t total, int64_t per_sample, int64_t cells, const scalar_t* points,
                            int64_t* voxel, int64_t* key) {
  const int64_t i = thread_number();
  if (i >= total) return;
  const int64_t cell = cell_of_point(frame, points + 3 * i);
  const int64_t rank = i / per_sample * (frame.size[0] * frame.size[1] * frame.size[2]) + cell;
  voxel[i] = cell < 0 ? -1 : rank;
  key[i] = cell < 0 ? cells : rank;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> frustum_indices_cuda(const at::Tensor& points_,
                                                                    at::ArrayRef<double> lower,
                                                                    at::ArrayRef<double> interval,
                                                                    at::ArrayRef<int64_t> size) {
  check_frustum_points(points_);
  const VoxelFrame frame = check_voxel_frame(lower, interval, size);
  const c10::cuda::CUDAGuard guard(points_.device());
  const at::Tensor points = points_.contiguous();
  const int64_t total = points.numel() / 3, batch = points.size(0), cells = batch * size[0] * size[1] * size[2];
  at::Tensor voxel = at::empty(points.sizes().slice(0, 5), points.options().dtype(at::kLong));
  at::Tensor key = at::empty({total}, voxel.options());
  if (total > 0) {
    AT_DISPATCH_FLOATING_TYPES(points.scalar_type(), "frustum_indices", [&] {
      cell_kernel<scalar_t><<<blocks_of(total), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
          frame, total, total / batch, cells, points.const_data_ptr<scalar_t>(), voxel.data_ptr<int64_t>(),
          key.data_ptr<int64_t>());
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    });
  }
  const auto [sorted, point] = at::sort(key, /*stable=*/true, /*dim=*/0, /*descending=*/false);
  return {voxel, point, at::searchsorted(sorted, at::arange(cells + 1, voxel.options()))};
}

// ---------------------------------------------------------------------------------------------------------------------
// Pooling: one thread for W channels of one cell, neighbouring threads for neighbouring channels. Empty cells write 0,
// so nothing is cleared before. Offsets and points are clamped to what exists: corrupt indices give wrong sums, never a
// stray read.

template <int W, typename scalar_t>
__global__ void pool_kernel(FrustumShape shape, int64_t cells, int64_t channels, int64_t points, const scalar_t* depth,
                            const scalar_t* feat, const int64_t* point, const int64_t* offset, scalar_t* out) {
  using acc_t = at::opmath_type<scalar_t>;
  const int64_t groups = channels / W, i = thread_number();
  if (i >= cells * groups) return;
  const int64_t v = i / groups, channel = (i - v * groups) * W;
  const int64_t first = offset[v] < 0 ? 0 : offset[v], last = offset[v + 1] > points ? points : offset[v + 1];
  OneChannel<acc_t> sums[W] = {};
  for (int64_t k = first; k < last; ++k) {
    if (point[k] < 0 || point[k] >= points) continue;
    pool_point<W, acc_t>(shape, depth, feat, channels, channel, point[k], sums);
  }
  for (int w = 0; w < W; ++w) out[v * channels + channel + w] = static_cast<scalar_t>(sums[w].total());
}

at::Tensor frustum_pool_cuda(const at::Tensor& depth_, const at::Tensor& feat_, const at::Tensor& voxel,
                             const at::Tensor& point_, const at::Tensor& offset_, at::ArrayRef<int64_t> size) {
  const PoolSizes sizes = check_pool(depth_, feat_, voxel, point_, offset_, size);
  const c10::cuda::CUDAGuard guard(depth_.device());
  const at::Tensor depth = depth_.contiguous(), feat = feat_.permute({0, 1, 3, 4, 2}).contiguous();
  const at::Tensor point = point_.contiguous(), offset = offset_.contiguous();
  const int64_t channels = sizes.channels;
  at::Tensor out = at::empty({sizes.batch, size[2], size[1], size[0], channels}, feat.options());
  if (out.numel() > 0) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, feat.scalar_type(), "frustum_pool", [&] {
      const auto launch = [&](auto kernel, int64_t width) {
        kernel<<<blocks_of(sizes.cells * (channels / width)), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
            sizes.frustum, sizes.cells, channels, depth.numel(), depth.const_data_ptr<scalar_t>(),
            feat.const_data_ptr<scalar_t>(), point.const_data_ptr<int64_t>(), offset.const_data_ptr<int64_t>(),
            out.data_ptr<scalar_t>());
        C10_CUDA_KERNEL_LAUNCH_CHECK();
      };
      if (channels % 4 == 0) {
        launch(pool_kernel<4, scalar_t>, 4);
      } else {
        launch(pool_kernel<1, scalar_t>, 1);
      }
    });
  }
  return out.permute({0, 4, 1, 2, 3});
}

// ---------------------------------------------------------------------------------------------------------------------
// Backward: the depth gradient by one warp a point, the feature gradient by one thread a pixel and channel.

template <typename scalar_t>
__global__ void grad_depth_kernel(FrustumShape shape, int64_t points, int64_t cells, int64_t channels,
                                  const scalar_t* grad, const scalar_t* feat, const int64_t* voxel,
                                  scalar_t* grad_depth) {
  using acc_t = at::opmath_type<scalar_t>;
  const int64_t i = thread_number() / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (i >= points) return;  // the whole warp leaves
  const int64_t v = voxel[i];
  acc_t sum = 0;
  if (v >= 0 && v < cells) {
    const scalar_t *a = grad + v * channels, *b = feat + shape.pixel_of(i) * channels;
    for (int64_t c = lane; c < channels; c += kWarp) sum += static_cast<acc_t>(a[c]) * static_cast<acc_t>(b[c]);
    for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_down_sync(0xffffffffu, sum, step);
  }
  if (lane == 0) grad_depth[i] = static_cast<scalar_t>(sum);
}

template <typename scalar_t>
__global__ void grad_feat_kernel(FrustumShape shape, int64_t cells, int64_t channels, const scalar_t* grad,
                                 const scalar_t* depth, const int64_t* voxel, scalar_t* grad_feat) {
  using acc_t = at::opmath_type<scalar_t>;
  const int64_t i = thread_number();
  if (i >= shape.cameras * shape.pixels * channels) return;
  const int64_t pixel = i / channels, channel = i - pixel * channels, camera = pixel / shape.pixels;
  const int64_t base = camera * shape.bins * shape.pixels + pixel - camera * shape.pixels;
  acc_t sum = 0;
  for (int64_t d = 0; d < shape.bins; ++d) {
    const int64_t at = base + d * shape.pixels, v = voxel[at];
    if (v >= 0 && v < cells) sum += static_cast<acc_t>(depth[at]) * static_cast<acc_t>(grad[v * channels + channel]);
  }
  grad_feat[i] = static_cast<scalar_t>(sum);
}

std::tuple<at::Tensor, at::Tensor> frustum_pool_backward_cuda(const at::Tensor& grad_, const at::Tensor& depth_,
                                                              const at::Tensor& feat_, const at::Tensor& voxel_,
                                                              const at::Tensor& point, const at::Tensor& offset,
                                                              at::ArrayRef<int64_t> size) {
  const PoolSizes sizes = check_pool(depth_, feat_, voxel_, point, offset, size);
  check_pool_grad(grad_, feat_, size);
  const c10::cuda::CUDAGuard guard(depth_.device());
  const at::Tensor grad = grad_.permute({0, 2, 3, 4, 1}).contiguous(), depth = depth_.contiguous();
  const at::Tensor feat = feat_.permute({0, 1, 3, 4, 2}).contiguous(), voxel = voxel_.contiguous();
  at::Tensor grad_depth = at::empty(depth.sizes(), depth.options());
  at::Tensor grad_feat = at::empty(feat.sizes(), feat.options());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, feat.scalar_type(), "frustum_pool_backward", [&] {
    if (depth.numel() > 0) {
      grad_depth_kernel<scalar_t><<<blocks_of(depth.numel() * kWarp), kThreads, 0, stream>>>(
          sizes.frustum, depth.numel(), sizes.cells, sizes.channels, grad.const_data_ptr<scalar_t>(),
          feat.const_data_ptr<scalar_t>(), voxel.const_data_ptr<int64_t>(), grad_depth.data_ptr<scalar_t>());
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    }
    if (feat.numel() > 0) {
      grad_feat_kernel<scalar_t><<<blocks_of(feat.numel()), kThreads, 0, stream>>>(
          sizes.frustum, sizes.cells, sizes.channels, grad.const_data_ptr<scalar_t>(), depth.const_data_ptr<scalar_t>(),
          voxel.const_data_ptr<int64_t>(), grad_feat.data_ptr<scalar_t>());
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    }
  });
  return {grad_depth, grad_feat.permute({0, 1, 4, 2, 3})};
}

}  // namespace

TORCH_LIBRARY_IMPL(occforge, CUDA, m) {
  m.impl("frustum_indices", &frustum_indices_cuda);
  m.impl("frustum_pool", &frustum_pool_cuda);
  m.impl("frustum_pool_backward", &frustum_pool_backward_cuda);
}

}  // namespace occforge
